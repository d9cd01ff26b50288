"""The edges between queries and keys that a support leaves, and what is summed over them."""

from __future__ import annotations

import math
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import MaskedRows, Weight
from nlattn._types import Floats, Ints, Result, Support, Work
from nlattn.engines.support import Transposed, checked_support
from nlattn.kernels import sparse as kernels
from nlattn.runtime.jit import blocks

WEIGHTS: tuple[Weight, ...] = get_args(Weight)
MASKED_ROWS: tuple[MaskedRows, ...] = get_args(MaskedRows)
ARRAYS = ("q", "k", "v", "dout", "dlse")


class WeightFunction(NamedTuple):
    """Checked choice of a weight function."""

    weight: str
    factor: float
    """Of the score: scale, or ``1 / bandwidth^2``."""
    power: float
    masked_rows: str
    bias: Floats | None = None
    """Of each edge, (nnz,)."""
    sinks: Floats | None = None
    """Of each head, (batch,) float64."""
    cap: float = 0.0
    """Scores s become ``cap tanh(s / cap)``; 0 for none."""
    kept: Floats | None = None
    """What each edge's weight is multiplied by after the normaliser, (nnz,)."""

    @classmethod
    def checked(
        cls,
        fit: _check.Fit,
        weight: str = "softmax",
        scale: float | None = None,
        bandwidth: float = 1.0,
        power: float = 2.0,
        masked_rows: str = "zero",
        bias: Floats | None = None,
        sinks: Floats | None = None,
        softcap: float | None = None,
        kept: Floats | None = None,
    ) -> WeightFunction:
        """Raise for values outside their sets."""
        op = fit.op
        _check.choice(op, "weight", weight, WEIGHTS)
        _check.choice(op, "masked_rows", masked_rows, MASKED_ROWS)
        bandwidth = _check.number(op, "bandwidth", bandwidth, positive=True)
        power = _check.number(op, "power", power, positive=True)
        if weight == "gaussian" and scale is not None:
            text = "has no place in weight='gaussian'; use bandwidth"
            _check.fail(op, f"scale={scale}", text)
        cap = 0.0 if softcap is None else _check.number(op, "softcap", softcap, positive=True)
        if cap and weight != "softmax":
            _check.fail(op, "softcap", f"has no place in weight={weight!r}, expected 'softmax'")
        if weight == "gaussian":
            return cls(weight, bandwidth**-2, power, masked_rows, bias, sinks, 0.0, kept)
        factor = fit.dims["d"] ** -0.5 if scale is None else _check.number(op, "scale", scale)
        for name, given in (("bias", bias), ("sinks", sinks)):
            if given is not None and weight != "softmax":
                text = f"has no place in weight={weight!r}, expected 'softmax' or 'gaussian'"
                _check.fail(op, name, text)
        return cls(weight, factor, power, masked_rows, bias, sinks, cap, kept)

    @property
    def options(self) -> kernels.EdgeOptions:
        """As the kernels take them."""
        fill = np.nan if self.masked_rows == "nan" and self.sinks is None else 0.0
        bias, kept = (
            kernels.NONE if x is None else _check.frozen(x, np.float64)
            for x in (self.bias, self.kept)
        )
        rule = WEIGHTS.index(self.weight), self.factor, self.power, fill
        return kernels.EdgeOptions(*rule, bias, self.cap, kept)

    @property
    def slope(self) -> Floats:
        """Of a score to what it is of: a factor, and whether it is of a difference."""
        centred = self.weight == "gaussian"
        return _check.frozen(np.array([(2 if centred else 1) * self.factor, centred]))


def key_sums(coefficients: Floats, indptr: Ints, queries: Ints, x: Floats, factor: float) -> Floats:
    """``factor sum_i c_ij x_i`` for keys whose edges lie one after the other, queries ascending."""
    out: Floats = np.empty((len(indptr) - 1, x.shape[1]), x.dtype)
    none, table = _check.frozen(np.empty(0, np.int64)), _check.frozen(np.zeros((1, 4), np.int64))
    slope, tasks = _check.frozen(np.array([factor, 0.0])), blocks(len(out), kernels.BLOCK)
    rows = none, _check.frozen(indptr), _check.frozen(queries)
    given = _check.frozen(coefficients), *rows, x[None], x[None], table, slope
    kernels.gather(tasks, *given, out[None])
    return out


class SparseParts(NamedTuple):
    """What a sparse map is made of, for one head."""

    support: Support
    weights: Floats
    scores: Floats
    lse: Floats
    work: Work
    query_grid: tuple[int, ...]
    key_grid: tuple[int, ...]


class Edges:
    """One call's folded arrays on the edges of its support."""

    def __init__(self, fit: _check.Fit, support: object):
        self.fit, self.op = fit, fit.op
        self.query_grid, self.key_grid = fit["q"].shape[1:-1], fit["k"].shape[1:-1]
        self.n, self.m = math.prod(self.query_grid), math.prod(self.key_grid)
        checked = checked_support(self.op, support)
        *lead, n, m = checked.shape
        if (n, m) != (self.n, self.m):
            sizes = f"n={self.n} from q, m={self.m} from k"
            text = f"has shape {checked.shape}, expected (..., n, m) with {sizes}"
            _check.fail(self.op, "support", text)
        slices = _check.slices(self.op, "support", tuple(lead), fit.lead)
        self.support = checked
        self.slices = slices
        starts, ends = checked.indptr[slices * n], checked.indptr[slices * n + n]
        sizes_ = np.concatenate([[0], np.cumsum(ends - starts)])
        self.nnz = int(sizes_[-1])
        self.shift = sizes_[:-1] - starts

    def attend(self, weights: WeightFunction, return_lse: bool) -> Result:
        """Outputs of all heads, and the logarithms of their normalisers if asked for."""
        fit = self.fit
        out, lse = self._attended(weights)
        if weights.sinks is not None:
            kept, lse = _share(lse, weights.sinks[:, None])
            out *= kept[..., None].astype(out.dtype)
            if weights.masked_rows == "nan":
                out[np.isneginf(lse)] = np.nan
        self._refuse_empty(weights, lse)
        result = fit.unfold(out.reshape(fit.batch, *self.query_grid, out.shape[2]))
        if not return_lse:
            return result
        return result, fit.unfold(lse.reshape(fit.batch, *self.query_grid), cast=False)

    def _attended(self, weights: WeightFunction) -> tuple[Floats, Floats]:
        """Outputs and normalisers of the keys alone."""
        v = self._array("v")
        out, lse = self._empty(self.n, v.shape[2]), np.empty((self.fit.batch, self.n))
        arrays = self._array("q"), self._array("k"), v, *self.support[:2]
        table = self._table("q", "k", "v")
        kernels.attend(self._blocks(self.n), *arrays, table, weights.options, out, lse)
        return out, lse

    def entries(self, weights: WeightFunction, search: Work | None = None) -> SparseParts:
        """Weights of a single head's map; `search` is the work that found its support."""
        scores, P, lse = self._weigh(weights)
        P = self.dropped(weights, P)
        d, size = self.fit.dims["d"], self.fit.dtype.itemsize
        work = Work(
            self.nnz,
            self.nnz * d,
            (self.n + self.nnz) * d * size + self.nnz * (4 + 2 * size) + 16 * self.n,
            np.diff(self.support.indptr),
        )
        if search is not None and search.per_query is not None:
            per_query = search.per_query.reshape(-1) + np.diff(self.support.indptr)
            work = Work(
                search.scores + work.scores,
                search.multiply_adds + work.multiply_adds,
                search.bytes + work.bytes,
                per_query,
                search.changed,
            )
        return SparseParts(
            self.support, P, scores, lse.reshape(-1), work, self.query_grid, self.key_grid
        )

    def vjp(self, weights: WeightFunction, with_dlse: bool) -> tuple[Floats, ...]:
        """Gradients of q, k and v; of the bias of edges and of each head's sink, if there are."""
        q, k, v, dout = (self._array(name) for name in ARRAYS[:4])
        dlse = self._dlse(with_dlse)
        P, dscores, biased = self._slopes(weights, with_dlse)
        by_key = Transposed.of(self.support, self.m)
        slope, plain = weights.slope, _check.frozen(np.array([1.0, 0.0]))
        dk, dv = self._empty(self.m, q.shape[2]), self._empty(self.m, v.shape[2])
        keys, dq = self._blocks(self.m), self.query_sums(weights, dscores)
        kernels.gather(keys, dscores, *by_key, q, k, self._table("q", "k"), slope, dk)
        kernels.gather(keys, P, *by_key, dout, v, self._table("dout", "v"), plain, dv)
        gradients = [self._reduced("q", dq), self._reduced("k", dk), self._reduced("v", dv)]
        if weights.bias is not None:
            gradients.append(self._of_edges(biased))
        if weights.sinks is not None:
            gradients.append(self._of_sinks(weights, dout, dlse))
        return tuple(gradients)

    def slopes(self, weights: WeightFunction, with_dlse: bool) -> tuple[Floats, Floats]:
        """Weights of all edges as they count, and the cotangents of their scores before a cap."""
        return self._slopes(weights, with_dlse)[:2]

    def _slopes(self, weights: WeightFunction, with_dlse: bool) -> tuple[Floats, Floats, Floats]:
        """The same, and the cotangents of what a bias is added to."""
        v, dout = self._array("v"), self._array("dout")
        scores, P, _ = self._weigh(weights)
        dscores = np.empty_like(P)
        arrays = v, dout, self._dlse(with_dlse), *self.support[:2], self._table("q", "k", "v")
        scores, P = _check.frozen(scores), _check.frozen(P)
        kernels.differentiate(self._blocks(self.n), *arrays, weights.options, scores, P, dscores)
        uncapped = self._uncapped(weights, scores, dscores)
        return _check.frozen(self.dropped(weights, P)), _check.frozen(uncapped), dscores

    def query_sums(self, weights: WeightFunction, dscores: Floats) -> Floats:
        """Gradients of queries (batch, n, d) from cotangents of scores."""
        q, k = self._array("q"), self._array("k")
        dq, none = self._empty(self.n, q.shape[2]), _check.frozen(np.empty(0, np.int64))
        arrays = none, *self.support[:2], k, q, self._table("k", "q"), weights.slope
        kernels.gather(self._blocks(self.n), dscores, *arrays, dq)
        return dq

    def _dlse(self, given: bool) -> Floats:
        dlse = np.zeros((self.fit.batch, self.n), self.fit.dtype)
        if given:
            dlse = self.fit["dlse"].reshape(dlse.shape)
        return _check.frozen(dlse)

    def dropped(self, weights: WeightFunction, P: Floats) -> Floats:
        """Weights (B nnz) as they count in the output."""
        if weights.kept is None:
            return P
        kept = self._of_heads(weights.kept)
        return np.where(kept == 0, 0, P * kept).astype(P.dtype)

    def _of_heads(self, x: Floats) -> Floats:
        """A number for each edge of the support as one for each edge of each head, (B nnz)."""
        starts, n = self.support.indptr, self.n
        parts = [x[starts[part * n] : starts[part * n + n]] for part in self.slices]
        return np.concatenate([np.empty(0, x.dtype), *parts])

    def _uncapped(self, weights: WeightFunction, scores: Floats, dscores: Floats) -> Floats:
        """Cotangents of scores before their cap."""
        if not weights.cap:
            return dscores
        with np.errstate(invalid="ignore"):  # a bias of -inf
            capped = scores if weights.bias is None else scores - self._of_heads(weights.bias)
        slope = np.where(dscores == 0, 0, 1 - (capped / weights.cap) ** 2)
        return (dscores * slope).astype(dscores.dtype)

    def _of_edges(self, dscores: Floats) -> Floats:
        """Sum over the heads that share the support, (nnz,)."""
        total: Floats = np.zeros(len(self.support.indices), self.fit.dtype)
        n, starts = self.n, self.support.indptr
        for part, shift in zip(self.slices, self.shift, strict=True):
            first, last = starts[part * n], starts[part * n + n]
            total[first:last] += dscores[first + shift : last + shift]
        return total.astype(self.fit.out_dtype, copy=False)

    def _of_sinks(self, weights: WeightFunction, dout: Floats, dlse: Floats) -> Floats:
        """Sum over queries, (batch,): ``p_sink (dlse - dout . out)``."""
        assert weights.sinks is not None
        out, lse = self._attended(weights)
        kept, _ = _share(lse, weights.sinks[:, None])
        mean = kept * np.einsum("bne,bne->bn", out, dout, dtype=np.float64)
        taken, _ = _share(weights.sinks[:, None], lse)
        total: Floats = (taken * (dlse - mean)).sum(1)
        return total

    def _weigh(self, weights: WeightFunction) -> tuple[Floats, Floats, Floats]:
        scores, P = np.empty(self.nnz, self.fit.dtype), np.empty(self.nnz, self.fit.dtype)
        lse: Floats = np.empty((self.fit.batch, self.n))
        arrays = self._array("q"), self._array("k"), *self.support[:2], self._table("q", "k", "k")
        kernels.weigh(self._blocks(self.n), *arrays, weights.options, scores, P, lse)
        if weights.sinks is not None:
            kept, lse = _share(lse, weights.sinks[:, None])
            rows = self._sizes()
            P *= np.repeat(kept.reshape(-1), rows).astype(P.dtype)
        self._refuse_empty(weights, lse)
        return scores, P, lse

    def _sizes(self) -> Ints:
        """Number of keys of every row of all heads."""
        sizes = np.diff(self.support.indptr).reshape(math.prod(self.support.shape[:-2]), self.n)
        rows: Ints = sizes[self.slices].reshape(-1)
        return rows

    def _blocks(self, rows: int) -> int:
        """Tasks of kernels over `rows` queries or keys of each head."""
        return blocks(self.fit.batch * rows, kernels.BLOCK)

    def _array(self, name: str) -> Floats:
        folded = self.fit[name]
        return folded.reshape(len(folded), math.prod(folded.shape[1:-1]), folded.shape[-1])

    def _reduced(self, name: str, gradient: Floats) -> Floats:
        grid = self.query_grid if name == "q" else self.key_grid
        return self.fit.reduce(name, gradient.reshape(self.fit.batch, *grid, gradient.shape[2]))

    def _empty(self, rows: int, channels: int) -> Floats:
        return np.empty((self.fit.batch, rows, channels), self.fit.dtype)

    def _table(self, *names: str) -> Ints:
        """Slices of the named arrays, of the support, and the shift of the coefficients."""
        columns = [self.fit.index[:, ARRAYS.index(name)] for name in names]
        return _check.frozen(np.stack([*columns, self.slices, self.shift], 1), np.int64)

    def _refuse_empty(self, weights: WeightFunction, lse: Floats) -> None:
        if weights.masked_rows == "raise" and np.isneginf(lse).any():
            shape = (*self.fit.lead, *self.query_grid)
            first = np.unravel_index(int(np.isneginf(lse).argmax()), shape)
            _check.fail(
                self.op,
                f"query {[int(i) for i in first]}",
                "has no key with a weight; masked_rows='zero' or 'nan' lets it pass",
            )


def _share(own: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Share that parts of normaliser `own` have beside others, and the logarithm of the sum."""
    both = np.logaddexp(own, other)
    with np.errstate(invalid="ignore", under="ignore"):
        share = np.where(np.isneginf(own), 0, np.exp(own - both))
    return share, both
