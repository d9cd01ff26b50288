"""One stage in less precision than all others, found by the oracle with that stage rounded.

Roundings are as good as random: errors of one stage are those of no other. So what a wrong result
and the rounded oracle have in common tells the stage, where enough rows have errors of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case, dtype_of
from nlattn.conformance.judge.by_formula import with_change
from nlattn.conformance.judge.coarse import computed
from nlattn.conformance.judge.combined import pairs
from nlattn.conformance.judge.errors import errors
from nlattn.conformance.judge.measure import Effort, rms
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.judge.variants.blocked import SIZES, masked_scores
from nlattn.conformance.judge.variants.contexts import OfContexts
from nlattn.conformance.judge.variants.formats import NarrowFormat, coarser, rounded
from nlattn.conformance.judge.variants.products import OfProducts, multiplies
from nlattn.conformance.judge.variants.roundings import (
    How,
    InBlocks,
    Rounding,
    stages,
    stages_of_blocks,
)
from nlattn.conformance.judge.verdict import SPREAD
from nlattn.conformance.truth.arithmetic import Arithmetic
from nlattn.conformance.truth.bounds import exact, typical, wide

Results = Mapping[str, Array]
Stage = Rounding | OfProducts
LEFT, LEFT_OF_16_BITS = 0.3, 0.6
"""The share of an error that may be left: of one that is independent 1 is, or more.

Results of 16 bits have other errors beside, about half as large, or they would not be wrong.
"""
ROWS, LEAST = 6, 24
"""Rows and elements without which errors could agree by chance with one of hundreds of stages."""
AGAIN = 8
"""Elements without which they could with one that earlier failures have."""
SMALL = 0.1
"""The share of a result that its error may be: more is no rounding."""
NEAR = 4.0
"""The factor by which an error may be off what its format lets expect."""
TERMS = (1, 16, 32, 64, 128)
"""Terms that kernels add to a sum at a time."""
LARGEST = 50_000
"""Pairs of queries and keys above which stages are not tried."""
MOST = 4


@dataclass(frozen=True)
class _Wrong:
    """Those results that are wrong, in one row, ours and theirs."""

    case: Case
    names: tuple[str, ...]
    kept: Array
    ours: Array
    theirs: Array
    ends: NarrowFormat | None
    """What their results are rounded to."""

    def near(self, rest: float) -> bool:
        """Whether this is little of the error."""
        share = LEFT if self.ends is None else LEFT_OF_16_BITS
        return rest <= share * rms(self.theirs - self.ours)

    def left(self, results: Mapping[str, Array] | None, of: Array) -> float:
        """How far other results are from some; infinite where they do not fit."""
        want = exact(self.case)
        if results is None or any(np.shape(results.get(n, 0)) != want[n].shape for n in self.names):
            return np.inf
        x = np.concatenate([np.ravel(np.asarray(results[n], float)) for n in self.names])[self.kept]
        if not np.isfinite(x).all():
            return np.inf
        return rms((x if self.ends is None else rounded(x, self.ends)) - of)


def less_precise(
    case: Case, names: tuple[str, ...], want: Results, got: Results, effort: Effort, new: bool
) -> list[str]:
    """Stages of less precision that explain some results; those of earlier failures, or `new`.

    Of several results each may have a stage of its own.
    """
    if len(names) == len(want) > 1:
        names = _farthest(case, want, got)
    found = _of_one_stage(case, names, want, got, effort, new)
    if found or len(names) < 2:
        return found
    each = [_of_one_stage(case, (name,), want, got, effort, new) for name in names]
    return [" and ".join(some[0] for some in each)] if all(each) else []


def _farthest(case: Case, want: Results, got: Results) -> tuple[str, ...]:
    """Results whose errors no rounding makes, where bounds do not tell which are wrong."""
    typically = typical(case)
    far = [n for n, x in want.items() if errors(got[n], x, typically[n]).spread > SPREAD]
    return tuple(far or want)


def _of_one_stage(
    case: Case, names: tuple[str, ...], want: Results, got: Results, effort: Effort, new: bool
) -> list[str]:
    rows = sum(want[n][..., :1].size if want[n].ndim > 1 else want[n].size for n in names)
    new = new and rows >= ROWS
    if pairs(case) > LARGEST or not names or not (new or effort.names):
        return []
    ours, theirs = (np.concatenate([x[n].ravel() for n in names]) for x in (want, got))
    kept = np.isfinite(ours)
    ours, theirs = ours[kept], theirs[kept]
    error = rms(theirs - ours)
    if ours.size < AGAIN or not np.isfinite(theirs).all() or not 0 < error <= SMALL * rms(ours):
        return []
    new = new and ours.size >= LEAST
    unit = Arithmetic.of(case.dtype).results.unit
    own = (form for form in coarser(case.dtype) if 2.0**-form.bits == unit)
    ends = next((form for form in own if np.array_equal(rounded(theirs, form), theirs)), None)
    ours = ours if ends is None else rounded(ours, ends)
    wrong = _Wrong(case, names, kept, ours, theirs, ends)
    also = f", in {' and '.join(names)} alone" if len(names) < len(want) else ""
    every = [*_every(case)]
    again = [x for x in every if any(one.name + also in effort.names for one in x)]
    for some in (again, every if new else []):
        if found := _found(wrong, some, effort):
            return [name + also for name in found]
    return []


def _every(case: Case) -> Iterator[list[Stage]]:
    """Roundings of each stage, to each format of less precision than a case's own."""
    forms = coarser(case.dtype)
    forms += [form._replace(cut=True) for form in forms]
    if multiplies(case.function):
        yield [OfProducts(form) for form in forms]
        for terms, sums in product((0, *TERMS), (False, True)):
            yield [OfContexts(form, terms, sums) for form in forms if not form.cut]
    call = Call(case.op, wide(case.arrays), dict(case.options), case.dtype)
    for stage, use in stages(case.function, call) if forms else ():
        kinds: tuple[How, ...] = ("kept", "read", "computed") if stage.made else ("kept",)
        for how in kinds:
            some = [form for form in forms if not form.cut or how != "computed"]
            yield [Rounding(stage, how, form, use=use) for form in some]
        for terms in TERMS if stage.adds else ():
            some = [form for form in forms if not form.cut]
            yield [Rounding(stage, "added", form, terms, use=use) for form in some]
    if forms and case.kind == "forward" and "softmax" in case.spec.wrong:
        yield from _of_blocks(call, forms)


def _of_blocks(call: Call, forms: list[NarrowFormat]) -> Iterator[list[Stage]]:
    """The same of a softmax over blocks of keys, where it can be one."""
    try:
        scores = masked_scores(call)
        found = [*stages_of_blocks(call, scores)]
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return
    for stage, block in product(found, SIZES):
        yield [InBlocks(stage, "kept", form, block=block, scores=scores) for form in forms]


def _found(wrong: _Wrong, some: Iterable[list[Stage]], effort: Effort) -> list[str]:
    """Names of what leaves least; none where the oracle in less precision leaves no more.

    What a value is rounded for may be told in several ways: that it is kept so, if that is one.
    """
    found = list[tuple[float, Stage]]()
    for each in some:
        if effort.over:
            break
        found += _tried(wrong, each)
    least = min((left for left, _ in found), default=np.inf)
    if not found or least >= _everywhere(wrong):
        return []
    near = [one for left, one in found if left <= 1.001 * least + 1e-9 * rms(wrong.ours)]
    plainest = min(map(_plain, near))
    return [one.name for one in near if _plain(one) == plainest][:MOST]


def _plain(one: Stage) -> tuple[bool, ...]:
    if isinstance(one, OfContexts):
        return one.sums, one.terms > 0
    if isinstance(one, OfProducts):
        return ()
    blocks = isinstance(one, InBlocks)
    return blocks, one.how != "kept", not one.stage.whole, one.use is not None


def _tried(wrong: _Wrong, each: list[Stage]) -> Iterator[tuple[float, Stage]]:
    """Formats in which a stage leaves little of the error, of those that let expect its size."""
    error = rms(wrong.theirs - wrong.ours)
    moved = wrong.left(with_change(wrong.case, each[0]), wrong.ours)
    for one in each if 0 < moved < np.inf else ():
        expected = moved * one.form.error / each[0].form.error
        if expected / NEAR <= error <= expected * NEAR:
            left = wrong.left(with_change(wrong.case, one), wrong.theirs)
            if wrong.near(left):
                yield left, one


def _everywhere(wrong: _Wrong) -> float:
    """What the oracle leaves that is computed in less precision everywhere."""
    want, own = exact(wrong.case), dtype_of(wrong.case.dtype).itemsize
    dtypes = [t for t in (np.float32, np.float16) if np.dtype(t).itemsize < max(own, 3)]
    made = (computed(wrong.case, want, t) for t in dtypes)
    return min((wrong.left(x, wrong.theirs) for x in made), default=np.inf)
