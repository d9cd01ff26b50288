"""Faults that nobody thought of: oracles with one thing changed, by a machine.

Operators are flipped, terms dropped, axes swapped, constants and comparisons changed, one at a
time, everywhere in an oracle's file. A change that no case and no other numbers can tell from the
oracle, bit by bit, is none. What is left must be rejected.
"""

from __future__ import annotations

import ast
import copy
import importlib
import random
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np

from nlattn.conformance import runner
from nlattn.conformance.case import Case, Tier
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.cases.suite import cases, fits, make
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.conformance.truth.transcription import transcription

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mutant:
    """One changed oracle, as a backend."""

    spec: OpSpec
    name: str
    """File, line and what was changed."""
    tree: ast.Module = field(repr=False)

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        """Compute with the changed file in the place of the oracle's."""
        name = f"nlattn.oracle.{self.spec.stem}"
        with patch.dict(sys.modules, {name: _module(self)}), np.errstate(all="ignore"):
            return transcription(op, arrays, options)


@cache
def _module(mutant: Mutant) -> types.ModuleType:
    module = types.ModuleType(f"nlattn.oracle.{mutant.spec.stem}")
    sys.modules.setdefault("nlattn.oracle", importlib.import_module("nlattn.oracle"))
    with patch.dict(sys.modules, {module.__name__: module}):
        exec(compile(mutant.tree, mutant.name, "exec"), module.__dict__)
    return module


def mutants(spec: OpSpec) -> Iterator[Mutant]:
    """Every change of the functions of an operator's oracle."""
    source = importlib.import_module(f"nlattn.oracle.{spec.stem}").__file__
    assert source is not None
    with open(source) as file:
        tree = ast.parse(file.read())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        for node in [x for line in function.body for x in ast.walk(line)]:
            for what, changed in _changes(node):
                yield Mutant(spec, f"{spec.stem}:{node.lineno}: {what}", _with(tree, node, changed))


def _with(tree: ast.Module, old: ast.AST, new: ast.AST) -> ast.Module:
    """The tree with one node changed; the tree itself stays."""
    memo: dict[int, Any] = {id(old): ast.copy_location(new, old)}
    return ast.fix_missing_locations(copy.deepcopy(tree, memo))


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
    """The diagnosis."""


def examine(mutant: Mutant, tiers: tuple[Tier, ...] = ("smoke", "standard")) -> Found:
    """Judge a mutant until a case rejects it; what does the same everywhere is no fault."""
    differs = False
    for tier in tiers:
        for case in _cases(mutant.spec.name, tier):
            verdict = _verdict(mutant, case)
            if verdict is None:
                continue
            differs = True
            if verdict.failed:
                return Found(mutant, tier, verdict.diagnosis)
    return Found(mutant, "" if differs or _elsewhere(mutant) else "same", "")


def _verdict(mutant: Mutant, case: Case) -> Any:
    """None where the bits are those of the oracle."""
    try:
        made = _results(mutant.run, case)
    except RecursionError:
        raise
    except Exception as error:
        return runner.Verdict(case.name, "fail", detail=f"raised {error}")
    if all(_equal(x, y) for x, y in zip(made, _right(case), strict=False)):
        return None
    named = dict(zip(case.outputs, made, strict=False))
    return judge(case, named)


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


def _elsewhere(mutant: Mutant) -> bool:
    """Whether other numbers tell a mutant from the oracle."""
    for seed in range(3):
        for recipe in recipes(mutant.spec)[:12]:
            for kind in recipe.kinds:
                if fits(recipe, "float64"):
                    case = make(mutant.spec, replace(recipe, label="other"), kind, "float64", seed)
                    if _verdict(mutant, case) is not None:
                        return True
    return False


def sample(count: int, seed: int = 0, ops: tuple[str, ...] | None = None) -> list[Mutant]:
    """Some mutants of all oracles, each operator with its share."""
    chosen = [s for s in TABLE if not s.cases.search_only and (ops is None or s.name in ops)]
    every = [mutant for spec in chosen for mutant in mutants(spec)]
    return random.Random(seed).sample(every, min(count, len(every)))


def summary(found: list[Found]) -> str:
    """Shares of what is no equivalent."""
    real = [f for f in found if f.rejected != "same"]
    smoke = sum(f.rejected == "smoke" for f in real)
    all_ = sum(bool(f.rejected) for f in real)
    return (
        f"{len(found)} generated, {len(found) - len(real)} of them the same as the oracle; of "
        f"{len(real)} faults {smoke} rejected at smoke ({smoke / max(len(real), 1):.1%}), "
        f"{all_} at standard ({all_ / max(len(real), 1):.1%})"
    )
