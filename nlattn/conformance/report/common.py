"""What the failing cases of a function have in common, and its passing ones do not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import JUDGED, options_of

_LAYOUTS = ("heads-last", "strided", "broadcast", "reversed", "fortran")
_DIVISORS = (2, 4, 8, 16, 32, 64)
_FEW = 3
"""So many cases on each side make a size a likely reason."""
_RARE = 0.25
"""The share of passing cases, at most, that may have what every failing one has."""
Traits = Mapping[str, Array]
"""Of each trait, in words, the cases that have it."""


def in_common(cases: Iterable[Case], verdicts: Iterable[Verdict]) -> Iterator[str]:
    """A line for each function some cases of which fail, others pass, and a trait tells which."""
    failed = {v.case: v.failed for v in verdicts if v.status in JUDGED}
    functions: dict[str, list[Case]] = {}
    for case in cases:
        if case.name in failed:
            functions.setdefault(case.function, []).append(case)
    for name, some in functions.items():
        bad = np.array([failed[case.name] for case in some])
        if bad.any() and not bad.all() and (said := _told(some, bad)):
            yield f"{name}: {said}"


def _told(cases: Sequence[Case], bad: Array) -> str:
    given, sizes = _given(cases), _sizes(cases)
    failing, passing = int(bad.sum()), int((~bad).sum())
    whole = f"all {failing} failing cases have" if failing > 1 else "the case that fails has"
    none = f"none of the {passing} that pass" if passing > 1 else "the one that passes has not"
    few = min(failing, passing) >= _FEW
    traits = {**given, **(sizes if few else {})}
    found = [name for name, has in traits.items() if (has == bad).all()]
    if not found and few:
        found = [
            f"{one} with {other}"
            for one, other in combinations(given, 2)
            if ((given[one] & given[other]) == bad).all()
        ]
    if found:
        return f"{whole} {_listed(found)}, {none}"
    shares = {n: float(has[~bad].mean()) for n, has in given.items() if has[bad].all()}
    least = min(shares, key=shares.__getitem__, default="")
    if not least or failing < _FEW or shares[least] > _RARE:
        return ""
    return f"{whole} {least}; of the {passing} that pass {int(given[least][~bad].sum())} have it"


def _listed(found: list[str]) -> str:
    return " and ".join(found[:2]) if len(found) < 3 else f"{', '.join(found[:2])} and more"


def _given(cases: Sequence[Case]) -> dict[str, Array]:
    """Options and arrays beside those that are always there, layouts and dtypes."""
    words = [_words(case) for case in cases]
    every = dict.fromkeys(word for some in words for word in some)
    return {word: np.array([word in some for some in words]) for word in every}


def _words(case: Case) -> list[str]:
    found = []
    for name in options_of(case):
        value = case.options.get(name)
        if value is False or (value is None and name in case.options):
            continue
        found.append(f"{name}={value!r}" if isinstance(value, str) else name)
    layout = {part.lower() for part in case.name.split("/")[-1].split("+")}
    found += [f"arrays that lie {word}" for word in _LAYOUTS if word in layout]
    found += ["keys without heads of their own"] * ("keys-shared" in layout)
    return [*found, f"dtype {case.dtype}"]


def _sizes(cases: Sequence[Case]) -> dict[str, Array]:
    """Sizes from each value on, up to it, and those that a power of two does not divide."""
    every = [case.sizes() for case in cases]
    found: dict[str, Array] = {}
    for name in dict.fromkeys(n for sizes in every for n in sizes):
        ns = np.array([sizes.get(name, 0) for sizes in every])
        for n in np.unique(ns)[1:]:
            found[f"{name} of {n} or more"] = ns >= n
            found[f"{name} below {n}"] = ns < n
        for divisor in _DIVISORS:
            found[f"{name} that {divisor} does not divide"] = ns % divisor != 0
    return found
