"""Gradients of a softmax that make its weights again from what the forward pass saved.

A backward pass makes ``P = exp(s - lse)`` and ``dS = P (dP - delta + dlse)``, with ``delta = dout .
out`` row by row, and may get one of ``s``, ``lse`` and ``delta`` wrong while the others are right.
Whatever is wrong is that of a wrong forward pass, of outputs o, lse l and weights W. From its
scores come ``P = r W`` with ``r = exp(l - lse)``, so gradients are those of that forward pass for
other cotangents: ``r dout`` of outputs, and of lse ``r (dout . o - delta + dlse)``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial

import numpy as np

from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.measure import attempt
from nlattn.conformance.judge.slopes import STEP, Slopes, Way, moved
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.table import find
from nlattn.conformance.truth.bounds import exact, wide

RIGHT = Variant("", (), Call.__call__)
KINDS = (
    "in the weights that the gradient makes from the saved lse",
    "in the weights that the gradient makes from the saved lse, and in their row sums",
    "in the weights of the gradient, but not in the row sums that it saved",
    "in the row sums of the gradient alone",
    "in the lse that the gradient makes its weights from",
)
"""What of a gradient is a wrong variant's: what follows its name."""


def ways(case: Case, some: Iterable[Variant], names: tuple[str, ...]) -> Iterator[Way]:
    """Gradients of these names that are wrong in one of these parts, where there is an lse."""
    if case.kind != "vjp" or not _has_lse(case.op):
        return
    want = exact(case)
    also = f", in {' and '.join(names)} alone" if len(names) < len(want) else ""
    rng = np.random.default_rng(0)
    along = [{n: np.asarray(rng.standard_normal(want[n].shape)) for n in names} for _ in range(3)]

    def seen(results: Mapping[str, Array]) -> Array:
        return np.array([sum((results[n] * u).sum() for n, u in way.items()) for way in along])

    ours = _Passes(case, along)
    for variant in some:
        theirs = _Slopes(ours, variant)
        for i, words in enumerate(KINDS):
            yield (
                f"{variant.name}, {words}{also}",
                Slopes(seen, [partial(theirs, i, way) for way in range(len(along))]),
            )


@cache
def _has_lse(op: str) -> bool:
    return "return_lse" in inspect.signature(find(op).oracle()).parameters


class _Passes:
    """Forward passes a step along each of some ways; of each kept as far as ours is concerned."""

    def __init__(self, case: Case, along: list[dict[str, Array]]):
        arrays = wide(case.arrays)
        cotangents = {n: arrays.pop(n) for n in case.directions}
        self.along = along
        self.dout = cotangents["dout"]
        base = math.log(2) if case.options.get("lse_base") == "2" else 1.0
        self.dlse = cotangents.get("dlse", 0) / base
        options = {n: x for n, x in case.options.items() if n != "lse_base"}
        self.call = Call(case.op, arrays, {**options, "return_lse": True}, case.dtype)
        self._ours = dict[int, tuple[Array, Array]]()

    def made(self, variant: Variant, way: int) -> tuple[Array, Array]:
        """Outputs and lse."""
        found = attempt(variant, moved(self.call, self.along[way]))
        if not isinstance(found, tuple):
            raise ValueError
        out, lse = map(np.asarray, found[:2])
        if out.shape != self.dout.shape or lse.shape != out.shape[:-1]:
            raise ValueError
        return out, lse

    def ours(self, way: int) -> tuple[Array, Array]:
        """Those of the right forward pass."""
        if way not in self._ours:
            self._ours[way] = self.made(RIGHT, way)
        return self._ours[way]


class _Slopes:
    """Slopes of all kinds of one variant along some ways, by one pass each."""

    def __init__(self, passes: _Passes, variant: Variant):
        self._passes, self._variant = passes, variant
        self._made = dict[int, list[float]]()

    def __call__(self, kind: int, way: int) -> float:
        """The slope of one kind; NaN where the variant makes no sense."""
        if way not in self._made:
            try:
                self._made[way] = [*self._slopes(way)]
            except (LookupError, ValueError):
                self._made[way] = [np.nan] * len(KINDS)
        return self._made[way][kind]

    def _slopes(self, way: int) -> Iterator[float]:
        passes, dlse = self._passes, self._passes.dlse
        ours, theirs = passes.ours(way), passes.made(self._variant, way)
        (out, lse), (o, l) = ours, theirs
        mine, their_own = self._delta(out), self._delta(o)
        r = _ratio(l, lse)
        yield self._slope(theirs, r, r * (their_own - mine + dlse))
        yield self._slope(theirs, r, r * (their_own - r * their_own + dlse))
        yield self._slope(theirs, np.ones_like(r), their_own - mine + dlse)
        yield self._slope(ours, np.ones_like(r), mine - their_own + dlse)
        yield self._slope(ours, 1 / r, dlse / r)

    def _delta(self, out: Array) -> Array:
        real = np.real(out)
        return np.asarray((self._passes.dout * np.where(np.isfinite(real), real, 0)).sum(-1))

    def _slope(self, results: tuple[Array, Array], r: Array, dlse: Array) -> float:
        """How much results move along cotangents ``r dout`` and dlse."""
        (out, lse), total = results, 0.0
        for x, cotangent in ((out, r[..., None] * self._passes.dout), (lse, dlse)):
            fine = np.isfinite(np.real(x)) & np.isfinite(np.imag(x)) & np.isfinite(cotangent)
            total += float((np.where(fine, cotangent, 0) * np.where(fine, np.imag(x), 0)).sum())
        return total / STEP


def _ratio(theirs: Array, ours: Array) -> Array:
    """``exp(theirs - ours)``, 1 in rows that see nothing either way."""
    finite = np.isfinite(np.real(theirs)) & np.isfinite(np.real(ours))
    apart = np.where(finite, np.real(theirs), 0) - np.where(finite, np.real(ours), 0)
    return np.asarray(np.exp(apart))
