"""Keys that no block holds: those after the last whole block."""

from __future__ import annotations

from nlattn._types import Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant
from nlattn.conformance.table import find

BLOCKS = (8, 16, 32, 64, 128)


def _until(count: int, c: Call) -> Result:
    """The first keys alone, of every array that has one row for each."""
    m = c["k"].shape[-2]
    if not 0 < count < m or any("." in name for name in c.arrays) or "index" in c.arrays:
        raise ValueError
    spec, cut = find(c.op), {}
    for name, x in c.arrays.items():
        dims = spec.arrays.get(name, "n m" if name in ("mask", "bias", "dropout_mask") else "")
        letters = dims.split()
        if "m" in letters and x.ndim >= len(letters):
            axis = letters.index("m") - len(letters)
            cut[name] = x.take(range(count), axis) if x.shape[axis] == m else x
    return c.given(**cut)()


def _whole(block: int) -> Run:
    return lambda c: _until(c["k"].shape[-2] // block * block, c)


VARIANTS = tuple(
    Variant(f"without the keys after the last whole block of {b}", ("nearest",), _whole(b))
    for b in BLOCKS
)
