"""A small case as part of a large call, whose arrays pass the limits of 32 bits.

The rows of the small case stand at some places of long arrays. Between them are queries whose
cotangent is 0, and keys whose scores lie so far below all others (`FAR`) that their weights are
exactly 0 in every format. So the results at those places are the small case's, whatever the size,
and so are its bounds. What lies between is made by rows, never twice the same as 2**k rows before.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn._types import Array, JsonObject, Support
from nlattn.conformance.case import Case, dtype_of

PERIOD = 4099
"""Rows after which what lies between repeats: a prime."""
FAR = 4000.0
"""Minus the last channel of keys in between; that of all queries is `TOWARDS`."""
TOWARDS = 8.0
_BLOCK = 1 << 16


class LongRows:
    """An array of rows, most of them made when they are asked for; the case's own where they stand.

    Rows lie along its first axis, a dimension of the call.
    """

    def __init__(self, name: str, own: Array, size: int, at: list[int]):
        self.own, self.at = own, np.array(at, np.int64)
        self.shape, self.dtype = (size, *own.shape[1:]), own.dtype
        rng = np.random.default_rng([len(name), *name.encode()])
        rows = rng.standard_normal((PERIOD, *own.shape[1:]))
        if name in ("dout", "dlse"):
            rows[...] = 0
        if name == "k":
            rows[...] = 0
            rows[..., -1] = -FAR
        if name == "q":
            rows[..., -1] = TOWARDS
        self._rows = rows.astype(own.dtype)

    def __getitem__(self, rows: slice) -> Array:
        start, stop = rows.start, min(rows.stop, self.shape[0])
        part: Array = self._rows[np.arange(start, stop) % PERIOD]
        inside = (self.at >= start) & (self.at < stop)
        part[self.at[inside] - start] = self.own[inside]
        return part

    def made(self) -> Array:
        """All of it."""
        whole: Array = np.empty(self.shape, self.dtype)
        for start in range(0, self.shape[0], PERIOD):
            some = whole[start : start + PERIOD]
            some[...] = self._rows[: len(some)]
        whole[self.at] = self.own
        return whole


class RasterRows:
    """The rows of a grid (H, W, c) as places in raster order, (H W, c)."""

    def __init__(self, rows: LongRows):
        size, self.wide, channels = rows.shape
        self.rows, self.shape = rows, (size * self.wide, channels)

    def __getitem__(self, places: slice) -> Array:
        first, last = places.start // self.wide, -(-places.stop // self.wide)
        part = self.rows[first:last].reshape(-1, self.shape[1])
        found: Array = part[places.start - first * self.wide : places.stop - first * self.wide]
        return found


def neighbours(case: Case) -> tuple[Array, Support]:
    """Places of a grid's part in raster order, and the keys that they see; others see none."""
    (a, b), wide = case.options["window"], case.arrays["q"].shape[1]
    size, at = case.whole["H"]["size"], np.array(case.whole["H"]["at"])
    x = np.arange(wide)
    columns = np.clip(x - b // 2, 0, wide - b)[:, None] + np.arange(b)
    each = [
        (np.arange(max(row - a + 1, 0), row + 1)[:, None] * wide + columns[c]).ravel()
        for row in at
        for c in x
    ]
    places = (at[:, None] * wide + x).ravel()
    counts = np.zeros(size * wide, np.int64)
    counts[places] = [len(keys) for keys in each]
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return places, Support(indptr, np.concatenate(each).astype(np.int32), (size * wide,) * 2)


def dimensions(case: Case) -> dict[str, str]:
    """The first dimension of every array and result of a case."""
    spec = case.spec
    dims = {**spec.arrays, "dout": spec.out, "dlse": "n", "lse": "n", "out": spec.out}
    dims |= {f"d{name}": text for name, text in spec.arrays.items()}
    return {name: text.split()[0] for name, text in dims.items()}


def rows_of(case: Case) -> JsonObject:
    """Arguments of the large call: arrays, or what gives their rows; a support is whole."""
    first, found = dimensions(case), JsonObject()
    for name, x in case.arrays.items():
        place = case.whole.get(first.get(name, ""))
        found[name] = LongRows(name, x, place["size"], place["at"]) if place else x
    if "support.indptr" in case.arrays:
        found |= _support(case)
    return found


def made(case: Case) -> dict[str, Array]:
    """All arrays of the large call."""
    return {n: x.made() if isinstance(x, LongRows) else x for n, x in rows_of(case).items()}


def _support(case: Case) -> dict[str, Array]:
    """The small case's rows of keys where these stand now; any other query has the first key."""
    n, m = (int(size) for size in case.arrays["support.shape"])
    rows = case.whole.get("n", {"size": n, "at": range(n)})
    columns = np.array(case.whole.get("m", {"at": range(m)})["at"])
    counts = np.ones(rows["size"], np.int64)
    counts[rows["at"]] = np.diff(case.arrays["support.indptr"])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    indices = np.full(indptr[-1], columns[0], np.int32)
    at = np.array(rows["at"])
    own = np.concatenate([np.arange(indptr[i], indptr[i + 1]) for i in at])
    indices[own] = columns[case.arrays["support.indices"]]
    m = case.whole.get("m", {"size": m})["size"]
    return {
        "support.indptr": indptr,
        "support.indices": indices,
        "support.shape": np.array([rows["size"], m]),
    }


def reduced(case: Case, outputs: Mapping[str, Array]) -> tuple[dict[str, Array], list[str]]:
    """Results at the places of the small case, and what is wrong with those between."""
    first, found, flaws = dimensions(case), dict[str, Array](), list[str]()
    for name, x in outputs.items():
        place = case.whole.get(first.get(name, ""))
        if place is None or x.ndim == 0 or len(x) != place["size"]:
            found[name] = x
            continue
        found[name] = x[place["at"]]
        if name.startswith("d"):
            row = _stray(x, place["at"])
            if row is not None:
                flaws.append(f"rows: {name} is not 0 in row {row}, whose gradient is 0")
    return found, flaws


def _stray(x: Array, at: list[int]) -> int | None:
    """The first row of a gradient that is not 0 and not one of the case's."""
    known = np.zeros(len(x), bool)
    known[at] = True
    for start in range(0, len(x), _BLOCK):
        some = slice(start, start + _BLOCK)
        bad = (x[some] != 0).reshape(len(x[some]), -1).any(1) & ~known[some]
        if bad.any():
            return start + int(bad.argmax())
    return None


def needed(case: Case) -> int:
    """Bytes of the arguments and results of the large call, at least."""
    sizes = {name: place["size"] for name, place in case.whole.items()}
    first, total = dimensions(case), 0
    item = dtype_of(case.dtype).itemsize
    for name, x in case.arrays.items():
        count = sizes.get(first.get(name, ""), len(x) if x.ndim else 1)
        row = int(np.prod(x.shape[1:], dtype=np.int64)) * item
        twice = (case.kind == "vjp" and name in case.spec.arrays) or name == "dout"
        total += count * row * (2 if twice else 1)
    if case.kind == "forward":
        rows = sizes.get(case.spec.out.split()[0], 0)
        total += rows * int(np.prod(case.arrays["v"].shape[1:], dtype=np.int64)) * item
    return total
