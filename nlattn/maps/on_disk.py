"""Sparse maps whose arrays stay in the files of a folder, and are read where they are needed."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from nlattn import _check
from nlattn._types import Array, Floats, Support, Work
from nlattn.engines.support import checked_support
from nlattn.files import npy
from nlattn.files.untrusted import one_line, open_regular, parse_json
from nlattn.maps.sparse import SparseMap

OP = "open_map"
NOTE = "map.json"
_ROWS = 1 << 18  # rows whose keys are in memory at a time
_ARRAYS = {"indptr": "i", "indices": "i", "weights": "f", "scores": "f", "lse": "f"}


class DiskMap(SparseMap):
    """A `SparseMap` on files; products and rows read what they need, once, in order."""

    def _apply_adjoint(self, x: Floats) -> Floats:
        total = np.zeros((self.shape[1], x.shape[1]))
        first = 0
        for part in self._parts():
            sizes = np.diff(part.support.indptr)
            queries = np.repeat(np.arange(first, first + len(sizes)), sizes)
            terms = part.weights[:, None].astype(np.float64) * x[queries]
            np.add.at(total, part.support.indices, terms)
            first += len(sizes)
        return total.astype(self.dtype)

    def _parts(self) -> list[DiskMap]:
        """The map of some rows, and of the next ones."""
        n, m = self.shape
        indptr, indices, _ = self.support
        parts = []
        for first in range(0, n, _ROWS):
            last = min(first + _ROWS, n)
            some = slice(indptr[first], indptr[last])
            support = Support(
                indptr[first : last + 1] - some.start, indices[some], (last - first, m)
            )
            arrays = self.weights[some], self.edge_scores[some], self.lse[first:last]
            parts.append(DiskMap(support, *arrays, Work(0, 0, 0)))
        return parts


def open_map(folder: str | os.PathLike[str]) -> DiskMap:
    """The map that a run by tiles has left in a folder; every key is looked at once.

    ValueError if there is none or it is damaged, OSError if a file cannot be opened.

    Examples
    --------
    >>> np.save("photograph.npy", (255 * image).astype(np.uint8))
    >>> from nlattn.tiled import scram
    >>> records = scram.scram("photograph.npy", "map", candidates="random", iterations=2)
    >>> weights, keys = nlattn.open_map("map").topk(3)
    """
    path = Path(folder)
    if path.is_file():
        _check.fail(OP, str(path), "is a file, expected the folder of a run; load_map reads files")
    if not (path / NOTE).is_file():
        _check.fail(OP, str(path), "holds no map, or one that is not complete")
    with open_regular(OP, path / NOTE) as file:
        try:
            note = parse_json(file.read(1 << 16))
            grids = [tuple(int(size) for size in note[name]) for name in ("query_grid", "key_grid")]
            scores, multiply_adds, n_bytes = (int(x) for x in note["work"])
        except (ValueError, KeyError, TypeError) as error:
            _check.fail(OP, str(path / NOTE), f"is damaged: {one_line(error)}")
    arrays = {name: _mapped(path / f"{name}.npy", kinds) for name, kinds in _ARRAYS.items()}
    n, m = (math.prod(grid) for grid in grids)
    nnz = len(arrays["indices"])
    shapes = {
        "indptr": (n + 1,),
        "indices": (nnz,),
        "weights": (nnz,),
        "scores": (nnz,),
        "lse": (n,),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            text = f"has shape {arrays[name].shape}, expected {shape}"
            _check.fail(OP, str(path / f"{name}.npy"), text)
    kind = arrays["weights"].dtype
    if kind not in (np.float32, np.float64) or arrays["scores"].dtype != kind:
        text = f"holds {kind}, scores.npy {arrays['scores'].dtype}, expected float32 or float64"
        _check.fail(OP, str(path / "weights.npy"), f"{text} in both")
    support = Support(arrays["indptr"], arrays["indices"], (n, m))
    _look_at(support, str(path))
    parts = arrays["weights"], arrays["scores"], arrays["lse"]
    return DiskMap(support, *parts, Work(scores, multiply_adds, n_bytes), *grids)


def _mapped(path: Path, kinds: str) -> Array:
    return _check.frozen(npy.mapped(OP, path, kinds=kinds).view(np.ndarray))


def _look_at(support: Support, name: str) -> None:
    """Refuse keys that are none; some rows at a time."""
    n, m = support.shape
    ends = support.indptr[:: max(n, 1)]
    if n and (ends[0] != 0 or ends[-1] != len(support.indices)):
        _check.fail(OP, name, f"has rows {ends[0]} to {ends[-1]} of {len(support.indices)} keys")
    for first in range(0, n, _ROWS):
        last = min(first + _ROWS, n)
        start, end = support.indptr[first], support.indptr[last]
        part = Support(support.indptr[first : last + 1] - start, support.indices[start:end], (0, m))
        checked_support(OP, part._replace(shape=(last - first, m)))
