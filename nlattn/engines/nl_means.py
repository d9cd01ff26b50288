"""One call of non-local means: what is compared with what, the weights, the means, the gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import SelfWeight
from nlattn._types import Floats, Ints, Support
from nlattn.engines.patches import ballots, padded, patches, patches_vjp, tallied
from nlattn.engines.similar import PixelSearch, flat, keys, others, plan, rows
from nlattn.engines.sparse import WEIGHTS
from nlattn.engines.support import Transposed
from nlattn.kernels import shifts, shifts_jvp, similar
from nlattn.kernels import sparse as edges
from nlattn.kernels.matching import Plan
from nlattn.kernels.panel import groups
from nlattn.runtime.jit import blocks

SELF: tuple[SelfWeight, ...] = get_args(SelfWeight)
BANDWIDTH = 0.6
"""Of sigma: the best of several tried on the built-in photograph with noise of 10 and 25 of 255."""
_SHIFT_COST = 30  # operations per pixel and shift


class WholePicture(NamedTuple):
    """The whole of which a picture is some rows: its pixels are compared with any."""

    flat: Floats
    """Pixels of the whole, padded."""
    rows: int
    above: int
    """Rows of the whole above these."""
    matches: Ints
    """(n, topk) of these."""


class PictureMeans(NamedTuple):
    """Pictures, their support, and their weights, checked."""

    fit: _check.Fit
    """``image``, and ``dout`` for a gradient."""
    H: int
    W: int
    C: int
    search: PixelSearch
    sigma: float
    """In the unit of the image."""
    h: float
    own: str
    """What a pixel weighs itself."""
    max_bytes: float
    support: Support | None
    slices: Ints
    """(batch,) of the support, if it is given."""
    beyond: WholePicture | None = None

    @property
    def op(self) -> str:
        """Whose call it is."""
        return self.fit.op

    @property
    def n(self) -> int:
        """Pixels."""
        return self.H * self.W

    def ground(self, b: int) -> tuple[Floats, Plan]:
        """What keys are pixels of, as the kernels read it."""
        u, patch = self.fit["image"][b], self.search.patch
        if self.beyond is None:
            return flat(u, patch), plan(u, patch)
        whole, above = self.beyond.flat, self.beyond.above * self.W
        place = plan(u, patch)._replace(Hk=self.beyond.rows, above=above, rows=self.beyond.rows)
        return whole, place

    def options(self, terms: float) -> Floats:
        """Twice the variance and 1 over the squared bandwidth, of sums of so many terms."""
        most = float(np.finfo(self.fit.dtype).max)
        steep = min(1 / (self.h**2 * terms), most) if self.h**2 > 0 else most
        return np.array([2 * self.sigma**2 * terms, steep, 0.0])

    def edges(self, b: int, *, inside: bool) -> tuple[Ints, Ints]:
        """Row pointers and keys of one picture; `inside` includes those of a whole window."""
        if self.beyond is not None:
            chosen = others(self.ground(b), self.search, self.beyond.matches)
            above = self.beyond.above
            return rows(self.H, self.W, self.search, chosen, inside=False, above=above)
        if self.support is None:
            u = self.fit["image"][b]
            if inside and self.search.dense:
                span = 2 * self.search.distance + 1
                needed = self.n * span**2 * 16
                what = f"the {span} x {span} windows of {self.n} pixels"
                _check.memory(self.op, needed, self.max_bytes, what, "use a smaller window")
            chosen = keys(self.op, u, self.search, self.max_bytes)
            return rows(self.H, self.W, self.search, chosen, inside=inside)
        start = self.slices[b] * self.n
        indptr = self.support.indptr[start : start + self.n + 1]
        indices = _check.frozen(self.support.indices[indptr[0] : indptr[-1]])
        return _check.frozen(indptr - indptr[0]), indices

    def weigh(
        self, b: int, indptr: Ints, indices: Ints, total: Floats, top: Floats
    ) -> tuple[Floats, Ints]:
        """Scores of the edges, and the place of each pixel's best."""
        scores = np.empty(len(indices), self.fit["image"].dtype)
        best, options = np.empty(self.n, np.int64), _check.frozen(self.options(1))
        arrays = *self.ground(b), indptr, indices, options
        similar.weigh(blocks(self.n, similar.BLOCK), *arrays, scores, total, top, best)
        return scores, best

    def settle(self, total: Floats, top: Floats) -> tuple[Floats, Floats]:
        """Weight of each pixel itself, and sum of weights with it."""
        own = top if self.own == "max" else np.full_like(top, self.own == "one")
        least = 16 * np.finfo(total.dtype).tiny  # below, weights have lost their digits
        own = np.where(total + own < least, 1, own).astype(total.dtype)
        return own, total + own


def denoise(call: PictureMeans, b: int, voting: bool, out: Floats) -> None:
    """One picture: sums of weights over window and edges, then the means over both."""
    u, patch, search = call.fit["image"][b], call.search.patch, call.search
    planes = _check.frozen(padded(u, patch).transpose(2, 0, 1))
    distance = search.distance if search.dense and call.support is None else 0
    options = call.options(patch * patch * call.C)
    options[2] = voting
    options = _check.frozen(options)
    total = np.empty((call.H, call.W), u.dtype)
    top = np.empty_like(total)
    for some in _tiles(call, distance):
        shifts.normalise(some, planes, patch, distance, options, total, top)
    sparse = call.support is not None or search.kind != "window" or search.topk is not None
    if sparse:
        indptr, indices = call.edges(b, inside=False)
        flat_total, flat_top = total.reshape(-1), top.reshape(-1)
        scores, _ = call.weigh(b, indptr, indices, flat_total, flat_top)
    own, total = call.settle(total, top)
    inverse = 1 / total
    for some in _tiles(call, distance):
        shifts.average(some, planes, patch, distance, options, inverse, own, out)
    if sparse:
        weights = _check.frozen(np.exp(scores))
        arrays = *call.ground(b), indptr, indices, weights
        result = out.reshape(call.n, call.C)
        flat_inverse = _check.frozen(inverse.reshape(-1))
        tasks = blocks(call.n, similar.BLOCK)
        similar.average(tasks, *arrays, flat_inverse, int(voting), result)


def _tiles(call: PictureMeans, distance: int) -> Iterator[range]:
    cost = shifts.TILE * call.W * (2 * distance + 1) ** 2 * _SHIFT_COST
    return groups(-(-call.H // shifts.TILE), cost)


def weights(call: PictureMeans, b: int) -> tuple[Ints, Ints, Floats, Floats, Floats, Ints]:
    """Edges with the pixel itself, scores, normalised weights, normalisers, best other edges."""
    indptr, indices = call.edges(b, inside=True)
    if call.support is not None:  # the pixel itself always has a say
        table = Support(indptr, indices, (call.n, call.n))
        indptr, indices = _with_self(table)
    total, top = np.zeros(call.n, call.fit.dtype), np.zeros(call.n, call.fit.dtype)
    scores, best = call.weigh(b, indptr, indices, total, top)
    own, total = call.settle(total, top)
    row = np.repeat(np.arange(call.n), np.diff(indptr))
    with np.errstate(divide="ignore"):
        scores[indices == row] = np.log(own)
    P = np.exp(scores) / total[row]
    return indptr, indices, scores, P, total, best


def _with_self(support: Support) -> tuple[Ints, Ints]:
    """Rows with their own number among their keys."""
    n = support.shape[0]
    row = np.repeat(np.arange(n), np.diff(support.indptr))
    both = np.unique(np.concatenate([row * n + support.indices, np.arange(n) * (n + 1)]))
    counts = np.bincount(both // n, minlength=n)
    indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return _check.frozen(indptr), _check.frozen(both % n, np.int32)


def vjp(call: PictureMeans, b: int, voting: bool) -> Floats:
    """Gradient of one picture, from its cotangent; keys are constants."""
    u, dout, patch = call.fit["image"][b], call.fit["dout"][b], call.search.patch
    indptr, indices, scores, P, _, best = weights(call, b)
    F = _check.frozen(patches(u, patch)[None])
    V = F if voting else _check.frozen(u.reshape(1, call.n, call.C))
    dB = _check.frozen((ballots(dout, patch) if voting else dout.reshape(call.n, call.C))[None])
    softmax = edges.EdgeOptions(WEIGHTS.index("softmax"), 1.0, 0.0, 0.0)
    slices = np.zeros((1, 5), np.int64)
    dscores = np.empty_like(P)
    P, known = _check.frozen(P), _check.frozen(scores)
    zero = _check.frozen(np.zeros((1, call.n), u.dtype))
    arrays = V, dB, zero, indptr, indices, _check.frozen(slices), softmax
    tasks = blocks(call.n, edges.BLOCK)
    edges.differentiate(tasks, *arrays, known, P, dscores)

    itself = indices == np.repeat(np.arange(call.n), np.diff(indptr))
    if call.own == "max":
        shared = (best >= 0) & (P[itself] > 0) & (scores[np.maximum(best, 0)] > -np.inf)
        dscores[best[shared]] += dscores[itself][shared]
    dscores[itself | (scores == 0)] = 0  # below twice the variance all distances count the same
    size = patch * patch * call.C
    factor = 2 * min(float(call.options(size)[1]), float(np.finfo(np.float64).max) / 4)
    slope, plain = (_check.frozen(np.array(x)) for x in ([factor, 1.0], [1.0, 0.0]))
    none, slices = _check.frozen(np.empty(0, np.int64)), _check.frozen(slices[:, :4])
    by_key = Transposed.of(Support(indptr, indices, (call.n, call.n)), call.n)
    dF, dK, dV = (np.empty(x.shape, u.dtype) for x in (F, F, V))
    dscores = _check.frozen(dscores)
    edges.gather(tasks, dscores, none, indptr, indices, F, F, slices, slope, dF)
    edges.gather(tasks, dscores, *by_key, F, F, slices, slope, dK)
    edges.gather(tasks, P, *by_key, dB, V, slices, plain, dV)
    dF += dK
    if voting:
        dF += dV
    du = patches_vjp(dF[0], u.shape, patch)
    return du if voting else du + dV[0].reshape(u.shape)


def jvp(call: PictureMeans, b: int, voting: bool) -> Floats:
    """Change of one picture along `dimage`; keys are constants."""
    search = call.search
    if call.support is None and search.kind == "window" and search.topk is None:
        return _jvp_of_window(call, b, voting)
    return _jvp_of_lists(call, b, voting)


@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
def _jvp_of_window(call: PictureMeans, b: int, voting: bool) -> Floats:
    """All keys of a window: as `denoise` goes, twice as wide."""
    u, patch, distance = call.fit["image"][b], call.search.patch, call.search.distance
    pictures = (padded(x, patch).transpose(2, 0, 1) for x in (u, call.fit["dimage"][b]))
    planes, moved = (_check.frozen(x) for x in pictures)
    options = call.options(patch * patch * call.C)
    options[2] = voting
    options = _check.frozen(options)
    norms: Floats = np.empty((shifts_jvp.NORMS, call.H, call.W), u.dtype)
    for some in _tiles(call, distance):
        shifts_jvp.normalise(some, planes, moved, patch, distance, options, norms)
    own, total = call.settle(norms[0], norms[1])
    shared = (call.own == "max") & (norms[1] > 0) & (own == norms[1])
    norms[2] = np.where(shared, norms[2], 0)
    norms[3] = (norms[3] + own * norms[2]) / total
    norms[0], norms[1] = 1 / total, own
    norms = _check.frozen(norms)
    out: Floats = np.empty_like(u)
    for some in _tiles(call, distance):
        shifts_jvp.average(some, planes, moved, patch, distance, options, norms, out)
    return out


@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
def _jvp_of_lists(call: PictureMeans, b: int, voting: bool) -> Floats:
    """Keys of each pixel in lists."""
    u, du, patch = call.fit["image"][b], call.fit["dimage"][b], call.search.patch
    indptr, indices, scores, P, _, best = weights(call, b)
    F, dF = (_check.frozen(patches(x, patch)[None]) for x in (u, du))
    V, dV = (F, dF) if voting else (_check.frozen(x.reshape(1, call.n, -1)) for x in (u, du))
    tasks, none = blocks(call.n, edges.BLOCK), _check.frozen(np.empty(0, u.dtype))
    factor = min(float(call.options(F.shape[2])[1]), float(np.finfo(np.float64).max) / 4)
    options = edges.EdgeOptions(WEIGHTS.index("gaussian"), factor, 0.0, 0.0)
    x = edges.Moving(F, F, dF, dF, _check.frozen(np.zeros((1, 6), np.int64)))
    ds, unused = np.empty(len(indices), u.dtype), np.zeros((1, call.n))
    edges.move(tasks, x, indptr, indices, options, none, none, unused, ds)

    row = np.repeat(np.arange(call.n), np.diff(indptr))
    itself = indices == row
    ds[scores == 0] = 0  # below twice the variance all distances count the same
    ds[P == 0] = 0  # what has no weight may have an infinite slope
    own = np.zeros(call.n, u.dtype)
    if call.own == "max":
        shared = (best >= 0) & (P[itself] > 0) & (scores[np.maximum(best, 0)] > -np.inf)
        own[shared] = ds[best[shared]]
    ds[itself] = own
    mean = np.bincount(row, P.astype(float) * ds, minlength=call.n)
    dP = _check.frozen((P * (ds - mean[row])).astype(u.dtype))
    slices, plain = np.zeros((1, 4), np.int64), _check.frozen(np.array([1.0, 0.0]))
    keys, moved, more = _check.frozen(np.empty(0, np.int64)), np.empty_like(V), np.empty_like(V)
    for c, y, out in ((dP, V, moved), (_check.frozen(P), dV, more)):
        edges.gather(tasks, c, keys, indptr, indices, y, y, _check.frozen(slices), plain, out)
    moved += more
    return tallied(moved[0], u.shape, patch) if voting else moved[0].reshape(u.shape)
