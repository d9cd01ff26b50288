"""Gradients of what several heads share, which are sums over these heads, summed wrongly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import Case
from nlattn.conformance.truth.bounds import exact

Gradients = Mapping[str, Array]
_TRAILING = {"dbias": 2, "dsinks": 0}
"""Axes of arrays beside those of the table that are not of heads."""
Make = Callable[[Case, Gradients], Gradients]


def _lead(case: Case) -> tuple[int, ...]:
    return case.arrays["q"].shape[: -len(case.spec.arrays["q"].split())]


def _shared(case: Case, want: Gradients) -> dict[str, tuple[int, ...]]:
    """Gradients of arrays that heads share, and the leading axes of these; ValueError if none."""
    heads, found = int(np.prod(_lead(case))), {}
    for name, x in want.items():
        dims = case.spec.arrays.get(name[1:])
        own = len(dims.split()) if dims else _TRAILING.get(name, x.ndim)
        lead = x.shape[: x.ndim - own]
        if own < x.ndim + 1 and int(np.prod(lead)) < heads and name != "dq":
            found[name] = lead
    if not found:
        raise ValueError
    return found


def _of_one(which: int) -> Make:
    """The part of the first or the last head of those that share an array."""

    def make(case: Case, want: Gradients) -> Gradients:
        lead, made = _lead(case), {}
        for name, own in _shared(case, want).items():
            if case.options.get("gqa") and name in ("dk", "dv"):
                count = lead[-1] // own[-1]
                at = np.broadcast_to(np.arange(lead[-1]) % count == which % count, lead)
            else:
                at = _one_of(lead, own, which)
            arrays = {n: x for n, x in case.arrays.items() if n not in case.directions}
            for n in case.directions:
                x = np.asarray(case.arrays[n], float)
                arrays[n] = x * at.reshape(lead + (1,) * (x.ndim - len(lead)))
            made[name] = exact(replace(case, arrays=arrays))[name]
        return made

    return make


def _one_of(lead: tuple[int, ...], shape: tuple[int, ...], which: int) -> Array:
    """Heads that are the first, or last, along each axis on which an array has none of its own."""
    own = (1,) * (len(lead) - len(shape)) + tuple(shape)
    at = np.ones(lead, bool)
    for axis, (size, mine) in enumerate(zip(lead, own, strict=True)):
        if mine == 1 and size > 1:
            place = np.arange(size) == which % size
            at &= place.reshape([-1 if a == axis else 1 for a in range(len(lead))])
    return at


def _averaged(case: Case, want: Gradients) -> Gradients:
    heads = int(np.prod(_lead(case)))
    return {n: want[n] * (np.prod(own) / heads) for n, own in _shared(case, want).items()}


GRADIENTS: tuple[tuple[str, Make], ...] = (
    ("with the part of the first head alone of those that share an array", _of_one(0)),
    ("with the part of the last head alone of those that share an array", _of_one(-1)),
    ("with gradients averaged over the heads that share an array", _averaged),
)
