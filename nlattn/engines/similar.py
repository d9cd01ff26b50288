"""Which patches of a picture are compared with which: windows, matches, the few best of either."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import PatchChoice, PatchSearch
from nlattn._types import Floats, Ints, Support
from nlattn.engines import patchmatch
from nlattn.engines.patches import padded
from nlattn.engines.patchmatch import Masks, SearchOptions
from nlattn.kernels import similar as kernels
from nlattn.kernels.matching import Plan
from nlattn.kernels.scores import NEG_L2
from nlattn.runtime.jit import blocks

SEARCHES: tuple[PatchSearch, ...] = get_args(PatchSearch)
SELECTS: tuple[PatchChoice, ...] = get_args(PatchChoice)
MATCHES = 16
_POOL = 4  # times as many matches are searched as are chosen by statistics


class PixelSearch(NamedTuple):
    """Checked choice of the pixels that each is compared with."""

    kind: str
    patch: int
    distance: int
    topk: int | None
    select: str
    candidates: str
    iterations: int
    seed: int
    sigma: float

    @property
    def dense(self) -> bool:
        """Whether all keys of the window are used."""
        return self.kind == "union" or (self.kind == "window" and self.topk is None)


def plan(u: Floats, patch: int) -> Plan:
    """A picture (H, W, C) whose score is minus the mean squared difference of patches."""
    H, W, C = u.shape
    return Plan(H, W, H, W, C, patch, NEG_L2, 1 / (patch * patch * C), 0, 0, 0, 0)


def flat(u: Floats, patch: int) -> Floats:
    """A picture as the kernels read it."""
    return _check.frozen(padded(u, patch).reshape(-1))


def wanted(search: PixelSearch) -> int:
    """Matches that are searched of every pixel, itself not counted."""
    few = search.topk or MATCHES
    pooled = search.select == "statistical" and search.kind != "window"
    return min(63, few * _POOL) if pooled else few


def matching(search: PixelSearch) -> SearchOptions:
    """How they are searched."""
    return SearchOptions(
        topk=min(wanted(search) + 1, 64),  # the pixel itself is the best
        score="neg_l2",
        patch=search.patch,
        candidates=search.candidates,
        iterations=search.iterations,
        seed=search.seed,
    )


def keys(op: str, u: Floats, search: PixelSearch, max_bytes: float) -> Ints:
    """Chosen keys of every pixel (n, w), -1 for none; not those of a window used as a whole."""
    H, W, _ = u.shape
    n, ground = H * W, (flat(u, search.patch), plan(u, search.patch))
    none: Ints = np.empty((n, 0), np.int64)
    needed, many = n * (wanted(search) + 1) * 40, wanted(search)
    _check.memory(op, needed, max_bytes, f"{many} keys of {n} pixels", "tile the image")
    if search.kind == "window":
        return none if search.topk is None else _chosen(ground, search, none)
    pictures = {"q": (u, "Hq Wq d"), "k": (u, "Hk Wk d")}
    fit = _check.fit("patchmatch", pictures, nonfinite="propagate")
    field = patchmatch.search(fit, matching(search), Masks.none(1), None, max_bytes)
    return others(ground, search, field.index.reshape(n, -1))


def others(ground: tuple[Floats, Plan], search: PixelSearch, found: Ints) -> Ints:
    """Keys of every pixel among its matches (n, topk), itself left out."""
    if search.select == "statistical":
        return _chosen(ground, search, found)
    own = found == np.arange(len(found))[:, None] + ground[1].above
    own[:, -1] |= ~own.any(1)
    kept: Ints = found[~own].reshape(len(found), -1)
    return kept


def _chosen(ground: tuple[Floats, Plan], search: PixelSearch, pool: Ints) -> Ints:
    """The few best of a pool, or of the window where that is empty."""
    index = np.full((len(pool), search.topk or MATCHES), -1, np.int64)
    value = np.full(index.shape, -np.inf, ground[0].dtype)
    aim = 2 * search.sigma**2 if search.select == "statistical" else 0.0
    pool = _check.frozen(pool, np.int64)
    tasks = blocks(len(index), kernels.BLOCK)
    kernels.choose(tasks, *ground, search.distance, pool, aim, index, value)
    return index


def rows(
    H: int, W: int, search: PixelSearch, chosen: Ints, *, inside: bool, above: int = 0
) -> tuple[Ints, Ints]:
    """Row pointers and keys of one picture, ascending, the pixel itself among them.

    With ``inside=False`` the keys of a window used as a whole are left out, and the pixel too; then
    the pixels may be some rows of a picture, so many below its first.
    """
    n = H * W
    y, x = np.divmod(np.arange(n) + above * W, W)
    parts = [chosen]
    reach = search.distance if search.dense else 0
    if inside:
        step = np.arange(-reach, reach + 1)
        cy, cx = y[:, None, None] + step[:, None], x[:, None, None] + step
        valid = (cy >= 0) & (cy < H) & (cx >= 0) & (cx < W)
        parts.append(np.where(valid, cy * W + cx, -1).reshape(n, -1))
    else:
        cy, cx = np.divmod(chosen, W)
        near = (abs(cy - y[:, None]) <= reach) & (abs(cx - x[:, None]) <= reach)
        parts = [np.where(near, -1, chosen)]
    table = np.sort(np.concatenate(parts, 1).astype(np.int32), axis=1)
    kept = table >= 0
    kept[:, 1:] &= table[:, 1:] != table[:, :-1]
    indptr = np.concatenate([[0], np.cumsum(kept.sum(1), dtype=np.int64)])
    return _check.frozen(indptr), _check.frozen(table[kept])


def joined(parts: list[tuple[Ints, Ints]], lead: tuple[int, ...], n: int) -> Support:
    """The supports of several pictures as one."""
    counts = np.concatenate([[0], *(np.diff(indptr) for indptr, _ in parts)])
    indices = np.concatenate([np.empty(0, np.int32), *(keys for _, keys in parts)])
    indptr = np.cumsum(counts, dtype=np.int64)
    return Support(_check.frozen(indptr), _check.frozen(indices, np.int32), (*lead, n, n))
