"""Planted faults: backends that are wrong in a known way, by which the kit itself is judged.

Each operator is written once more, plainly, as a user would, with switches that make it wrong. They
share no code with the catalogue of wrong variants. Every fault must be rejected and should be
named; without one, the same code must pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlattn.conformance import runner
from nlattn.conformance.backends.backend import Unsupported, call
from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.diagnosis import SAME
from nlattn.conformance.table import find, owner
from tests.faults import (
    changes,
    decoder,
    dense,
    gradients,
    grids,
    keys,
    lattice,
    linear,
    near,
    parts,
)
from tests.faults.bug_reports import BUG_REPORTS
from tests.faults.kernels import KERNELS
from tests.faults.rarely import RARELY
from tests.faults.spoilt import Trap
from tests.faults.traps import TRAPS as SIMPLE

TRAPS = (*SIMPLE, *RARELY, *KERNELS, *BUG_REPORTS)

ENOUGH = 3
"""Failures of a fault after which it is known well enough."""


@dataclass(frozen=True)
class Fault:
    """One wrong backend; `run` and `name` make it one."""

    op: str
    """The function that is wrong, ``attention_vjp``."""
    what: str
    """Its switch; empty for the same code without a fault."""
    expected: str
    """What the diagnosis should say."""
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """For reports."""
        return f"{self.op}: {self.what or 'right'}"

    def capabilities(self) -> dict[str, Any]:
        """Forward mode, too, where that is what it computes."""
        return {"forward_mode": True}

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        """Compute a case; Unsupported for options that the plain code does not know."""
        if op != self.op:
            raise Unsupported(f"computes {self.op} only")
        spec = find(owner(op))
        leads = {arrays[n].shape[: -len(x.split())] for n, x in spec.arrays.items() if n in arrays}
        if op != spec.name and any(1 in lead for lead in leads) and len(leads) > 1:
            raise Unsupported("has no heads of some arrays alone")
        if spec.cases.given == "support" and "field.index" in arrays:
            raise Unsupported("finds no support of a field")

        def function(*args: Any, **rest: Any) -> Any:
            try:
                return self.function(self.what, *args, **rest)
            except (NotImplementedError, TypeError) as error:
                raise Unsupported(str(error)) from None

        return call(function, op, arrays, options)


@dataclass(frozen=True)
class Outcome:
    """How the kit took one fault."""

    fault: Fault | Trap
    cases: int
    """Cases that it computed, until enough had failed."""
    failed: tuple[str, ...]
    """Names of the cases that it failed."""
    said: str
    """What most of their diagnoses say."""

    @property
    def named(self) -> bool:
        """Whether they say what is wrong."""
        return bool(self.said) and self.fault.expected in self.said


def commonest(said: Iterable[str]) -> str:
    """Of the diagnoses of several cases, the one that explains most of them.

    A mistake that has a name counts three times as much as a description of the result.
    """
    counts = Counter[str]()
    for text in said:
        weight = 3 if text.startswith(SAME) else 1
        for reading in dict.fromkeys(text.removeprefix(SAME).split(" or ")):
            counts[reading] += weight if reading else 0
    counts.pop("", None)
    if not counts:
        return ""
    best = counts.most_common(1)[0][0]
    return best if best.startswith(("your", "d", "out", "lse")) else f"{SAME}{best}"


def _table() -> Iterator[tuple[str, Callable[..., Any], dict[str, str]]]:
    yield "attention", dense.attention, dense.FORWARD
    yield "attention_vjp", dense.attention_vjp, dense.GRADIENT
    yield "attention", decoder.attention, decoder.FORWARD
    yield "attention_vjp", decoder.attention_vjp, decoder.GRADIENT
    for module in (linear, grids, keys, lattice, parts, changes, near):
        for op, faults in module.FAULTS.items():
            yield op, getattr(module, op), faults
    for op, faults in gradients.FAULTS.items():
        yield op, gradients.FUNCTIONS[op.removesuffix("_vjp")], faults


FAULTS = tuple(
    Fault(op, what, expected, function)
    for op, function, faults in _table()
    for what, expected in faults.items()
)
RIGHT = tuple(Fault(op, "", "", function) for op, function, _ in _table())


def cases(op: str, dtypes: tuple[str, ...] | None = ("float32",)) -> list[Case]:
    """The cases that faults of a function are judged by: the smoke tier, in float32."""
    name = owner(op)
    kind = op.removeprefix(f"{name}_") if op != name else "forward"
    return [*suite.cases("smoke", (name,), dtypes, f"*/{kind}/*")]


def judge(fault: Fault | Trap, given: Iterable[Case], enough: int = ENOUGH) -> Outcome:
    """Run one fault over the cases of its operator, until `enough` of them have failed."""
    computed, failed = 0, dict[str, str]()
    subject = runner.Here(fault)
    for case in given:
        with np.errstate(all="ignore"):
            verdict = runner.attempt(subject, case)[0]
        computed += verdict.status != "unsupported"
        if verdict.failed:
            failed[case.name] = verdict.diagnosis
        if len(failed) == enough:
            break
    return Outcome(fault, computed, tuple(failed), commonest(failed.values()))


def matrix(faults: Iterable[Fault] = FAULTS, enough: int = ENOUGH) -> Iterator[Outcome]:
    """Outcomes of all faults, operator by operator."""
    made: dict[str, list[Case]] = {}
    for fault in faults:
        if fault.op not in made:
            made = {fault.op: cases(fault.op)}
        yield judge(fault, made[fault.op], enough)


def trapped(traps: Iterable[Trap] = TRAPS, enough: int = 2) -> Iterator[Outcome]:
    """Outcomes of the traps of real kernels, in every dtype of the smoke tier."""
    made: dict[str, list[Case]] = {}
    for trap in traps:
        if trap.op not in made:
            made = {trap.op: cases(trap.op, None)}
        yield judge(trap, made[trap.op], enough)
