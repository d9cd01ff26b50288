"""Cases in, verdicts out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np

from nlattn._types import Array
from nlattn.conformance.backends.backend import told
from nlattn.conformance.backends.capabilities import Capabilities, unsupported
from nlattn.conformance.backends.perform import Reply, perform
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Case
from nlattn.conformance.cases.arrays import lay, layout_of
from nlattn.conformance.judge.behaviour import behaviours
from nlattn.conformance.judge.bias import LEAST, Lean, pooled
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.large import beyond
from nlattn.conformance.judge.measure import Effort
from nlattn.conformance.judge.verdict import Verdict, judge
from nlattn.conformance.large_call import needed
from nlattn.conformance.truth.bounds import allowed, ratios

ENOUGH = 6
"""Failures of a function after which two mistakes at once are no longer looked for."""
PATIENCE = 20.0
"""Seconds of the processor that explaining the failures of an operator may take."""


class Subject(Protocol):
    """What answers cases: a `Process`, or a backend `Here`."""

    name: str
    capabilities: Capabilities

    def ask(self, case: Case) -> Reply:
        """Compute a case."""


class Here:
    """A backend in this process: no limits, and a crash is a crash of all."""

    def __init__(self, backend: object):
        self.name = str(getattr(backend, "name", type(backend).__name__))
        self.capabilities = Capabilities.of(told(backend))
        self._backend = backend

    def ask(self, case: Case) -> Reply:
        """Compute a case."""
        try:
            return perform(self._backend, case)
        except SystemExit as end:
            return Reply({}, raised=f"SystemExit: {end}")


def run(
    subject: Subject, cases: Sequence[Case], overrides: Mapping[str, float] | None = None
) -> Iterator[Verdict]:
    """Verdicts in the order of the cases, then those of behaviour.

    `overrides` widen the bounds of cases whose names match a key.
    """
    flaws: dict[tuple[str, str], list[str]] = {}
    leans: dict[tuple[str, str], list[Lean]] = {}
    failed = Counter[str]()
    efforts: dict[str, Effort] = {}
    for case in cases:
        start = time.perf_counter()
        two = failed[case.function] < ENOUGH
        effort = efforts.setdefault(case.op, Effort(PATIENCE))
        verdict, reply = attempt(subject, case, overrides, two, effort)
        failed[case.function] += verdict.failed
        flaws.setdefault((case.op, case.dtype), []).extend(reply.flaws)
        if verdict.lean is not None:
            leans.setdefault((case.op, case.dtype), []).append(verdict.lean)
        seconds = time.perf_counter() - start
        yield replace(verdict, seed=case.seed, seconds=seconds, ran=reply.ran)
    able = subject.capabilities
    fit = [case for case in cases if not case.whole and not unsupported(able, case)]
    yield from behaviours(subject.ask, fit, flaws, able.deterministic, able.arithmetic)
    for (op, dtype), found in leans.items():
        if len(found) >= LEAST:
            said = pooled(found)
            yield Verdict(f"{op}/behaviour/{dtype}/bias", "fail" if said else "pass", detail=said)


def attempt(
    subject: Subject,
    case: Case,
    overrides: Mapping[str, float] | None = None,
    two: bool = True,
    effort: Effort | None = None,
) -> tuple[Verdict, Reply]:
    """One verdict, and the answer that it is of; `two` and `effort` as for `diagnose`."""
    nothing = Reply({})
    why = unsupported(subject.capabilities, case)
    if why:
        return Verdict(case.name, "unsupported", detail=why), nothing
    room = getattr(subject, "memory", np.inf)
    if case.whole and needed(case) > room:
        detail = f"needs {needed(case) / 1e9:.0f} GB and more; --memory allows {room / 1e9:g}"
        return Verdict(case.name, "unsupported", detail=detail), nothing
    try:
        reply = subject.ask(case)
        if reply.raised and not case.error and not case.whole:
            plain = contiguous(case)
            if plain is not None and not subject.ask(plain).raised:
                layouts = {layout_of(x) for x in case.arrays.values()} - {"C"}
                detail = f"refuses {', '.join(layouts)} arrays: {reply.raised}"
                return Verdict(case.name, "unsupported", detail=detail), reply
    except Died as end:
        return Verdict(case.name, end.status, np.inf, detail=str(end)), nothing
    if reply.unsupported:
        return Verdict(case.name, "unsupported", detail=reply.unsupported), reply
    if case.error:
        detail = "" if reply.raised else f"accepts {case.error}"
        return Verdict(case.name, "pass" if reply.raised else "fail", detail=detail), reply
    if reply.raised:
        if subject.capabilities.refused(reply.raised):
            return Verdict(case.name, "unsupported", detail=f"refuses: {reply.raised}"), reply
        return Verdict(case.name, "fail", np.inf, detail=f"raised {reply.raised}"), reply
    wider = factor(case.name, overrides or {})
    return judged(subject, case, reply, wider, two, effort), reply


def judged(
    subject: Subject,
    case: Case,
    reply: Reply,
    wider: float,
    two: bool = True,
    effort: Effort | None = None,
) -> Verdict:
    """The verdict on results, whatever these are."""
    verdict = judge(case, reply.outputs, wider, subject.capabilities.arithmetic(case.dtype))
    if reply.flaws:
        return replace(verdict, status="fail", detail="; ".join(reply.flaws))
    if not verdict.failed:
        return verdict
    try:
        found = beyond(case, reply.outputs) if case.whole else unsteady(subject, case, reply, wider)
        found = found or diagnose(case, reply.outputs, stages(subject, case), two, effort)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        found = f"no diagnosis: {type(error).__name__}"
    return replace(verdict, diagnosis=found)


def unsteady(subject: Subject, case: Case, reply: Reply, wider: float) -> str:
    """What a second call says, where it gives results that no rounding tells from the first."""
    try:
        again = subject.ask(case).outputs
    except Died:
        return ""
    bounds = allowed(case, subject.capabilities.arithmetic(case.dtype))
    for name, x in reply.outputs.items():
        y, bound = again.get(name), bounds.get(name)
        if y is None or bound is None or not x.shape == y.shape == bound.shape:
            continue
        far = ratios(y.astype(float), x.astype(float), 2 * wider * bound) > 1
        if far.any():
            at = list(map(int, np.argwhere(far)[0]))
            return (
                f"the same call gives another {name} the next time, first at {at}: is memory read "
                f"that was not written, or that others still write?"
            )
    return ""


def stages(subject: Subject, case: Case) -> dict[str, Array]:
    """Intermediate results of a case, of a backend that says it shows them; empty otherwise."""
    if not case.spec.cases.stages or case.kind != "forward" or not subject.capabilities.stages:
        return {}
    try:
        return subject.ask(replace(case, kind="stages")).outputs
    except Died:
        return {}


def factor(name: str, overrides: Mapping[str, float]) -> float:
    """By how much a case's bound is widened: by the last key that its name matches."""
    found = [x for pattern, x in overrides.items() if fnmatchcase(name, pattern)]
    return found[-1] if found else 1.0


def contiguous(case: Case) -> Case | None:
    """The same case with arrays that lie as usual; None if they do."""
    if all(layout_of(x) == "C" for x in case.arrays.values()):
        return None
    return replace(case, arrays={name: lay(x, "C") for name, x in case.arrays.items()})
