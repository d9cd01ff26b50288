"""Results beside the oracle's formulas with one thing changed, where the catalogue has no name.

Of several results those alone are compared that are wrong: a backend computes each from a formula
of its own, so that one gradient may leave out what the others have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from nlattn._types import Result
from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.measure import attempt, call_of, results
from nlattn.conformance.judge.slopes import Way, changed, slopes, whole
from nlattn.conformance.judge.variants import (
    blocked,
    changes,
    detached,
    formulas,
    gradients,
    left_out,
)
from nlattn.conformance.judge.variants.base import Call, Step, Variant
from nlattn.conformance.judge.variants.products import OfProducts
from nlattn.conformance.judge.variants.roundings import StageChange
from nlattn.conformance.truth.bounds import exact, wide

LARGEST = 20_000
"""Pairs of queries and keys above which formulas are not tried one by one."""
Made = Callable[[], Mapping[str, Array] | None]


def ways(case: Case, names: tuple[str, ...], known: Iterable[Variant]) -> Iterator[Way]:
    """Formulas with one thing changed, and of some results alone what the catalogue has."""
    want = exact(case)
    some = len(names) < len(want)
    also = f", in {' and '.join(names)} alone" if some else ""
    if case.kind == "forward":
        call = call_of(case)
        in_blocks = blocked.variants() if "softmax" in case.spec.wrong else ()
        for variant in (*formulas.variants(case.op), *in_blocks):
            yield variant.name + also, _Later(partial(results, case, variant, call), names)
        return
    held, known = [*formulas.constants(case.op)], [*known]
    wrong = gradients.wrong if case.kind == "vjp" else changes.wrong
    for name, made in wrong(case, want) if some else ():
        yield name + also, whole({n: made[n] for n in names})
    more = [*known, *detached.paths(case)] if some or case.kind == "jvp" else []
    if case.kind == "vjp":
        for name, slope in slopes(case, (*more, *held), names):
            yield name + also, slope
    else:
        for variant in (*more, *held):
            yield variant.name + also, _Later(partial(changed, case, variant), names)
        for variant in (*known, *detached.paths(case), *held):
            for way in case.directions:
                part = partial(_part, case, variant, way)
                yield f"{variant.name}, in the part of {way} alone{also}", _Later(part, names)
    for variant in known:
        if isinstance(variant.run, Step):  # which is not its derivative, if it is wrong one way
            yield variant.name + also, _Later(partial(_with_step, case, variant), names)
    for change in (*formulas.changes(case.function), *formulas.uses(case.function)):
        yield change.name + also, _Later(partial(with_change, case, change), names)


def without_a_part(case: Case, names: tuple[str, ...]) -> Iterator[Way]:
    """Formulas with a part of one stage left out, and gradients of such forward passes."""
    also = f", in {' and '.join(names)} alone" if len(names) < len(exact(case)) else ""
    call = Call(case.function, wide(case.arrays), dict(case.options), case.dtype)
    for change in left_out.changes(call):
        yield change.name + also, _Later(partial(with_change, case, change), names)
    forward = {n: x for n, x in call.arrays.items() if n not in case.directions}
    variants = left_out.variants(replace(call, op=case.op, arrays=forward))
    if case.kind == "vjp":
        for name, slope in slopes(case, variants, names):
            yield name + also, slope
    elif case.kind == "jvp":
        for variant in variants:
            yield variant.name + also, _Later(partial(changed, case, variant), names)


def _part(case: Case, variant: Variant, way: str) -> Mapping[str, Array] | None:
    """Changes of results of which those along one direction are a variant's, others ours."""
    alone = {n: x * (n == way) if n in case.directions else x for n, x in case.arrays.items()}
    one = replace(case, arrays=alone)
    theirs, ours, want = changed(one, variant), exact(one), exact(case)
    return {n: want[n] - ours[n] + x for n, x in theirs.items()}


def _with_step(case: Case, variant: Variant) -> Mapping[str, Array] | None:
    """What the oracle's own gradient gives with a step of its passes replaced."""
    call = Call(case.function, wide(case.arrays), dict(case.options), case.dtype)
    return _named(case, attempt(variant, call))


def with_change(
    case: Case, change: formulas.Change | StageChange | OfProducts
) -> Mapping[str, Array] | None:
    """What the oracle's own gradient, or forward mode, gives with a change."""
    call = Call(case.op, wide(case.arrays), dict(case.options), case.dtype)
    run = Variant(change.name, (), partial(change, case.function))
    return _named(case, attempt(run, call))


def _named(case: Case, given: Result) -> Mapping[str, Array] | None:
    each = given if isinstance(given, tuple) else (given,)
    return None if given is None else dict(zip(case.outputs, each, strict=False))


class _Later:
    """A measure of some results whose variant is computed when it is first asked for."""

    def __init__(self, make: Made, names: tuple[str, ...]):
        self._make, self._names = make, names
        self._made: Array | None = None

    def __call__(self, given: Mapping[str, Array] | None) -> Array:
        """Results in one row; of None, the variant's, NaN where it makes no sense."""
        if given is not None:
            return whole({n: given[n] for n in self._names})(given)
        if self._made is None:
            made = self._make() or {}
            fit = all(n in made and made[n] is not None for n in self._names)
            self._made = (
                whole({n: np.asarray(made[n], float) for n in self._names})(None)
                if fit
                else np.array([np.nan])
            )
        return self._made
