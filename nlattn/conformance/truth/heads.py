"""Gradients of arrays that heads share, as sums of what each head rounds to the results' format.

In 16 bits many kernels write a gradient for each head, and the framework around them adds these.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn.conformance.case import Case
from nlattn.conformance.truth.rounding import Operand, Rounded, stored


def apart(
    case: Case, arrays: Mapping[str, Operand]
) -> tuple[dict[str, Operand], dict[str, Operand]] | None:
    """Arrays and options of the same call with arrays for each head; None where none is shared."""
    options, found = dict(case.options), dict(arrays)
    names = {n: dims.split() for n, dims in case.spec.arrays.items() if n in arrays}
    if case.kind != "vjp" or case.spec.cases.one_head or "q" not in names:
        return None
    if options.pop("gqa", None):
        for name in ("k", "v"):
            x = arrays[name]
            group = arrays["q"].shape[-3] // x.shape[-3]
            found[name] = x[..., np.repeat(np.arange(x.shape[-3]), group), :, :]
            if name == "k" and np.ndim(arrays.get("index", 0)) > 1:  # chosen by the head of keys
                found["index"] = np.repeat(arrays["index"], group, -2)
    lead = np.broadcast_shapes(*(found[n].shape[: -len(dims)] for n, dims in names.items()))
    wanted = {n: (*lead, *found[n].shape[-len(dims) :]) for n, dims in names.items()}
    of_pairs = "bias" not in names and case.spec.cases.given != "support"
    if "bias" in arrays and of_pairs:
        wanted["bias"] = (*lead, arrays["q"].shape[-2], arrays["k"].shape[-2])
    found |= {name: _expanded(found[name], shape) for name, shape in wanted.items()}
    same = all(found[name].shape == arrays[name].shape for name in wanted)
    return None if same else (found, options)


def together(gradient: Rounded, shape: tuple[int, ...]) -> Rounded:
    """The sum over heads, and over other axes, that an array of `shape` is shared along."""
    total: Rounded = stored(gradient)
    total = total.sum(tuple(range(total.ndim - len(shape)))) if total.ndim > len(shape) else total
    for axis, size in enumerate(shape):
        if total.shape[axis] != size:
            parts = (*total.shape[:axis], size, -1, *total.shape[axis + 1 :])
            total = total.reshape(*parts).sum(axis + 1)
    return total


def _expanded(x: Rounded, shape: tuple[int, ...]) -> Rounded:
    return Rounded(np.broadcast_to(x.value, shape), np.broadcast_to(x.error, shape))
