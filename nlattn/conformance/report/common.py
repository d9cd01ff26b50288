"""What the failing cases of a function have in common, and its passing ones do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import JUDGED, options_of

_LAYOUTS = ("heads-last", "strided", "broadcast", "reversed", "fortran")
_VALUES = {
    "zeros": "rows that are 0", "nothing": "keys that are all 0", "equal-rows": "equal rows",
    "integers": "small integers", "signed-zeros": "zeros of either sign", "large": "huge scores",
    "deep": "scores far below 0", "faint": "one weight far above others", "nan": "NaN",
    "channel": "one huge channel", "offset": "values that hardly differ",
    "negative": "scores below 0", "constant": "equal values",
    "rising": "scores that rise", "falling": "scores that fall", "last": "a largest last score",
    "sink": "a first key far above others", "low-rank": "keys of low rank",
}  # fmt: skip
_BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_DIVISORS = _BLOCKS[1:6]
_LAST = ("or more", "or less")
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
    blocks = {n: x for n, x in sizes.items() if not n.endswith(_LAST)}
    found = _exact(given.items(), bad)
    if few:
        found += [] if len(found) > 1 else _plainest(_exact(sizes.items(), bad))
        found = found or _exact(_both(given, given), bad) or _exact(_without(given), bad)
        pairs = [] if found else _plainest(_exact(_both(blocks, blocks), bad))
        found = found or [text for text in pairs if " and " in text] or pairs
        found = found or _plainest(_exact(_both(given, blocks), bad))
    elif failing > 1 and passing >= _FEW and not found:
        pairs = _exact(_both(given, given), bad)
        found = pairs if len(pairs) < _FEW else []
    found = found or _exact(_called(cases).items(), bad)
    if found:
        return f"{whole} {_listed(found)}, {none}"
    return _mostly({**given, **dict(_both(given, given))}, bad, whole)


def _mostly(traits: Traits, bad: Array, whole: str) -> str:
    """What all that fail have, and few that pass; of two the rarer by half."""
    failing, passing = int(bad.sum()), int((~bad).sum())
    counts = {n: int(has[~bad].sum()) for n, has in traits.items() if has[bad].all()}
    least = min(counts, key=lambda n: counts[n] * (2 if " with " in n else 1) + 0.1, default="")
    if not least or failing < _FEW or counts[least] > _RARE * passing:
        return ""
    return f"{whole} {least}; of the {passing} that pass {counts[least]} have it"


def _exact(traits: Iterable[tuple[str, Array]], bad: Array) -> list[str]:
    """Traits that all failing cases have, and no other."""
    return [name for name, has in traits if np.array_equal(has, bad)]


def _both(some: Traits, others: Traits) -> Iterator[tuple[str, Array]]:
    """Two traits together; of one dimension in one phrase."""
    each = combinations(some, 2) if some is others else product(some, others)
    for one, two in each:
        name = two.split()[0]
        of_one = name == one.split()[0] and some is others
        words = f"{one} and{two[len(name) :]}" if of_one else f"{one} with {two}"
        yield words, some[one] & others[two]


def _without(given: Traits) -> Iterator[tuple[str, Array]]:
    for one, two in product(given, given):
        if one != two and not two.startswith("dtype"):
            yield f"{one} without {two}", given[one] & ~given[two]


def _plainest(found: list[str]) -> list[str]:
    """Of what is said of sizes the first of each dimension; one block, or powers of two, first."""
    kept: dict[str, str] = {}

    def rank(text: str) -> tuple[bool, int]:
        return text.endswith(_LAST), len({*re.findall("[0-9]+", text)})

    for text in sorted(found, key=rank):
        kept.setdefault(text.split()[0], text)
    return [text for text in found if text in kept.values()]


def _listed(found: list[str]) -> str:
    return " and ".join(found[:2]) if len(found) < 3 else f"{', '.join(found[:2])} and more"


def _given(cases: Sequence[Case]) -> dict[str, Array]:
    """Options and arrays beside those that are always there, layouts, values and dtypes."""
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
    found += ["dlse"] * ("dlse" in case.arrays)
    layout = {part.lower() for part in case.name.split("/")[-1].split("+")}
    found += [f"arrays that lie {word}" for word in _LAYOUTS if word in layout]
    found += ["keys without heads of their own"] * ("keys-shared" in layout)
    found += _broadcast(case)
    found += [words for label, words in _VALUES.items() if label in layout]
    sizes = case.sizes()
    found += ["several heads"] * (sizes.get("heads", 1) > 1)
    found += ["even windows"] * ("W" in case.spec.out and _even(case.options.get("window")))
    return [*found, f"dtype {case.dtype}"]


def _broadcast(case: Case) -> list[str]:
    """Arrays of one head, along an axis of 1, beside queries of several."""
    dims = {n: len(x.split()) for n, x in case.spec.arrays.items() if n in case.arrays}
    leads = {n: case.arrays[n].shape[: case.arrays[n].ndim - x] for n, x in dims.items()}
    queries = leads.pop("q", ())
    one = [n for n, x in leads.items() if len(x) == len(queries) and x != queries and 1 in x]
    return [f"{name} of one head, along an axis of 1" for name in one]


def _even(window: object) -> bool:
    widths = window if isinstance(window, list) else [window]
    return any(isinstance(x, int) and x % 2 == 0 for x in widths)


def _called(cases: Sequence[Case]) -> dict[str, Array]:
    """Numbers of options where several are tried; last, parts of the cases' names."""
    numbers = [
        {f"{n} = {x:g}" for n, x in case.options.items() if type(x) in (int, float)}
        for case in cases
    ]
    labels = [{f"{x!r} in the name" for x in c.name.split("/")[-1].split("+")} for c in cases]
    found = {}
    for words in (numbers, labels):
        for word in sorted(set().union(*words)):
            found[word] = np.array([word in some for some in words])
    return found


def _sizes(cases: Sequence[Case]) -> dict[str, Array]:
    """Sizes above powers of two, from each value on, up to it, and no multiples of powers."""
    every = [case.sizes() for case in cases]
    found: dict[str, Array] = {}
    for name in dict.fromkeys(n for sizes in every for n in sizes if n != "batch"):
        ns = np.array([sizes.get(name, 0) for sizes in every])
        for block in _BLOCKS:
            found[f"{name} above {block}"] = ns > block
        found[f"odd {name}"] = ns % 2 != 0
        for divisor in _DIVISORS:
            found[f"{name} no multiple of {divisor}"] = ns % divisor != 0
        for n in np.unique(ns)[1:]:
            found[f"{name} of {n} or more"] = ns >= n
            found[f"{name} of {n - 1} or less"] = ns < n
    return found
