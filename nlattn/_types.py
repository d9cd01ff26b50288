"""Array aliases, and the small records that several layers pass along."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = np.ndarray
"""Of any kind and shape."""
Floats: TypeAlias = NDArray[np.floating]
Scalar: TypeAlias = float | np.floating
"""One number, of a dtype or not."""
PerHead: TypeAlias = Floats | float
"""One number, or an array that broadcasts to the leading axes."""
Ints: TypeAlias = NDArray[np.integer]
Bools: TypeAlias = NDArray[np.bool_]

Result: TypeAlias = Any
"""What an operator returns: an array, or a tuple of them where an option or a gradient asks."""
Function: TypeAlias = Callable[..., Any]
"""An operator, its gradient, its map or its oracle: the row of its table knows the arguments."""
Arrays: TypeAlias = Mapping[str, Array]
"""Arrays of a call by name."""
Options: TypeAlias = Mapping[str, Any]
"""Options of any operator by name, as the kit and the command pass them on."""
StateDict: TypeAlias = Mapping[str, Any]
"""Weights of a module by name, as its own files hold them; trees of them too."""
FilePath: TypeAlias = str | os.PathLike[str]
"""Where a file is."""
Json: TypeAlias = Any
"""What a JSON file holds."""
JsonObject: TypeAlias = dict[str, Any]
"""An object of a JSON file, and of a report that is written as one."""
State: TypeAlias = dict[str, Any]
"""Arrays, numbers and words of a saved map, by name."""


class Work(NamedTuple):
    """Work counted in integers, never timed.

    Examples
    --------
    >>> nlattn.patchmatch(grid, grid).work.scores > 0
    True
    """

    scores: int
    """Score evaluations."""
    multiply_adds: int
    """Multiply-adds, of scores and of weighted sums."""
    bytes: int
    """Bytes of features, values and results read or written, each access counted."""
    per_query: Ints | None = None
    """Score evaluations of each query, in the shape of the queries."""
    changed: Ints | None = None
    """Matches that changed in each iteration of a search."""


class Field(NamedTuple):
    """The best keys found for every query of a grid.

    Examples
    --------
    >>> field = nlattn.patchmatch(grid, grid)
    >>> field.index.shape, field.key_grid
    ((16, 16, 1), (16, 16))
    """

    index: Ints  # type: ignore[assignment]  # stands where tuple.index would be
    """(..., Hq, Wq, topk) raster index of the matched keys, best first; -1 for none."""
    score: Floats
    """(..., Hq, Wq, topk) scores of those keys; -inf for none."""
    work: Work
    key_grid: tuple[int, int]
    """Height and width of the key grid."""

    def __repr__(self) -> str:
        queries, keys = (" x ".join(map(str, x)) for x in (self.index.shape[:-1], self.key_grid))
        best = self.index.shape[-1]
        return f"Field({queries} queries, {best} of the {keys} keys each, {self.score.dtype})"

    def _repr_html_(self) -> str:
        return f"<code>{self!r}</code>"


class Nearest(NamedTuple):
    """The best keys of every query, proved.

    Examples
    --------
    >>> nlattn.nearest_keys(q, k).index.shape
    (64, 1)
    """

    index: Ints  # type: ignore[assignment]  # stands where tuple.index would be
    """(..., n, topk) keys, best first, ties to the lowest; -1 where there are fewer."""
    score: Floats
    """(..., n, topk) their scores; -inf where there are fewer."""
    work: Work
    right: Bools | None = None
    """(..., n) whether the best key of the matches to begin with was a best one."""


class Support(NamedTuple):
    """Which keys each query attends to: compressed rows, as in SciPy's CSR.

    Examples
    --------
    >>> nlattn.support_from_index([[2, 0], [1, -1]], 3).indptr
    array([0, 2, 3])
    """

    indptr: Ints
    """(rows + 1,) int64: row r holds ``indices[indptr[r]:indptr[r + 1]]``; leading axes first."""
    indices: Ints
    """int32 key indices inside the row's own slice, ascending and unique in a row."""
    shape: tuple[int, ...]
    """``(*leading, n, m)``; leading axes broadcast against those of the arrays."""


class Simplices(NamedTuple):
    """Which simplex of the permutohedral lattice each point lies in.

    Examples
    --------
    >>> nlattn.permutohedral_simplices(q[:, :3]).rank.shape
    (64, 4)
    """

    rem0: Ints
    """(..., n, d + 1) its vertex of remainder 0: multiples of d + 1 that sum to 0."""
    rank: Ints
    """(..., n, d + 1) a permutation of 0..d: position in descending order of ``u - rem0``."""


class Signs(NamedTuple):
    """Signs of vectors, 64 to a word.

    Examples
    --------
    >>> nlattn.pack_signs(q).words.shape, nlattn.pack_signs(q).channels
    ((64, 1), 8)
    """

    words: Ints
    """(..., n, ceil(channels / 64)) uint64: bit c % 64 of word c // 64 is set where x_c < 0."""
    channels: int
