"""What no block holds: keys, channels, heads after the last whole one, or beyond a first few.

Made for every operator from the axes that its row names.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.judge.variants.base import Call, Variant
from nlattn.conformance.table import find

ANY = ("any",)
_BLOCKS = (2, 4, 8, 16, 32, 64, 128, 256)
_AXES = {
    "m": "keys", "r": "features", "h": "heads", "t": "learned queries", "d": "channels",
}  # fmt: skip
"""Axes that results are sums over, and what lies along them; channels count as 0."""
_OPTIONAL = {"mask": "n m", "bias": "n m", "dropout_mask": "n m", "weights": "m"}


def _axis(c: Call, name: str, letter: str) -> int | None:
    """Where the axis of a letter is in an array, from the end."""
    spec = find(c.op)
    dims = spec.arrays.get(name) or spec.extras.get(name) or _OPTIONAL.get(name, "")
    letters, x = dims.split(), c.arrays[name]
    if letter not in letters or np.ndim(x) < 1:
        return None
    return letters.index(letter) - len(letters)


def _length(c: Call, letter: str) -> int:
    """How long an axis is that results do not have; ValueError where it does not fit."""
    spec = find(c.op)
    if letter in spec.out.split() or ("softmax" in spec.wrong and letter in "md"):
        raise ValueError  # softmax attention has variants of its own
    if letter == "m" and any("." in n or n == "index" for n in c.arrays):
        raise ValueError
    own = {**spec.arrays, **spec.extras}
    some = [n for n, dims in own.items() if letter in dims.split() and n in c.arrays]
    if not some:
        raise ValueError
    at = _axis(c, some[0], letter)
    return int(c.arrays[some[0]].shape[at]) if at is not None else 0


def _until(letter: str, count: int, c: Call) -> Result:
    """The first of an axis alone, of every array that has it."""
    size, changed = _length(c, letter), dict[str, Array]()
    if not 0 < count < size:
        raise ValueError
    for name, x in c.arrays.items():
        at = _axis(c, name, letter)
        if at is None or -at > x.ndim or x.shape[at] != size:
            continue
        if letter == "d":
            shape = [-1 if i == x.ndim + at else 1 for i in range(x.ndim)]
            changed[name] = x * (np.arange(size) < count).reshape(shape)
        else:
            changed[name] = x.take(range(count), at)
    return c.given(**changed)()


def _counted(block: int, c: Call) -> Result:
    """Keys whose values are 0, but which count."""
    if "v" not in c.arrays or "v" not in find(c.op).arrays:
        raise ValueError
    size, at = _length(c, "m"), _axis(c, "v", "m")
    if size < block or not size % block or at != -2:
        raise ValueError
    kept = np.arange(size)[:, None] < size // block * block
    return c.given(v=np.where(kept, c["v"], 0))()


def _whole(letter: str, block: int, c: Call) -> Result:
    return _until(letter, _length(c, letter) // block * block, c)


def _all_but_one(letter: str, c: Call) -> Result:
    return _until(letter, _length(c, letter) - 1, c)


VARIANTS = (
    tuple(
        Variant(
            f"without the {words} after the last whole block of {b}", ANY, partial(_whole, x, b)
        )
        for x, words in _AXES.items()
        for b in _BLOCKS
    )
    + tuple(
        Variant(
            f"without the values after the last whole block of {b} keys", ANY, partial(_counted, b)
        )
        for b in _BLOCKS
    )
    + tuple(
        variant
        for x, words in _AXES.items()
        for variant in (
            Variant(f"without the last of the {words}", ANY, partial(_all_but_one, x)),
            *(
                Variant(f"with the first {b} {words} alone", ANY, partial(_until, x, b))
                for b in _BLOCKS[3:]
            ),
        )
    )
)
