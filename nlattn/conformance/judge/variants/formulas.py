"""The oracle's own formulas with one thing of them changed: a term, a factor, a function left out.

What nobody thought of naming is named by the formula: "with `dP` in place of `dP - inner` in
attention_vjp". Every term of every function that an oracle calls is tried, and of gradients every
place where one thing may be held constant.
"""

from __future__ import annotations
import __future__

import ast
import copy
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, wraps
from itertools import count
from types import CodeType, FunctionType
from unittest.mock import patch

from nlattn._types import Function, Result
from nlattn.conformance.judge.variants.base import Call, Variant, lock
from nlattn.conformance.judge.variants.detached import held
from nlattn.conformance.table import find, owner
from nlattn.conformance.truth.analysis import oracles
from nlattn.conformance.truth.transcription import transcription
from nlattn.oracle.layout import any_layout

MOST_USES = 4
"""Calls of a function from which on no single one is changed."""
_ROOT = "nlattn.oracle."
_LONGEST = 80
"""Letters of an expression that is quoted whole."""
_PLAIN = {"abs", "exp", "log", "log1p", "expm1", "sqrt", "tanh", "square", "cosh", "maximum"}
"""Functions that may be forgotten."""
_LESS: dict[type, type] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
_OVER = {"sum": "mean", "mean": "sum"}
_HELD, _PLUS, _TIMES = "_held_constant", "_with_more", "_times_more"
_NUMBER = [0.0]
"""What `more` says."""
_FUTURE = __future__.annotations


@dataclass(frozen=True, eq=False)
class Change:
    """One node of a function of an oracle, and what stands in its place."""

    name: str
    """Completes "your output equals ours ...": "with `a` in place of `a - b` in f"."""
    function: Function
    tree: ast.FunctionDef
    node: ast.AST
    changed: ast.AST
    added: bool = False
    """Whether a number is added, not a factor put on the node, where there is one."""
    use: int | None = None
    """Which of the calls of the function is changed, where not all are: queries, then keys."""

    def __call__(self, op: str, c: Call) -> Result:
        """What a function of the table gives with it."""
        with lock, replaced(self.function, self._instead()):
            return transcription(op, c.arrays, c.options)

    def _instead(self) -> Function:
        made, calls = self.made(), count()

        @wraps(self.function)
        def instead(*args: object, **options: object) -> Result:
            now = next(calls)
            if self.use is not None and now >= MOST_USES:
                raise ValueError  # a function of rows, not of arrays
            changed = self.use in (None, now)
            return (made if changed else self.function)(*args, **options)

        return instead

    def made(self) -> Function:
        """The function with the change."""
        return _made(self.function, self.tree, self.node, self.changed)


@contextmanager
def replaced(function: Function, instead: Function) -> Iterator[None]:
    """With another function in place of one of the oracles', wherever these call it."""
    own = inspect.unwrap(function).__name__
    with ExitStack() as stack:
        for module in oracles():
            if getattr(module, own, 0) is function:
                stack.enter_context(patch.object(module, own, instead))
        yield


def variants(op: str) -> Iterator[Variant]:
    """Forward passes with one thing changed."""
    for change in (*changes(op), *uses(op)):
        yield Variant(change.name, (), _of(change, op))


def constants(op: str) -> Iterator[Variant]:
    """Forward passes in which one thing is held constant, so that its gradient is missing."""
    for change in (*changes(op, constant=True), *uses(op, constant=True)):
        yield Variant(change.name, (), _of(change, op))


def _of(change: Change, op: str) -> Callable[[Call], Result]:
    return lambda c: change(op, c)


def uses(op: str, constant: bool = False, some: list[Change] | None = None) -> Iterator[Change]:
    """Changes in one call alone of a function that is called for queries and for keys."""
    for change in changes(op, constant) if some is None else some:
        if change.function.__name__ != op:
            for use, word in enumerate(("first", "second")):
                yield replace(change, name=f"{change.name}, in its {word} use", use=use)


@cache
def changes(op: str, constant: bool = False) -> list[Change]:
    """All that may be changed in the functions that one calls, such as ``enla_vjp``."""
    found: dict[str, Change] = {}
    for function in functions_of(op):
        for change in changes_of(function, function.__name__.strip("_"), constant):
            found.setdefault(change.name, change)
    return [*found.values()]


def changes_of(function: Function, words: str, constant: bool = False) -> list[Change]:
    """All that may be changed in one function, which names say in these words."""
    found: dict[str, Change] = {}
    tree = tree_of(function)
    options = {x.arg for x in tree.args.kwonlyargs}
    for line in tree.body:
        for node, of in nodes(line, line):
            made = _constant(node, of, options) if constant else _changed(node)
            for text, changed in made:
                name = f"{text} in {words}"
                name += ", the second time" if name in found else ""
                if " or " not in name:
                    found.setdefault(name, Change(name, function, tree, node, changed))
    return [*found.values()]


@contextmanager
def more(number: float) -> Iterator[None]:
    """With this number in the changes of `amounts`."""
    with lock:
        _NUMBER[0] = number
        yield


OWN: dict[str, Function] = {
    _HELD: held,
    _PLUS: lambda x: x + _NUMBER[0],
    _TIMES: lambda x: x * (1 + _NUMBER[0]),
}
"""What changed functions know beside their own."""


@cache
def amounts(op: str) -> list[Change]:
    """Terms to which a number is added, and terms with one more factor; ``#`` is the number.

    Numbers are added to what is divided by, and to what a function such as a root is taken of.
    """
    found: dict[str, Change] = {}
    for function in functions_of(op):
        tree = tree_of(function)
        for line in tree.body:
            for node, of in nodes(line, line):
                for added, term, name in _terms(node, of):
                    words = f"{name} in {function.__name__.strip('_')}"
                    called = ast.Name(_PLUS if added else _TIMES, ast.Load())
                    changed = ast.Call(called, [term], [])  # type: ignore[list-item]
                    if " or " not in words:
                        change = Change(words, function, tree, term, changed, added)
                        found.setdefault(words, change)
    return [*found.values()]


def _terms(node: ast.AST, line: ast.stmt) -> Iterator[tuple[bool, ast.AST, str]]:
    if ".shape" in ast.unparse(node):
        return
    match node:
        case ast.BinOp(_, ast.Div(), x):
            yield True, x, f"with `{_bare(x)} + #` in place of {quoted(x)}"
        case ast.Call(ast.Attribute(ast.Name("np"), name), [x, *_]) if name in _PLAIN:
            yield True, x, f"with `{_bare(x)} + #` in place of {quoted(x)}"
        case ast.Assign([to], x):
            yield True, x, f"with # added to {quoted(to)}"
        case ast.AnnAssign(to, _, x) if x is not None:
            yield True, x, f"with # added to {quoted(to)}"
        case ast.Return(x) if x is not None:
            yield True, x, f"with # added to {quoted(node)}"
    match node:
        case ast.BinOp(a, ast.Add() | ast.Sub() | ast.MatMult() | ast.Mult(), b):
            for x in (a, b):
                yield False, x, f"with {quoted(x)} of {quoted(line)} times #"
        case ast.Call(_, some, _):
            for x in some:
                if isinstance(x, (ast.Name, ast.BinOp, ast.Call)):
                    yield False, x, f"with {quoted(x)} of {quoted(line)} times #"


def _bare(node: ast.AST) -> str:
    return quoted(node).strip("`")


@cache
def functions_of(op: str) -> list[Function]:
    """Functions of oracles that one of them needs, itself first."""
    module = importlib.import_module(_ROOT + find(owner(op)).stem)
    found, left = list[Function](), [getattr(module, op)] if hasattr(module, op) else []
    while left:
        function = left.pop(0)
        found.append(function)
        own = inspect.unwrap(function)
        names = (x.id for x in ast.walk(tree_of(function)) if isinstance(x, ast.Name))
        for name in dict.fromkeys(names):
            used = own.__globals__.get(name)
            if isinstance(used, FunctionType) and inspect.unwrap(used).__module__.startswith(_ROOT):
                left += [used] if used not in found and used not in left else []
    return [f for f in found if inspect.unwrap(f).__module__ != f"{_ROOT}layout"]


@cache
def tree_of(function: Function) -> ast.FunctionDef:
    """The source of a function, parsed once: nodes are told by identity."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


@cache
def _made(function: Function, whole: ast.FunctionDef, node: ast.AST, changed: ast.AST) -> Function:
    changed = ast.fix_missing_locations(ast.copy_location(changed, node))
    while node is not whole:  # what does not hold the node is shared by both trees
        above, name = _above(whole)[node]
        value, made = getattr(above, name), copy.copy(above)
        each = [changed if x is node else x for x in value] if isinstance(value, list) else changed
        setattr(made, name, each)
        node, changed = above, made
    assert isinstance(changed, ast.FunctionDef)
    return compiled(function, changed)


@cache
def _above(tree: ast.AST) -> dict[ast.AST, tuple[ast.AST, str]]:
    """For each node the one that holds it, and in which field."""
    return {
        child: (node, name)
        for node in ast.walk(tree)
        for name, value in ast.iter_fields(node)
        for child in (value if isinstance(value, list) else [value])
        if isinstance(child, ast.AST)
    }


def compiled(function: Function, tree: ast.FunctionDef) -> Function:
    """A function of an oracle with other source, which may call what is in `OWN`."""
    own = inspect.unwrap(function)
    tree.decorator_list = []
    module = compile(ast.Module([tree], []), tree.name, "exec", _FUTURE.compiler_flag)
    code = next(x for x in module.co_consts if isinstance(x, CodeType) and x.co_name == tree.name)
    made = FunctionType(code, {**own.__globals__, **OWN}, tree.name, own.__defaults__)
    made.__kwdefaults__ = own.__kwdefaults__
    return any_layout(made)


def nodes(node: ast.AST, line: ast.stmt) -> Iterator[tuple[ast.AST, ast.stmt]]:
    """Nodes of a statement, outer ones first, and the innermost statement that each is in.

    Places in arrays, and the names of functions, are none; nor is what decides when a loop ends.
    """
    if isinstance(node, ast.While):
        return
    yield node, line
    for name, value in ast.iter_fields(node):
        if name in ("slice", "annotation", "func") and not isinstance(value, ast.Attribute):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Attribute) and name == "func":
                yield from nodes(child.value, line)
            elif isinstance(child, ast.AST):
                yield from nodes(child, child if isinstance(child, ast.stmt) else line)


def _changed(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in place of a node, and the words for it."""
    for other in _others(node) if ".shape" not in ast.unparse(node) else ():
        yield f"with {quoted(other)} in place of {quoted(node)}", other
    if isinstance(node, ast.AugAssign):
        yield f"without {quoted(node)}", ast.Pass()


def _others(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.BinOp(a, ast.Add(), b):
            yield from (a, b, ast.BinOp(a, ast.Sub(), b))
        case ast.BinOp(a, ast.Sub(), b):
            yield from (a, ast.UnaryOp(ast.USub(), b), ast.BinOp(a, ast.Add(), b))
        case ast.BinOp(a, ast.Mult(), b):
            yield from (a, b)
        case ast.BinOp(a, ast.Div() | ast.Pow(), _):
            yield a
        case ast.UnaryOp(ast.USub(), a) if not isinstance(a, ast.Constant):
            yield a
        case ast.Compare(a, [op], [b]) if type(op) in _LESS:
            yield ast.Compare(a, [_LESS[type(op)]()], [b])
        case ast.IfExp(_, a, b):
            yield from (a, b)
        case ast.Call(ast.Attribute(ast.Name("np"), name), [_, a, b], []) if name == "where":
            yield from (a, b)
        case ast.Call(ast.Attribute(ast.Name("np"), name), some, []) if name in _PLAIN:
            yield from some
        case ast.Call(ast.Name(_), [a], []):
            yield a
        case ast.Call(ast.Attribute(x, name), some, words) if name in _OVER:
            yield ast.Call(ast.Attribute(x, _OVER[name], ast.Load()), some, words)


def _constant(node: ast.AST, line: ast.stmt, options: set[str]) -> Iterator[tuple[str, ast.AST]]:
    """The same number, which does not move as what it is made of moves."""
    kinds = (ast.BinOp, ast.Call, ast.Subscript, ast.IfExp, ast.Name)
    lines = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
    if not isinstance(node, kinds) or not isinstance(line, lines):
        return
    if isinstance(node, ast.Name) and (node.id in options or node.id == "np"):
        return
    if any(x is node for x in ast.walk(line.value or node)) and ".shape" not in ast.unparse(node):
        inside = "" if line.value is node else f" of {quoted(line)}"
        changed = ast.Call(ast.Name(_HELD, ast.Load()), [node], [])
        yield f"with {quoted(node)}{inside} held constant", changed


def quoted(node: ast.AST) -> str:
    """An expression as names quote it."""
    text = ast.unparse(node).replace("np.", "").replace("\n", " ")
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"`{short.removeprefix('return ')}`"
