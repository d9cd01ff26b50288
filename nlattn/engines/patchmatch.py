"""One search for matches: features as kernels read them, candidates of either kind, the field."""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, Propagate, Score
from nlattn._types import Bools, Field, Floats, Ints, Work
from nlattn.engines import nearest, random_search, tree_search
from nlattn.engines.random_search import Progress
from nlattn.engines.scores import SCORES, vectors
from nlattn.kernels import exact
from nlattn.kernels import patchmatch as kernels
from nlattn.kernels.matching import SAME, SHIFT, TILE, Plan

CANDIDATES: tuple[Candidates, ...] = get_args(Candidates)
PROPAGATE: dict[Propagate, int] = {"same": SAME, "shift": SHIFT, "both": SAME | SHIFT}
JUMPS = (8, 4, 2, 1)
_LINE = 64  # bytes of a cache line


class SearchOptions(NamedTuple):
    """Checked options of a search."""

    topk: int = 1
    score: Score = "dot"
    factor: float = 1.0
    """Of the score: scale, or ``1 / bandwidth^2``."""
    patch: int = 1
    candidates: str = "random"
    iterations: int | None = None
    """5 if None, 1 with trees."""
    propagate: Propagate = "both"
    jumps: tuple[int, ...] = JUMPS
    trees: int = 4
    identity: bool = True
    seed: int = 0
    causal: bool = False
    whole: bool = False
    """Whether every key is tried."""
    proved: bool = False
    """Whether bounds say which keys need not be tried."""
    stop_count: int | None = None
    patience: int = 1
    first_slice: int = 0

    @property
    def rounds(self) -> int:
        """Iterations, by default one with trees."""
        if self.iterations is None:
            return 1 if self.candidates == "tree" else 5
        return self.iterations

    @property
    def signed_seed(self) -> int:
        """The seed's 64 bits as a signed integer."""
        return self.seed - 2**64 if self.seed >= 2**63 else self.seed

    def plan(self, fit: _check.Fit) -> Plan:
        """What kernels read."""
        Hq, Wq, Hk, Wk, d = fit.shape("Hq Wq Hk Wk d")
        return Plan(
            Hq,
            Wq,
            Hk,
            Wk,
            d,
            self.patch,
            SCORES[self.score],
            self.factor,
            PROPAGATE[self.propagate],
            int(self.causal),
            self.signed_seed,
            self.first_slice,
        )


class Masks(NamedTuple):
    """Keys that may be matched, and the slice of each mask that belongs to each slice."""

    key_mask: Bools
    """(parts, Hk Wk), or empty rows for no mask."""
    mask: Bools
    """(parts, Hq Wq, Hk Wk), or empty ones."""
    slices: Ints
    """(batch, 2)"""

    @classmethod
    def none(cls, batch: int) -> Masks:
        """Every key may be matched."""
        some, pairs = np.empty((1, 0), bool), np.empty((1, 0, 0), bool)
        return cls(_check.frozen(some), _check.frozen(pairs), np.zeros((batch, 2), np.int64))


def search(
    fit: _check.Fit, options: SearchOptions, masks: Masks, progress: Progress, max_bytes: float
) -> Field:
    """Best keys of every query of ``fit["q"]`` among those of ``fit["k"]``."""
    plan, topk, by_trees = options.plan(fit), options.topk, options.candidates == "tree"
    n, m, size = plan.Hq * plan.Wq, plan.Hk * plan.Wk, fit.dtype.itemsize
    needed = fit.batch * n * ((2 * (4 + size) + 8 + size) * topk + 8)
    if by_trees:
        needed += tree_search.nbytes(n, m, options.trees, topk, size)
    _check.memory(fit.op, needed, max_bytes, f"{topk} matches of {fit.batch * n} queries", "tile q")

    table = np.concatenate([fit.slices("q", "k"), masks.slices], axis=1, dtype=np.int64)
    q, k = (features(fit[name], options.score, options.patch) for name in "qk")
    inputs = (q, k, _check.frozen(table), masks.key_mask, masks.mask)
    index = np.full((2, fit.batch, n, topk), -1, np.int32)
    value = np.full(index.shape, -np.inf, fit.dtype)
    tested = np.zeros((fit.batch, n), np.int64)
    state = (index, value, tested)
    side = 0
    changed: list[int] = []
    if options.proved:
        for b, row in enumerate(table):
            masked = masks.key_mask[row[2]], masks.mask[row[3]]
            lists = index[0, b], value[0, b]
            counts, _ = nearest.search(q[row[0]], k[row[1]], *masked, None, plan, *lists)
            tested[b] = counts[:, 0] + counts[:, 1]
    elif options.whole:
        runs = fit.batch * -(-n // TILE)
        for some in random_search.calls(runs, TILE * m):
            exact.scan(some, *inputs, plan, *state)
            random_search.tell(progress, some.stop, runs)
    elif fit.batch:
        blocks = fit.batch * -(-n // TILE)
        valid = _valid(masks.key_mask, m, options.identity)
        kernels.begin(blocks, *inputs, valid, plan, *state)
        calm = random_search.Calm(options.stop_count, options.patience, changed)
        rounds, trees = options.rounds, options.trees
        if by_trees:
            side = tree_search.search(inputs, plan, trees, rounds, progress, calm, state)
        else:
            jumps = options.jumps
            side = random_search.search(inputs, plan, jumps, rounds, progress, calm, state)
    total = int(tested.sum())
    terms = total * options.patch**2 * plan.d
    grid = (fit.batch, plan.Hq, plan.Wq)
    per_query = fit.unfold(tested.reshape(grid), cast=False)
    work = Work(total, terms, 2 * terms * size, per_query, np.array(changed, np.int64))
    matches = fit.unfold(index[side].astype(np.int64).reshape(*grid, topk), cast=False)
    best = fit.unfold(value[side].reshape(*grid, topk), cast=False)
    return Field(matches, best, work, (plan.Hk, plan.Wk))


def features(x: Floats, score: str, patch: int) -> Floats:
    """Features as the kernels read them: as the score takes them, padded for patches."""
    x = vectors(x, score)
    if patch > 1:
        around = (patch // 2, patch // 2)
        x = np.pad(x, ((0, 0), around, around, (0, 0)), mode="reflect")
    return _on_lines(x.reshape(len(x), math.prod(x.shape[1:])), x.shape[-1])


def _on_lines(x: Floats, d: int) -> Floats:
    """Copy features that would straddle cache lines for no reason but where the array begins."""
    if d * x.itemsize % _LINE == 0 and x.ctypes.data % _LINE:
        buffer = np.empty(x.nbytes + _LINE, np.uint8)
        skip = -buffer.ctypes.data % _LINE
        x, given = buffer[skip : skip + x.nbytes].view(x.dtype).reshape(x.shape), x
        x[...] = given
    return _check.frozen(x)


def _valid(key_mask: Bools, m: int, identity: bool) -> Ints:
    """Per key mask: whether the own place is tried, how many keys are valid, and which."""
    valid = np.zeros((len(key_mask), 2 + m), np.int32)
    valid[:, 0] = identity
    for row, mask in zip(valid, key_mask, strict=True):
        keys = np.flatnonzero(mask) if mask.size else np.arange(m)
        row[1] = len(keys)
        row[2 : 2 + len(keys)] = keys
    return _check.frozen(valid)
