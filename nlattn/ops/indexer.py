"""The lightning indexer: scores of keys, the best of them, and the loss that it learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Nonfinite
from nlattn._types import Floats, Ints
from nlattn.engines import indexer as engine
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged

_SPEC = {"q": "n h d", "k": "m d", "w": "n h"}


def _fitted(
    op: str, arrays: Mapping[str, object], nonfinite: Nonfinite, max_bytes: float
) -> _check.Fit:
    specs = {**_SPEC, **{f"d{name}": spec for name, spec in _SPEC.items()}, "dscores": "n m"}
    given = {name: (x, specs[name]) for name, x in arrays.items()}
    fit = _check.fit(op, given, nonfinite=nonfinite)
    n, m = fit.shape("n m")
    needed = fit.batch * n * m * fit.dtype.itemsize
    _check.memory(op, needed, max_bytes, f"{n} x {m} {fit.dtype} scores", "split q")
    return fit


@ranged(laws.index)
def index_scores(
    q: Floats, k: Floats, w: Floats, *, nonfinite: Nonfinite = "raise", max_bytes: float = 4e9
) -> Floats:
    """Scores by which keys are chosen: ``sum_h w[i, h] relu(q[i, h] . k[j])``.

    Parameters
    ----------
    q, k, w : (..., n, h, d), (..., m, d), (..., n, h) arrays of one dtype
        Queries of every index head, keys that all heads share, and weights of heads.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.
    max_bytes : float
        MemoryError if the scores need more.

    Returns
    -------
    (..., n, m) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.

    Notes
    -----
    ``n m h d`` multiply-adds, ``O(n m)`` memory. Source: [deepseek2025, eq. 1]. Status: paper.

    Examples
    --------
    >>> heads, w = rng.normal(size=(64, 2, 8)), rng.normal(size=(64, 2))
    >>> table = nlattn.topk_keys(nlattn.index_scores(heads, k, w), 16, causal=True)
    """
    fit = _fitted("index_scores", {"q": q, "k": k, "w": w}, nonfinite, max_bytes)
    out = fit.empty("n m")
    for b, (i, j, of_w) in enumerate(fit.slices("q", "k", "w")):
        out[b] = engine.scores(fit["q"][i], fit["k"][j], fit["w"][of_w])
    return fit.unfold(out)


@ranged(laws.index)
def index_scores_vjp(
    q: Floats,
    k: Floats,
    w: Floats,
    dscores: Floats,
    *,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dw) of ``sum(dscores * scores)``; a product of 0 or less has none.

    Examples
    --------
    >>> heads, w = rng.normal(size=(64, 2, 8)), rng.normal(size=(64, 2))
    >>> dq, dk, dw = nlattn.index_scores_vjp(heads, k, w, np.ones((64, 64)))
    """
    arrays = {"q": q, "k": k, "w": w, "dscores": dscores}
    fit = _fitted("index_scores_vjp", arrays, nonfinite, max_bytes)
    dq, dk, dw = (fit.empty(spec) for spec in _SPEC.values())
    for b, (i, j, of_w, of_g) in enumerate(fit.slices("q", "k", "w", "dscores")):
        x = fit["q"][i], fit["k"][j], fit["w"][of_w], fit["dscores"][of_g]
        dq[b], dk[b], dw[b] = engine.scores_vjp(*x)
    return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("w", dw)


@ranged(laws.along(laws.index))
def index_scores_jvp(
    q: Floats,
    k: Floats,
    w: Floats,
    dq: Floats,
    dk: Floats,
    dw: Floats,
    *,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Change of `index_scores` along (dq, dk, dw); a product of 0 or less has none.

    Examples
    --------
    >>> heads, w = rng.normal(size=(64, 2, 8)), np.ones((64, 2))
    >>> change = nlattn.index_scores_jvp(heads, k, w, heads, 0 * k, 0 * w)
    """
    arrays = {"q": q, "k": k, "w": w, "dq": dq, "dk": dk, "dw": dw}
    fit = _fitted("index_scores_jvp", arrays, nonfinite, max_bytes)
    out = fit.empty("n m")
    for b, places in enumerate(fit.slices(*arrays)):
        out[b] = engine.scores_jvp(*(fit[n][i] for n, i in zip(arrays, places, strict=True)))
    return fit.unfold(out)


def topk_keys(
    scores: Floats,
    t: int,
    *,
    causal: bool = False,
    causal_offset: int = 0,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Ints:
    """The `t` keys of largest score of every query: a table as `support_from_index` takes it.

    Parameters
    ----------
    scores : (..., n, m) array
        -inf hides a key.
    t : int
        Width of the table, at least 1.
    causal, causal_offset : bool, int
        Key j is allowed for query i when ``j <= i + causal_offset``.
    nonfinite : {"raise", "propagate"}
        Whether NaN and inf are refused; "propagate" puts NaN last.
    max_bytes : float
        MemoryError if the table needs more.

    Returns
    -------
    (..., n, t) int32
        Keys, best first, equal scores by ascending key; -1 where fewer are allowed.

    Raises
    ------
    ValueError
        A score is NaN or inf, or `t` is below 1.
    TypeError
        `scores` is not floating.

    Notes
    -----
    ``n m log m`` comparisons: exact, the same keys every time.

    Examples
    --------
    >>> nlattn.topk_keys(np.array([[1.0, 3.0, 3.0]]), 2)
    array([[1, 2]], dtype=int32)
    """
    op = "topk_keys"
    x = _check.array(op, "scores", scores)
    if x.ndim < 2:
        _check.fail(op, "scores", f"has shape {x.shape}, expected (..., n, m)")
    t = _check.integer(op, "t", t, low=1, high=np.iinfo(np.int32).max)
    rows_of_t = math.prod(x.shape[:-1])
    _check.memory(op, 4 * t * rows_of_t, max_bytes, f"{rows_of_t} x {t} int32", "pass a smaller t")
    ahead = _check.flag(op, "causal", causal)
    offset = _check.integer(op, "causal_offset", causal_offset)
    if offset and not ahead:
        _check.fail(op, f"causal_offset={offset}", "has no meaning without causal=True")
    bad = np.isnan(x) | (x == np.inf)
    if _check.choice(op, "nonfinite", nonfinite, get_args(Nonfinite)) == "raise" and bad.any():
        where = _check.first_of(bad)
        text = f"is {x[tuple(where)]}, expected finite values or -inf"
        _check.fail(op, f"scores{where}", text)
    n, m = x.shape[-2:]
    ends = np.minimum(np.arange(n) + offset + 1, m) if ahead else np.full(n, m)
    rows = x.reshape(-1, m) if m else np.zeros((x[..., :1].size or int(np.prod(x.shape[:-1])), 0))
    rows = rows if rows.dtype.itemsize > 2 else rows.astype(np.float32)
    copies = len(rows) // n if n else 0
    found = engine.best(np.where(np.isnan(rows), -np.inf, rows), t, np.tile(ends, copies))
    return found.reshape(*x.shape[:-1], t)


@np.errstate(over="ignore")
def index_loss(scores: Floats, weights: Floats) -> Floats:
    """What an indexer learns from: ``KL(weights || softmax(scores))`` of every query.

    Parameters
    ----------
    scores, weights : (..., n, m) arrays of one dtype
        Of the indexer, -inf hiding a key; and the full weights, summed over heads and normalised.

    Returns
    -------
    (..., n) float64

    Notes
    -----
    Source: [deepseek2025], the dense warm-up. The gradient of the scores is `index_loss_vjp`.

    Examples
    --------
    >>> weights = nlattn.attention_map(q, k).to_dense()
    >>> bool(nlattn.index_loss(np.log(weights), weights).max() < 1e-12)
    True
    """
    s, p = _rows("index_loss", scores, weights)
    log_p = s - _log_sum(s)
    some = p > 0
    terms = np.where(some, p, 0) * (np.log(np.where(some, p, 1)) - np.where(some, log_p, 0))
    loss: Floats = terms.sum(-1)
    return loss


@np.errstate(over="ignore")
def index_loss_vjp(scores: Floats, weights: Floats, dloss: Floats) -> Floats:
    """Gradient of the scores: ``dloss (softmax(scores) sum(weights) - weights)``.

    Examples
    --------
    >>> weights = nlattn.attention_map(q, k).to_dense()
    >>> dscores = nlattn.index_loss_vjp(np.log(weights), weights, np.ones(64))
    >>> bool(np.abs(dscores).max() < 1e-12)
    True
    """
    op = "index_loss_vjp"
    s, p = _rows(op, scores, weights)
    g = _check.array(op, "dloss", dloss).astype(np.float64)
    if g.shape != s.shape[:-1]:
        text = f"has shape {g.shape}, expected {s.shape[:-1]}, a number for each query"
        _check.fail(op, "dloss", text)
    _check.finite(op, "dloss", g, remedy=False)
    gradient: Floats = g[..., None] * (_softmax(s) * p.sum(-1, keepdims=True) - p)
    return gradient.astype(_check.array(op, "scores", scores).dtype)


@np.errstate(over="ignore")
def index_loss_jvp(scores: Floats, weights: Floats, dscores: Floats) -> Floats:
    """Change (..., n) float64 of `index_loss` as the scores move along `dscores`.

    Examples
    --------
    >>> scores, weights = q @ k.T, np.full((64, 64), 1 / 64)
    >>> change = nlattn.index_loss_jvp(scores, weights, np.ones_like(scores))
    """
    s, p = _rows("index_loss_jvp", scores, weights)
    moved = _check.array("index_loss_jvp", "dscores", dscores)
    if moved.shape != s.shape:
        text = f"has shape {moved.shape}, expected {s.shape} as scores has"
        _check.fail("index_loss_jvp", "dscores", text)
    slope = _softmax(s) * p.sum(-1, keepdims=True) - p
    moved = np.where(np.isneginf(s), 0, moved.astype(np.float64))
    _check.finite("index_loss_jvp", "dscores", moved, remedy=False)
    change: Floats = (slope * moved).sum(-1)
    return change


def share_held(lse_set: Floats, lse: Floats) -> Floats:
    """Part of all weights that a set of keys holds: ``exp(lse_set - lse)``, (..., n) float64.

    The `lse` of `sparse_attention` over the set, and that of `attention` over all keys. A query
    that may attend to nothing has 0.

    Examples
    --------
    >>> nlattn.share_held(np.log([3.0]), np.log([4.0]))
    array([0.75])
    """
    op = "share_held"
    part, whole = (
        _check.array(op, name, x).astype(np.float64)
        for name, x in (("lse_set", lse_set), ("lse", lse))
    )
    if part.shape != whole.shape:
        _check.fail(op, "lse", f"has shape {whole.shape}, expected {part.shape} as lse_set has")
    none = np.isneginf(part)
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):
        share: Floats = np.where(none, 0, np.exp(np.where(none, 0, part - whole)))
    return share


def _rows(op: str, scores: object, weights: object) -> tuple[Floats, Floats]:
    s, p = _check.array(op, "scores", scores), _check.array(op, "weights", weights)
    _check.one_dtype(op, {"scores": s.dtype, "weights": p.dtype})
    if s.ndim < 2 or not s.shape[-1]:
        _check.fail(op, "scores", f"has shape {s.shape}, expected (n, m) and at least one key")
    if s.shape != p.shape:
        _check.fail(op, "weights", f"has shape {p.shape}, expected {s.shape} as scores has")
    for name, x, bad in (
        ("scores", s, np.isnan(s) | np.isposinf(s)),
        ("weights", p, np.isposinf(p)),
    ):
        if bad.any():
            where = _check.first_of(bad)
            expected = "finite values or -inf" if name == "scores" else "finite values"
            _check.fail(op, f"{name}{where}", f"is {x[tuple(where)]}, expected {expected}")
    lone = (np.isneginf(s) & (p > 0)) | (p < 0) | np.isnan(p)
    if lone.any():
        where = _check.first_of(lone)
        text = f"is {p[tuple(where)]}, expected at least 0, and 0 where a score is -inf"
        _check.fail(op, f"weights{where}", text)
    return s.astype(np.float64), p.astype(np.float64)


def _softmax(s: Floats) -> Floats:
    """Of each row; 0 where a score is -inf."""
    seen = ~np.isneginf(s)
    with np.errstate(invalid="ignore"):  # a row of these alone
        weights: Floats = np.where(seen, np.exp(np.where(seen, s - _log_sum(s), 0)), 0)
    return weights


def _log_sum(s: Floats) -> Floats:
    top = s.max(-1, keepdims=True)
    top = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore", under="ignore"):
        total: Floats = top + np.log(np.exp(s - top).sum(-1, keepdims=True))
    return total
