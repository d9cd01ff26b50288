"""The oracle's own formulas with one stage of them in less precision.

A value may be rounded where it is kept ("with `weights` rounded to bfloat16 in attention_stages"),
what it is made of may be rounded where it is read, or both; a sum may be rounded as it is added up.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any, Literal, NamedTuple

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants import blocked
from nlattn.conformance.judge.variants.base import Call, lock
from nlattn.conformance.judge.variants.formats import FORMATS, NarrowFormat, rounded
from nlattn.conformance.judge.variants.formulas import (
    OWN,
    compiled,
    functions_of,
    nodes,
    quoted,
    replaced,
    tree_of,
)
from nlattn.conformance.truth.transcription import transcription

How = Literal["kept", "read", "computed", "added"]
_AT, _READ, _SUM, _PRODUCT = "_kept_at", "_read_in", "_summed_at", "_product_at"
_MOST_USES = 3
"""Calls of a function up to which one of them alone may be of less precision."""


class Intermediate(NamedTuple):
    """A value in a function of an oracle."""

    function: Function
    number: int
    words: str
    whole: bool
    """Whether it is all that a statement computes."""
    made: bool
    """Whether it is computed from others, not read or chosen."""
    adds: bool = False
    """Whether it is a sum, or a product of matrices."""
    sized: bool = False
    """Whether it is made of sizes, and a stage only where it is a single number."""


@dataclass(frozen=True)
class StageChange:
    """One stage with something done to its numbers where they are kept."""

    stage: Intermediate
    use: int | None = field(default=None, kw_only=True)
    """Which of the calls of the function, where not all are."""

    @property
    def name(self) -> str:
        """Completes "your output equals ours ..."."""
        raise NotImplementedError

    @property
    def where(self) -> str:
        """The function, and which of its calls."""
        use = "" if self.use is None else f", in its {('first', 'second', 'third')[self.use]} use"
        return inspect.unwrap(self.stage.function).__name__.strip("_") + use

    def of(self, x: Any) -> Any:
        """What is kept in place of x."""
        return x

    def __call__(self, op: str, c: Call) -> Result:
        """What a function of the table gives with it."""
        return _run(op, c, self.stage.function, _State(self))


@dataclass(frozen=True)
class Rounding(StageChange):
    """One stage of less precision."""

    how: How
    form: NarrowFormat
    terms: int = 1
    """How many terms of a sum are added at a time."""

    @property
    def name(self) -> str:
        """Completes "your output equals ours ..."."""
        words = self.stage.words
        said = {
            "kept": f"with {words} {self.form.words}",
            "read": f"with what {words} is made of {self.form.words}",
            "computed": f"with {words} computed in {self.form.name}",
            "added": f"with {words} added up in {self.form.name} in steps of {self.terms}",
        }[self.how]
        return f"{said} in {self.where}"

    def of(self, x: Any) -> Any:
        """Its numbers rounded."""
        if self.how not in ("kept", "computed") or x.dtype.kind != "f":
            return x[()]
        return rounded(np.asarray(x, np.float64), self.form)[()]


@dataclass(frozen=True)
class InBlocks(Rounding):
    """One stage of softmax attention over blocks of keys."""

    block: int = 0
    scores: Array | None = field(default=None, compare=False, repr=False)
    """Those of the call, where many stages of it are tried."""

    @property
    def where(self) -> str:
        """The number comes last, so that names of several are seen to be alike."""
        return f"a softmax over keys in blocks of {self.block}"

    def __call__(self, _: str, c: Call) -> Result:
        """Outputs and lse."""
        return _in_blocks(c, self.block, _State(self), self.scores)


@dataclass
class _State:
    """What hooks in the source of a function do."""

    now: StageChange | None = None
    calls: int = 0
    seen: set[int] = field(default_factory=set)
    """Stages that hold arrays of floating numbers."""
    single: set[int] = field(default_factory=set)
    """Stages that hold a single one."""
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Those of arrays, masks among them."""

    def rounds(self, numbers: tuple[int, ...]) -> bool:
        """Whether one of these stages is of less precision in this call."""
        now = self.now
        return now is not None and now.use in (None, self.calls - 1) and now.stage.number in numbers


_STATE = [_State()]


def _floating(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim > 0 and x.dtype.kind == "f"


def _kept_at(number: int, x: Any) -> Any:
    state = _STATE[0]
    single = isinstance(x, float)
    if not single and not (isinstance(x, np.ndarray) and x.ndim and x.dtype.kind in "bcf"):
        return x
    if single or _floating(x):
        (state.single if single else state.seen).add(number)
    state.shapes[number] = np.shape(x)
    return x if state.now is None or not state.rounds((number,)) else state.now.of(np.asarray(x))


def _narrow(numbers: tuple[int, ...], *hows: How) -> Rounding | None:
    """How one of these stages is of less precision in this call, if in one of these ways."""
    now = _STATE[0].now
    narrow = isinstance(now, Rounding) and now.how in hows and _STATE[0].rounds(numbers)
    return now if narrow else None  # type: ignore[return-value]


def _read_in(numbers: tuple[int, ...], x: Any) -> Any:
    """As it is read; what float32 is made of is computed in float32 itself."""
    now = _narrow(numbers, "read", "computed")
    if now is None:
        return x
    if now.how == "computed" and now.form == FORMATS[0]:
        single = isinstance(x, (np.ndarray, np.float64)) and np.asarray(x).dtype == np.float64
        return np.float32(x) if single else x
    return rounded(x, now.form) if _floating(x) else x


def _summed_at(number: int, x: Any, axis: Any = None, **options: Any) -> Any:
    """The sum of an array; rounded as it is added up along one axis, if that is asked."""
    now = _narrow((number,), "added")
    if now is None:
        return x.sum(axis, **options)
    if not isinstance(axis, int) or not _floating(x):
        raise ValueError
    y = np.moveaxis(x, axis, -1)
    parts = (y[..., i : i + now.terms].sum(-1) for i in range(0, y.shape[-1], now.terms))
    total = _added(parts, now.form)
    return np.expand_dims(total, axis) if options.get("keepdims") else total


def _product_at(number: int, x: Any, y: Any) -> Any:
    """The product of two arrays of matrices; rounded as it is added up, if that is asked."""
    now = _narrow((number,), "added")
    if now is None:
        return x @ y
    if min(np.ndim(x), np.ndim(y)) < 2:
        raise ValueError
    starts = range(0, x.shape[-1], now.terms)
    parts = (x[..., i : i + now.terms] @ y[..., i : i + now.terms, :] for i in starts)
    return _added(parts, now.form)


def _added(parts: Iterator[Any], form: NarrowFormat) -> Any:
    total: Any = 0.0
    for part in parts:
        total = rounded(total + part, form)
    return total


OWN |= {_AT: _kept_at, _READ: _read_in, _SUM: _summed_at, _PRODUCT: _product_at}


def _run(op: str, c: Call, function: Function, state: _State) -> Result:
    made = _hooked(function)[0]

    @wraps(function)
    def instead(*args: object, **options: object) -> Result:
        state.calls += 1
        return made(*args, **options)

    with lock, replaced(function, instead):
        _STATE[0] = state
        return transcription(op, c.arrays, c.options)


def stages(op: str, c: Call) -> Iterator[tuple[Intermediate, int | None]]:
    """Stages of a call that hold floating numbers, whole values first; of few calls each alone."""
    found = list[tuple[Intermediate, int | None]]()
    for function in functions_of(op):
        own, calls = _seen(op, c, function)
        found += [(stage, None) for stage in own]
        if 1 < calls <= _MOST_USES:
            found += [(stage, use) for use in range(calls) for stage in own]
    yield from sorted(found, key=lambda x: (not x[0].whole, x[1] is not None))


def settings(op: str, c: Call) -> Iterator[Intermediate]:
    """Stages of a call that are single numbers of sizes and options, such as the scale."""
    for function in functions_of(op):
        if any(stage.sized and stage.whole for stage in _hooked(function)[1]):
            own = _seen(op, c, function)[0]
            yield from (stage for stage in own if stage.sized and stage.whole)


def shapes(op: str, c: Call) -> Iterator[tuple[Intermediate, tuple[int, ...]]]:
    """Arrays that a call computes, masks among them, and their shapes."""
    for function in functions_of(op):
        state = _State()
        _run(op, c, function, state)
        for stage in _hooked(function)[1]:
            if (stage.whole or stage.made) and stage.number in state.shapes:
                yield stage, state.shapes[stage.number]


def _seen(op: str, c: Call, function: Function) -> tuple[list[Intermediate], int]:
    """Stages of a function that hold floating numbers, and how often it is called.

    Single numbers are rounded where they are kept alone.
    """
    state, some = _State(), list[Intermediate]()
    _run(op, c, function, state)
    for stage in _hooked(function)[1]:
        if stage.number in state.seen and not stage.sized:
            some.append(stage)
        elif stage.number in state.single:
            some.append(stage._replace(made=False, adds=False))
    return some, state.calls


def _in_blocks(c: Call, block: int, state: _State, scores: Array | None) -> Result:
    with lock:
        _STATE[0] = state
        return blocked.attention(c, block, _hooked(blocked.attend)[0], scores)


def stages_of_blocks(c: Call, scores: Array) -> Iterator[Intermediate]:
    """Stages of softmax attention over blocks of keys."""
    state = _State()
    _in_blocks(c, blocked.SIZES[0], state, scores)
    yield from (stage for stage in _hooked(blocked.attend)[1] if stage.number in state.seen)


@cache
def _hooked(function: Function) -> tuple[Function, list[Intermediate]]:
    """The function with hooks at all its stages, and these."""
    tree = copy.deepcopy(tree_of(function))
    options = {x.arg for x in tree.args.kwonlyargs} | {"np"}
    numbers, found, names = dict[int, int](), list[Intermediate](), Counter[str]()
    for line in tree.body:
        for node, of in nodes(line, line):
            if not _number(node, of, options):
                continue
            kept = {id(x): to for x, to in _kept(of)}
            to, whole = kept.get(id(node)), id(node) in kept
            words = quoted(to or node) if whole else f"{quoted(node)} of {quoted(of)}"
            names[words] += 1
            if names[words] > 1 and whole:  # a variable that is set again
                words = quoted(of)
            made = isinstance(node, (ast.BinOp, ast.Call))
            numbers[id(node)] = len(found)
            adds = _sum(node, 0) is not None
            sized = ".shape" in ast.unparse(node)
            found.append(Intermediate(function, len(found), words, whole, made, adds, sized))
    hooked = ast.fix_missing_locations(_with_hooks(tree, numbers, ()))
    return compiled(function, hooked), found  # type: ignore[arg-type]


def _number(node: ast.AST, line: ast.stmt, options: set[str]) -> bool:
    """Whether a node of a statement may be an array of numbers."""
    kinds = (ast.BinOp, ast.Call, ast.Subscript, ast.IfExp, ast.Name, ast.UnaryOp)
    lines = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
    if not isinstance(node, kinds) or not isinstance(line, lines) or line.value is None:
        return False
    if isinstance(node, ast.Name) and node.id in options:
        return False
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return False
    return any(x is node for x in ast.walk(line.value))


def _kept(line: ast.stmt) -> Iterator[tuple[ast.AST, ast.Name | None]]:
    """What a statement computes, and the variables that it is kept in."""
    match line:
        case ast.Assign([ast.Tuple(targets)], ast.Tuple(values)):
            for to, x in zip(targets, values, strict=False):
                yield x, to if isinstance(to, ast.Name) else None
        case ast.Assign([ast.Name() as to], x) | ast.AnnAssign(ast.Name() as to, _, ast.AST() as x):
            yield x, to
        case ast.Assign(_, x) | ast.AugAssign(_, _, x) | ast.Return(ast.AST() as x):
            yield x, None


def _with_hooks(node: ast.AST, numbers: dict[int, int], inside: tuple[int, ...]) -> ast.AST:
    """A node whose stages, and the variables that these read, go through hooks."""
    number = numbers.get(id(node))
    inside = inside if number is None else (*inside, number)
    for name, value in ast.iter_fields(node):
        if isinstance(node, ast.While) or name in ("annotation", "returns", "decorator_list"):
            continue
        if isinstance(value, list):
            some = [_with_hooks(x, numbers, inside) if isinstance(x, ast.AST) else x for x in value]
            setattr(node, name, some)
        elif isinstance(value, ast.AST) and (name != "func" or isinstance(value, ast.Attribute)):
            setattr(node, name, _with_hooks(value, numbers, inside))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and inside:
        node = _call(_READ, inside, node)
    if number is None:
        return node
    return _call(_AT, number, _sum(node, number) or node)


def _sum(node: ast.AST, number: int) -> ast.Call | None:
    """A sum, or a product of matrices, through its hook; None for anything else."""
    match node:
        case ast.BinOp(x, ast.MatMult(), y):
            return _call(_PRODUCT, number, x, y)
        case ast.Call(ast.Attribute(x, "sum"), args, keywords):
            return _call(_SUM, number, x, *args, keywords=keywords)
    return None


def _call(hook: str, about: Any, *x: Any, keywords: Any = ()) -> ast.Call:
    return ast.Call(ast.Name(hook, ast.Load()), [ast.Constant(about), *x], [*keywords])
