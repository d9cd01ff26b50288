"""Faults that nobody thought of: oracles with one thing changed, by a machine.

Operators are flipped, terms dropped, axes swapped, constants and comparisons changed, one at a
time, everywhere in an oracle's file. A change that no case and no other numbers can tell from the
oracle is none: the bits are the same, or in more digits the difference shrinks as rounding does.
What is left must be rejected.

One process examines the mutants of one operator after the other: cases, truths and bounds are made
once for all of them, the smallest cases come first, and a mutant is done with its first rejection.
"""

from __future__ import annotations

import ast
import copy
import importlib
import random
import signal
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from nlattn.conformance.case import Case, Tier
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.cases.suite import cases, fits, make
from nlattn.conformance.judge import errors, verdict
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.table import JUDGED, OpSpec, find
from nlattn.conformance.truth import bounds
from nlattn.conformance.truth.bounds import floating
from nlattn.conformance.truth.transcription import transcription

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}  # fmt: skip
_MORE = 64
"""By what the difference of two ways to compute the same shrinks at least with 11 bits more."""
_PATIENCE = 30
"""Seconds after which a call counts as one that does not end."""
_ENOUGH = 2
"""Failures of which one is to say what is wrong."""


@dataclass(frozen=True, eq=False)
class Mutant:
    """One changed oracle, as a backend."""

    spec: OpSpec
    name: str
    """File, line and what was changed."""
    function: ast.FunctionDef
    node: ast.AST
    changed: ast.AST
    """What stands in the place of `node` in that function of the oracle's file."""

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        """Compute with the changed file in the place of the oracle's."""
        name = f"nlattn.oracle.{self.spec.stem}"
        with patch.dict(sys.modules, {name: _module(self)}), np.errstate(all="ignore"):
            return transcription(op, arrays, options)


@cache
def _module(mutant: Mutant) -> types.ModuleType:
    module = types.ModuleType(f"nlattn.oracle.{mutant.spec.stem}")
    sys.modules.setdefault("nlattn.oracle", importlib.import_module("nlattn.oracle"))
    tree = _with(_tree(mutant.spec.stem), mutant)
    with patch.dict(sys.modules, {module.__name__: module}):
        exec(compile(tree, mutant.name, "exec"), module.__dict__)
    return module


@cache
def _tree(stem: str) -> ast.Module:
    source = importlib.import_module(f"nlattn.oracle.{stem}").__file__
    assert source is not None
    with open(source) as file:
        return ast.parse(file.read())


def mutants(spec: OpSpec) -> Iterator[Mutant]:
    """Every change of the functions that an operator's oracle and its gradient call."""
    for function in _called(_tree(spec.stem), spec.name, f"{spec.name}_vjp"):
        for node in [x for line in function.body for x in ast.walk(line)]:
            for what, changed in _changes(node):
                line = getattr(node, "lineno", 0)
                yield Mutant(spec, f"{spec.stem}:{line}: {what}", function, node, changed)


def _called(tree: ast.Module, *names: str) -> list[ast.FunctionDef]:
    """Functions of a file that some of them need, in the file's order."""
    every = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found, left = set[str](), [name for name in names if name in every]
    while left:
        found.add(name := left.pop())
        used = {x.id for x in ast.walk(every[name]) if isinstance(x, ast.Name)}
        left += sorted((used & {*every}) - found)
    return [every[name] for name in every if name in found]


def _with(tree: ast.Module, mutant: Mutant) -> ast.Module:
    """The tree with one node changed; the tree itself stays."""
    memo: dict[int, Any] = {id(mutant.node): ast.copy_location(mutant.changed, mutant.node)}
    function = ast.fix_missing_locations(copy.deepcopy(mutant.function, memo))
    return ast.Module([function if x is mutant.function else x for x in tree.body], [])


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.BinOp):
        swapped = _SWAPS.get(type(node.op))
        if swapped is not None:
            yield (
                f"{_word(node.op)} to {swapped.__name__}",
                ast.BinOp(node.left, swapped(), node.right),
            )
        yield f"{_word(node.op)}: left alone", node.left
        yield f"{_word(node.op)}: right alone", node.right
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        op = _SWAPS[type(node.ops[0])]()
        yield f"{_word(node.ops[0])} to {_word(op)}", ast.Compare(node.left, [op], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield "other connective", ast.BoolOp(_SWAPS[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield f"without {_word(node.op)}", node.operand
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = node.operand.value  # type: ignore[attr-defined]
        other = {1: 2, 2: 1, 3: 2}.get(number)
        if other:
            yield f"-{number} to -{other}", ast.UnaryOp(ast.USub(), ast.Constant(other))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        value = node.value
        others = [not value] if isinstance(value, bool) else [value + 1, value * 2]
        for other in others:
            if other != value:
                yield f"{value} to {other}", ast.Constant(other)
    elif isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        yield "without a function", node.args[0]
    elif isinstance(node, ast.Call) and len(node.args) == 3:
        a, b, c = node.args
        yield "last two exchanged", ast.Call(node.func, [a, c, b], node.keywords)
    elif isinstance(node, ast.Call) and node.keywords:
        yield "without a keyword", ast.Call(node.func, node.args, node.keywords[1:])


def _word(op: ast.AST) -> str:
    return type(op).__name__


@dataclass(frozen=True)
class Found:
    """What became of one mutant."""

    mutant: Mutant
    rejected: str
    """The first tier that rejects it; "" if none does, "same" if it is none."""
    said: str
    """The diagnosis, or the exception that it raises."""


def examine(
    mutant: Mutant, tiers: tuple[Tier, ...] = ("smoke", "standard"), told: bool = True
) -> Found:
    """Judge a mutant until a case rejects it; what does the same everywhere is no fault."""
    apart: list[Case] = []
    for tier in tiers:
        for case in _by_size(mutant.spec.name, tier):
            made, raised = _made(mutant, case)
            if raised:
                return Found(mutant, tier, raised)
            if made is None:
                continue
            if _fails(case, made):
                return Found(mutant, tier, _told(mutant, tier) if told else "")
            apart.append(case)
    others = apart or [
        case for case in _others(mutant.spec.name) if _made(mutant, case) != (None, "")
    ]
    rounds = all(_only_rounds(mutant, case) or _is_open(mutant, case) for case in others)
    return Found(mutant, "same" if rounds else "", "")


def _made(mutant: Mutant, case: Case) -> tuple[dict[str, Any] | None, str]:
    """Results by name, None where the bits are those of the oracle; an exception in words."""
    try:
        with _limit(_PATIENCE):
            made = _results(mutant.run, case)
    except RecursionError:
        raise
    except Exception as error:
        return None, f"raised {type(error).__name__}: {error}"
    if all(_equal(x, y) for x, y in zip(made, _right(case), strict=False)):
        return None, ""
    return dict(zip(case.outputs, made, strict=False)), ""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """TimeoutError for what does not end: a changed loop may run forever."""

    def hangs(*_: Any) -> None:
        raise TimeoutError("does not end")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_exact, _transcribed = cache(bounds.exact.__wrapped__), cache(bounds.transcribed.__wrapped__)
_allowed = cache(bounds.allowed.__wrapped__)
_typical = cache(bounds.typical)
"""Of all cases at once, where a run of the kit needs a case only once."""


def _fails(case: Case, made: dict[str, Any]) -> bool:
    whole = {"exact": _exact, "transcribed": _transcribed}
    with (
        patch.multiple(verdict, **whole, allowed=_allowed, typical=_typical),
        patch.object(errors, "transcribed", _transcribed),
    ):
        return verdict.judge(case, made).failed


def _told(mutant: Mutant, tier: Tier) -> str:
    """What is said of the first two cases, in the order of the kit, that a mutant fails."""
    failed = 0
    for case in _cases(mutant.spec.name, tier):
        made, _ = _made(mutant, case)
        if made is not None and _fails(case, made):
            if said := _diagnosis(case, made):
                return said
            failed += 1
        if failed == _ENOUGH:
            break
    return ""


def _diagnosis(case: Case, made: dict[str, Any]) -> str:
    try:
        return diagnose(case, made)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return ""


def _only_rounds(mutant: Mutant, case: Case) -> bool:
    """Whether a mutant computes the same in another way: more digits bring both together."""
    more = {n: x.astype(np.longdouble) if floating(x) else x for n, x in case.arrays.items()}
    try:
        gaps = [
            _gap(_results(mutant.run, c), _results(transcription, c))
            for c in (case, replace(case, arrays=more))
        ]
    except Exception:
        return False
    return bool(gaps[1] <= gaps[0] / _MORE)


def _is_open(mutant: Mutant, case: Case) -> bool:
    """Whether a set differs in members alone whose bounds leave it to rounding if they are."""
    if case.spec.cases.result != "set" or case.function != case.op:
        return False
    made, raised = _made(mutant, case)
    if made is None or raised or made["out"].shape != _exact(case)["out"].shape:
        return False
    differ = made["out"] != _exact(case)["out"]
    return bool(np.isinf(_allowed(case)["out"])[differ].all())


def _gap(made: list[Any], right: list[Any]) -> float:
    """Largest difference, over the largest number; infinite where one is none."""
    worst = 0.0
    for x, y in zip(made, right, strict=False):
        some = np.isfinite(y)
        if x.shape != y.shape or not np.array_equal(np.isfinite(x), some):
            return float("inf")
        size = abs(y[some]).max(initial=0)
        gap = abs(x[some] - y[some]).max(initial=0)
        worst = max(worst, float(gap / size) if size else float(gap))
    return worst


@cache
def _right(case: Case) -> list[Any]:
    return _results(transcription, case)


def _results(run: Any, case: Case) -> list[Any]:
    with np.errstate(all="ignore"):
        result = run(case.function, dict(case.arrays), dict(case.options))
    return [np.asarray(x) for x in (result if isinstance(result, tuple) else (result,))]


def _equal(x: Any, y: Any) -> bool:
    return x.shape == y.shape and x.tobytes() == y.tobytes()


@cache
def _cases(op: str, tier: Tier) -> list[Case]:
    return [c for c in cases(tier, (op,), ("float64", "float32")) if c.tier == tier]


@cache
def _by_size(op: str, tier: Tier) -> list[Case]:
    return sorted(_cases(op, tier), key=lambda case: sum(x.size for x in case.arrays.values()))


@cache
def _others(op: str) -> list[Case]:
    """Cases of other numbers."""
    spec = find(op)
    return [
        make(spec, replace(recipe, label="other"), kind, "float64", seed)
        for seed in range(3)
        for recipe in recipes(spec)[:12]
        for kind in recipe.kinds
        if fits(recipe, "float64")
    ]


def sample(count: int, seed: int = 0, ops: tuple[str, ...] | None = None) -> list[Mutant]:
    """Some mutants of all oracles, as many of each operator as there are."""
    chosen = [s for s in JUDGED if not s.cases.search_only and (ops is None or s.name in ops)]
    found: list[Mutant] = []
    for i, spec in enumerate(chosen):
        every = list(mutants(spec))
        share = (count - len(found)) // (len(chosen) - i)
        found += random.Random(seed).sample(every, min(share, len(every)))
    return found


def lines(found: list[Found]) -> list[str]:
    """A table in Markdown, a row for each operator."""
    rows = [
        "| operator | generated | faults | at smoke | at standard | raise | named of the others |",
        "|---|" + "--:|" * 6,
    ]
    ops = dict.fromkeys(f.mutant.spec.name for f in found)
    for name, some in [
        *((f"`{op}`", [f for f in found if f.mutant.spec.name == op]) for op in ops),
        ("all", found),
    ]:
        cells = (name, len(some), *counts(some))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def counts(found: list[Found]) -> tuple[int, int, int, int, int]:
    """Faults; rejected at smoke, and by standard; of these with an exception; others named."""
    real = [f for f in found if f.rejected != "same"]
    rejected = [f for f in real if f.rejected]
    smoke = sum(f.rejected == "smoke" for f in real)
    raised = sum(f.said.startswith("raised ") for f in rejected)
    return len(real), smoke, len(rejected), raised, sum(bool(f.said) for f in rejected) - raised


def summary(found: list[Found]) -> str:
    """Shares of what is no equivalent."""
    real, smoke, rejected, raised, named = counts(found)
    of, some = max(real, 1), rejected - raised
    return (
        f"{len(found)} generated, {len(found) - real} of them the same as the oracle; of "
        f"{real} faults {smoke} rejected at smoke ({smoke / of:.1%}), "
        f"{rejected} at standard ({rejected / of:.1%}); {raised} raise an exception, "
        f"{named} of the other {some} are named ({named / max(some, 1):.1%})"
    )
