"""Failures by their cause, so that one mistake is one block; and what of a backend was judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from nlattn.conformance.case import Case
from nlattn.conformance.judge.coarse import PRECISION
from nlattn.conformance.judge.diagnosis import SAME
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.table import owner

_NUMBERS = re.compile(r"-?\d[\d.e+-]*(, -?\d[\d.e+-]*)*(\.\.\.)?")
_SHAPE = re.compile(r"\((\d+(, )?)*,?\)")
_CHANCE = 10
"""Failures among which a name of one alone is believed."""
JUDGED = ("pass", "suspicious", "fail", "crash", "timeout")


class Cause(NamedTuple):
    """Failures that one mistake explains, the worst of them first."""

    worst: Verdict
    others: list[Verdict]


class Reading(NamedTuple):
    """A word for what could be wrong with results of an operator."""

    op: str
    words: str
    name: bool
    """Whether the words name the mistake; else they say where or how results are off."""


def causes(verdicts: Iterable[Verdict]) -> list[Cause]:
    """Failures by operator and by what explains most of them.

    Mistakes that have a name come first, then what is said of results, then what nothing is said
    of. A name that explains one failure of many may be a chance, and waits with the second.
    """
    left = [v for v in verdicts if v.failed]
    failed = Counter(_operator(v) for v in left)
    coarse = Counter(_operator(v) for v in left if PRECISION in v.diagnosis)
    rare = {op for op, count in coarse.items() if 2 * count < failed[op]}
    left = [
        replace(v, diagnosis="") if PRECISION in v.diagnosis and _operator(v) in rare else v
        for v in left
    ]  # less precision shows nearly everywhere
    found = []
    while left:
        counts = Counter(key for v in left for key in _readings(v))

        def rank(key: Reading, counts: Mapping[Reading, int] = counts) -> tuple[int, int]:
            sure = key.name and (counts[key] > 1 or _CHANCE * counts[key] >= failed[key.op])
            return int(sure) + bool(key.words), counts[key]

        best = max(counts, key=rank)
        own = [v for v in left if best in _readings(v)]
        left = [v for v in left if best not in _readings(v)]
        own.sort(key=lambda v: (v.ratio == v.ratio, v.ratio), reverse=True)
        found.append(Cause(_plainly(own), own[1:]))
    return found


def _plainly(own: list[Verdict]) -> Verdict:
    """The worst failure; of several names for it those that explain all others, too.

    Names that explain them as they are come before those that do so with other numbers.
    """
    worst = own[0]
    if not worst.diagnosis.startswith(SAME):
        return worst
    for same in (_shapeless, _numberless):
        every = [{*map(same, _names(v))} for v in own]
        kept = [x for x in _names(worst) if all(same(x) in some for some in every)]
        if kept:
            return replace(worst, diagnosis=SAME + " or ".join(kept))
    return worst


def _names(v: Verdict) -> list[str]:
    return v.diagnosis.removeprefix(SAME).split(" or ") if v.diagnosis.startswith(SAME) else []


def _shapeless(text: str) -> str:
    return _SHAPE.sub("(...)", text)


def _numberless(text: str) -> str:
    return _NUMBERS.sub("#", _shapeless(text))


def _operator(v: Verdict) -> str:
    return v.case.split("/")[0]


def _readings(v: Verdict) -> list[Reading]:
    """What could be wrong with a result."""
    op = _operator(v)
    if names := _names(v):
        return [Reading(op, x, name=True) for x in dict.fromkeys(map(_numberless, names))]
    if v.diagnosis:  # where it is wrong, in this case
        return [Reading(op, _NUMBERS.sub("#", v.diagnosis), name=False)]
    said = _NUMBERS.sub("#", v.detail)
    return [Reading(op, said and f"{v.status}: {said}", name=bool(said))]


def others(cause: Cause, shown: int = 6) -> str:
    """A line about the failures of a cause beside the worst."""
    names = [v.case for v in cause.others]
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    numbers = _numbers(cause)
    some = f", there with {'; '.join(numbers)}" if numbers else ""
    return f"the same in {len(names)} other cases{some}: {', '.join(names[:shown])}{more}"


def _numbers(cause: Cause, shown: int = 6) -> list[str]:
    """What other cases say in place of the numbers in the first name of the worst."""
    told = _names(cause.worst)[:1]
    found = dict[str, None]()
    for name in told:
        first = [m.group() for m in _NUMBERS.finditer(_shapeless(name))]
        for some in map(_names, cause.others):
            for x in some if name not in some else ():
                if _numberless(x) == _numberless(name):
                    theirs = [m.group() for m in _NUMBERS.finditer(_shapeless(x))]
                    pairs = zip(theirs, first, strict=True)
                    found[", ".join(a for a, b in pairs if a != b)] = None
    each = [x for x in found if x]
    return [*each[:shown], "..."] if len(each) > shown else each


def coverage(cases: Iterable[Case], verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A line for each operator: how much was judged, of which kinds, dtypes, options and sizes."""
    status = {v.case: v for v in verdicts}
    by_op: dict[str, list[Case]] = {}
    for case in cases:
        if case.name in status:
            by_op.setdefault(case.op, []).append(case)
    for op, every in by_op.items():
        judged = [c for c in every if status[c.name].status in JUDGED]
        said = f"{op}: {len(judged)} of {len(every)} cases judged"
        if judged:
            kinds = dict.fromkeys(c.kind for c in judged)
            dtypes = dict.fromkeys(c.dtype for c in judged)
            named = dict.fromkeys(name for c in judged for name in options_of(c))
            said += f": {', '.join(kinds)}; {', '.join(dtypes)}; {_sizes(judged)}"
            said += f"; with {', '.join(named)}" if named else ""
            ran = Counter(status[c.name].ran for c in judged if status[c.name].ran)
            said += f"; by {', '.join(f'{x} ({n})' for x, n in ran.items())}" if ran else ""
        reasons = Counter(
            re.sub(r" \([^()]*:\d+\)$", "", status[c.name].detail)
            for c in every
            if status[c.name].status == "unsupported"
        )
        if reasons:
            few = [f"{text[:70]} ({n})" for text, n in reasons.most_common(4)]
            said += f"; not: {'; '.join(few)}" + ("; ..." if len(reasons) > 4 else "")
        yield said


def raised(cases: Iterable[Case], verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A line for each function some calls of which ended in an exception, counted as a refusal.

    A refusal that is meant is Unsupported, or named by `refusals`; a bug looks just like this.
    """
    function = {case.name: case.function for case in cases}
    ends: dict[str, Counter[str]] = {}
    asked = Counter[str]()
    for v in verdicts:
        name = function.get(v.case, "")
        asked[name] += v.status in JUDGED
        if name and v.status == "unsupported" and v.detail.startswith("refuses: "):
            ends.setdefault(name, Counter())[v.detail.removeprefix("refuses: ")] += 1
    for name, some in ends.items():
        if asked[name]:
            text, _ = some.most_common(1)[0]
            yield (
                f"NOTE {name}: {some.total()} calls raised, {asked[name]} did not: {text[:120]}; "
                "if that is no bug, raise Unsupported"
            )


def options_of(case: Case) -> list[str]:
    """Options and arrays of a case beside those that each case of its operator has."""
    extra = [name.split(".")[0] for name in case.arrays]
    known = {*case.spec.arrays, *case.directions} - {*case.spec.optional}
    return [n for n in (*case.options, *extra) if n not in known and n not in case.spec.options]


def _sizes(cases: Iterable[Case]) -> str:
    """Ranges of the dimensions."""
    found: dict[str, set[int]] = {}
    for case in cases:
        for name, n in case.sizes().items():
            found.setdefault(name, set()).add(n)
    return " ".join(f"{name} {_span(ns)}" for name, ns in found.items() if name != "batch")


def _span(ns: set[int]) -> str:
    low, high = min(ns), max(ns)
    return str(low) if low == high else f"{low}-{high}"


def doubts(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A line for each reason why cases of an operator are suspicious, the commonest first."""
    found: dict[tuple[str, str], list[Verdict]] = {}
    for v in verdicts:
        if v.status == "suspicious":
            found.setdefault((_operator(v), _NUMBERS.sub("#", v.detail)), []).append(v)
    for (op, _), some in sorted(found.items(), key=lambda item: -len(item[1])):
        worst = max(some, key=lambda v: v.ratio)
        said = worst.detail or f"{worst.ratio:.3g} times the bound; NumPy's own is as far off"
        more = f" and {len(some) - 1} more" if len(some) > 1 else ""
        yield f"suspicious, {op}: {said} ({worst.case}{more})"


def unjudged(operators: Iterable[str] | None, verdicts: Iterable[Verdict]) -> str:
    """A sentence where a backend, or an operator that it names, had no case judged at all."""
    judged = Counter[str]()
    reasons: dict[str, Counter[str]] = {}
    for v in verdicts:
        op, kind, *_ = v.case.split("/")
        judged[f"{op}_{kind}" if kind in ("vjp", "jvp") else op] += v.status in JUDGED
        if v.status == "unsupported":
            reasons.setdefault(op, Counter())[v.detail] += 1
    if operators is None:
        return "" if judged.total() or not reasons else f"nothing was judged{_why(reasons, None)}"
    none = sorted(
        f for f in operators
        if f in judged and not any(judged[name] for name in (f, f"{f}_vjp", f"{f}_jvp"))
    )  # fmt: skip
    if not none:
        return ""
    return f"no case of {', '.join(none)} was judged{_why(reasons, none)}"


def _why(reasons: Mapping[str, Counter[str]], ops: list[str] | None) -> str:
    total = Counter[str]()
    for op, counts in reasons.items():
        if ops is None or op in map(owner, ops):
            total += counts
    told = [reason for reason, _ in total.most_common() if not reason.startswith("no ")]
    return f": {(told or [*total])[0]}" if total else ""
