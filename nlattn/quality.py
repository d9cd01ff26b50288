"""How well one attention map stands for another: recall, mass, distances, output error."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Array, Floats, Ints
from nlattn.engines.draws import hashes
from nlattn.engines.estimates import Estimate, mean, proportion, ratio
from nlattn.maps.base import AttentionMap
from nlattn.maps.certified import CertifiedMap

_TAG = 0x51A11CE5  # keeps these draws apart from every search's
_MORE_THAN_ALL = 1.05  # of all keys' weight: rounding of scores and sums stays far below
_BLOCK_BYTES = 1 << 24  # of one (rows, m) float64 array; about eight are alive at a time


LEVELS = (0.5, 0.9, 0.95, 0.99)
"""Shares of exact attention by which queries are counted."""


class Quality(NamedTuple):
    """What `compare` found; P is the exact row, S the keys that the other map gives weight to."""

    rows: int
    """Queries compared, out of `of`, less those that may attend to nothing."""
    of: int
    support: float
    """Mean number of keys in S."""
    recall: Estimate
    """Share of queries whose strongest key is an exact strongest key; equal scores count."""
    recall_k: Estimate
    """Mean share of the exact `k` strongest keys that S holds; equal scores count."""
    k: int
    gap: Estimate
    """(best exact score - exact score of the strongest key) / deviation of the exact scores."""
    gap_p95: float
    mass: Estimate
    """Mean of P(S), the exact attention that S captures."""
    mass_p5: float
    mass_best: float
    """Mean of P over the ``|S|`` best keys: no support of that size captures more."""
    mass_random: float
    """Mean of ``|S| / m``: what random keys would capture."""
    tv: Estimate
    """Total variation, half the sum of absolute differences; 1 - P(S) for a restricted P."""
    kl: Estimate
    """``sum Q log(Q / P)`` for the other map's row Q; -log P(S) for a restricted P."""
    effective: float
    """Median of 1 / sum P^2: over how many keys exact attention spreads."""
    output: Estimate | None
    """Norm of the difference of outputs, over that of the exact output."""
    output_max: float | None
    mass_above: tuple[float, ...]
    """Shares of queries of whose exact attention S holds more than each of `LEVELS`."""

    def __repr__(self) -> str:
        error = "" if self.output is None else f", output error {self.output.value:.3g}"
        return (
            f"Quality({self.rows} of {self.of} queries: recall {self.recall.value:.3g}, mass "
            f"{self.mass.value:.3g} of at most {self.mass_best:.3g} in {self.support:.1f} keys"
            f"{error})"
        )

    def _repr_html_(self) -> str:
        rows = []
        for name, x in self._asdict().items():
            shown = f"{x.value:.4g} ({x.low:.4g} to {x.high:.4g})" if isinstance(x, Estimate) else x
            rows.append(f"<tr><th>{name}</th><td>{shown}</td></tr>")
        return f"<table>{''.join(rows)}</table>"

    @property
    def flat(self) -> bool:
        """Whether even the best ``|S|`` keys capture little: attention is not peaked."""
        return self.mass_best < max(0.05, 2 * self.mass_random)


def compare(
    A: AttentionMap,
    B: AttentionMap | Floats,
    v: Floats | None = None,
    *,
    rows: int | Ints = 256,
    seed: int = 0,
    k: int = 8,
) -> Quality:
    """Compare map `A` with exact attention `B` on some queries, chosen without replacement.

    Parameters
    ----------
    A : AttentionMap, (n, m)
        The map to judge.
    B : AttentionMap or array of weights, (n, m)
        The reference; from an array, scores are the logarithms of weights.
    v : (m, e) array, optional
        Values, for the output error.
    rows : int or sequence of int
        How many queries to compare: those of the smallest keyed hashes; or which ones, taken for a
        random sample. All, and exactly, if there are no more; else finite-population errors.
    seed : int
        Chooses the queries.
    k : int
        Size of the best set in `recall_k`; all m keys if there are fewer.

    Notes
    -----
    Scores are equal when they differ by what rounding can do: by four spacings of the largest, in
    the coarser of the two maps' dtypes. A query whose exact row is empty is left out.
    A few rows of m numbers are held at a time. Formulas: docs/numerics.md.

    Examples
    --------
    >>> near = nlattn.lev_attention_map(q, k, keys=32)
    >>> found = nlattn.compare(near, nlattn.attention_map(q, k), v)
    >>> bool(0.5 < found.mass.value < 1)
    True
    """
    op = "compare"
    swapped = "; it is B that may be an array" if isinstance(B, AttentionMap) else ""
    _check.instance(op, "A", A, AttentionMap, f"the map to judge{swapped}")
    shape = np.shape(B)
    if A.shape != shape:
        turned = "; its rows are keys" if shape == A.shape[::-1] else ""
        _check.fail(op, "B", f"has shape {shape}, expected {A.shape} from A{turned}")
    if 0 in shape:
        _check.fail(op, "A", f"has shape {shape}, expected some queries and keys")
    if not isinstance(B, AttentionMap):
        B = _check.array(op, "B", B)
    values = None if v is None else _values(op, v, shape)
    k = min(_check.integer(op, "k", k, low=1), shape[1])
    if np.ndim(rows):
        chosen = _chosen(op, _check.integers(op, "rows", rows), shape[0])
    else:
        count = _check.integer(op, "rows", rows, low=1)
        chosen = sample(shape[0], count, _check.integer(op, "seed", seed, low=0, high=2**63 - 1))
    step = max(1, _BLOCK_BYTES // (8 * shape[1]))
    blocks = [chosen[i : i + step] for i in range(0, len(chosen), step)]
    kept = [_block(A, B, values, block, k) for block in blocks]
    figures = {name: np.concatenate([b[name] for b in kept]) for name in kept[0]}
    return _summary(figures, shape[0], k, exact=len(chosen) == shape[0])


class Every(NamedTuple):
    """What `compare_all` found: figures of all queries that may attend to something."""

    queries: int
    recall: float
    """Share of queries whose strongest key is one of largest score, which is proved."""
    mass: float
    """Mean share of exact attention that the keys of the map hold."""
    mass_error: float
    """How far that may be from the truth, by the tolerance of the certified map."""
    mass_p5: float
    held: Floats
    """(n,) that share of each query; NaN of those that may attend to nothing."""
    output: float | None
    """Norm of the difference of outputs, over that of the certified output."""


def compare_all(A: AttentionMap, B: AttentionMap, v: Floats | None = None) -> Every:
    """Compare map `A` with exact attention on every query: no sample, no sampling error.

    Parameters
    ----------
    A : AttentionMap, (n, m)
        Softmax weights over some keys of each query, of the scores of B.
    B : CertifiedMap, (n, m)
        The reference: `certified_attention_map` of the same queries, keys and scale.
    v : (m, e) array, optional
        Values, for the output error.

    Notes
    -----
    The share that keys S hold is ``exp(lse_S - lse)``, so that rows are never formed. Strongest
    keys are those of ``topk(1)``; scores are equal that differ by four spacings of A's dtype.

    Examples
    --------
    >>> exact = nlattn.certified_attention_map(q, k)
    >>> bool(nlattn.compare_all(nlattn.lev_attention_map(q, k, keys=32), exact).mass < 1)
    True
    """
    op = "compare_all"
    if not isinstance(B, CertifiedMap):
        text = f"is a {type(B).__name__}, expected the map of certified_attention_map"
        _check.fail_type(op, "B", f"{text}; compare takes any map")
    _check.instance(op, "A", A, AttentionMap, "the map to judge")
    if A.shape != B.shape:
        _check.fail(op, "B", f"has shape {B.shape}, expected {A.shape} from A")
    if not A.normalised:
        _check.fail(
            op, "A", "has weights of any sign, expected those of a softmax; compare takes any"
        )
    alive = np.isfinite(B.lse)
    lse, missed = B.lse[alive], B.missed[alive]
    if not alive.any():
        _check.fail(op, "B", "attends to nothing")
    spacing = 4 * float(np.finfo(A.dtype).eps)
    share = np.exp(np.minimum(A.lse[alive] - lse, 1.0))
    if (share * (1 - missed) > _MORE_THAN_ALL).any():
        text = "gives some keys more than B gives all, expected keys of B at B's scale"
        _check.fail(op, "A", text)
    share = np.minimum(share, 1)
    error = float((share * missed / (1 - missed)).mean())
    best = B.scores_of(B.topk(1)[1][:, 0])[alive]
    reached = B.scores_of(A.topk(1)[1][:, 0])[alive]
    held = np.full(len(B.lse), np.nan)
    held[alive] = share
    output = None
    if v is not None:
        values = _values(op, v, A.shape)
        exact = np.asarray(B @ values, np.float64)
        wrong, right = ((x**2).sum() for x in (exact - (A @ values), exact))
        output = ratio(np.array([wrong]), np.array([right]), 1).value
    return Every(
        int(alive.sum()),
        float((reached >= best - spacing * np.abs(best)).mean()),
        float(share.mean()),
        error,
        float(np.quantile(share, 0.05, method="lower")),
        held,
        output,
    )


def _values(op: str, v: Floats, shape: tuple[int, ...]) -> Floats:
    values = _check.array(op, "v", v)
    if values.ndim != 2 or len(values) != shape[1]:
        hint = f"; its {shape[0]} rows are queries" if values.shape[:1] == shape[:1] else ""
        text = f"has shape {values.shape}, expected (m, e) with m={shape[1]} from A{hint}"
        _check.fail(op, "v", text)
    if not values.shape[1]:
        _check.fail(op, "v", "has 0 channels, expected at least 1")
    _check.finite(op, "v", values, remedy=False)
    return values.astype(np.float64)


def _chosen(op: str, rows: Ints, n: int) -> Ints:
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size:
        text = f"has shape {rows.shape} and dtype {rows.dtype}, expected integers (r,)"
        _check.fail(op, "rows", text)
    chosen = np.unique(rows)
    if len(chosen) != len(rows) or chosen[0] < 0 or chosen[-1] >= n:
        _check.fail(op, "rows", f"holds doubles or leaves 0 to {n - 1}")
    return chosen


def sample(n: int, count: int, seed: int) -> Ints:
    """Return, ascending, the `count` of n rows whose keyed hashes are smallest."""
    if count >= n:
        return np.arange(n)
    return np.sort(np.argsort(_keys(seed ^ _TAG, n), kind="stable")[:count])


def _keys(seed: int, n: int) -> Array:
    """Keys ``(seed; slice 0, iteration 0, query p, draw 0)`` of ``kernels/rng.py``, for all p."""
    return hashes(seed, 0, 0, np.arange(n), 0)


def _block(
    A: AttentionMap, B: AttentionMap | Floats, v: Floats | None, index: Ints, k: int
) -> dict[str, Floats]:
    """Figures of the queries `index`, one array each."""
    if isinstance(B, AttentionMap):
        exact, score = np.asarray(B.rows(index), np.float64), B.scores(index)
    else:
        exact = np.asarray(B[index], np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.log(exact)
    if not ((exact >= 0) & (exact < np.inf)).all():
        _check.fail("compare", "B", "holds weights that are negative or not finite")
    spacing = max(float(np.finfo(x).eps) for x in (A.dtype, score.dtype))
    other, score = A.rows(index), np.asarray(score, np.float64)
    alive = exact.any(1)
    if not alive.all():
        exact, score, other = exact[alive], score[alive], other[alive]

    count, m = exact.shape
    line = np.arange(count)
    row, key = np.nonzero(other != 0)  # the support; what follows costs little where it is small
    inside, weight = exact[row, key], other[row, key].astype(np.float64)
    size = np.bincount(row, minlength=count)
    mass = np.bincount(row, inside, count)

    top, choices, deviation, tie = _spread(score, spacing)
    reached = np.where(size > 0, score[line, other.argmax(1)], -np.inf)
    gap = np.divide(top - reached, deviation, out=np.zeros_like(top), where=top - reached > tie)
    most = min(int(size.max(initial=0)) + 1, m)
    best = -np.sort(np.partition(-exact, most - 1, axis=1)[:, :most], axis=1)  # no full sort
    norm = top - np.log(exact[line, score.argmax(1)])
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = weight * (np.log(np.abs(weight)) - score[row, key] + norm[row])
    figures = {
        "recall": (reached >= top - tie).astype(np.float64),
        "recall_k": _share_of_best(score, other, tie, k),
        "gap": gap,
        "mass": mass,
        "best": np.where(np.arange(most) < size[:, None], best, 0).sum(1),
        "random": size / choices,
        "tv": (np.bincount(row, np.abs(inside - weight), count) + exact.sum(1) - mass) / 2,
        "kl": np.where(size > 0, np.bincount(row, terms, count), np.inf),
        "effective": 1 / np.einsum("ij,ij->i", exact, exact),
        "support": size.astype(np.float64),
    }
    if v is not None:
        reference = exact @ v
        difference = reference - other @ v
        figures["wrong"] = (difference**2).sum(1)
        figures["right"] = (reference**2).sum(1)
        figures["largest"] = np.abs(difference).max(1)
    return figures


def _spread(score: Floats, spacing: float) -> tuple[Floats, Ints, Floats, Floats]:
    """Of each row: the largest score, how many there are, their deviation, what makes a tie."""
    top, low = score.max(1), score.min(1)
    if np.isfinite(low).all():
        choices = np.full(len(score), score.shape[1])
        deviation = score.std(1)
    else:
        valid = score > -np.inf
        choices = valid.sum(1)
        mean = np.where(valid, score, 0).sum(1) / choices
        deviation = np.sqrt((np.where(valid, score - mean[:, None], 0) ** 2).sum(1) / choices)
        low = np.where(valid, score, np.inf).min(1)
    return top, choices, deviation, 4 * spacing * np.maximum(np.abs(top), np.abs(low))


def _share_of_best(score: Floats, other: Floats, tie: Floats, k: int) -> Floats:
    """``(found above the k-th score + found at it, as far as places are left) / k``."""
    count, m = score.shape
    kth = np.partition(score, m - k, axis=1)[:, m - k]
    row, key = np.nonzero(score >= (kth - tie)[:, None])
    value, found = score[row, key], other[row, key] != 0
    above = value > (kth + tie)[row]
    found &= value > -np.inf
    places = np.minimum(np.bincount(row, value > -np.inf, count), k)
    left = places - np.bincount(row, above, count)
    level = np.bincount(row, found & ~above, count)
    share: Floats = (np.bincount(row, found & above, count) + np.minimum(level, left)) / places
    return share


def _summary(f: dict[str, Floats], of: int, k: int, *, exact: bool) -> Quality:
    count = len(f["recall"])
    if count == 0:
        _check.fail("compare", "B", "attends to nothing in the rows compared")
    n = count if exact else of
    output = "wrong" in f
    return Quality(
        rows=count,
        of=of,
        support=float(f["support"].mean()),
        recall=proportion(f["recall"], n),
        recall_k=mean(f["recall_k"], n, high=1),
        k=k,
        gap=mean(f["gap"], n),
        gap_p95=float(np.quantile(f["gap"], 0.95, method="higher")),
        mass=mean(f["mass"], n, high=1),
        mass_p5=float(np.quantile(f["mass"], 0.05, method="lower")),
        mass_best=float(f["best"].mean()),
        mass_random=float(f["random"].mean()),
        tv=mean(f["tv"], n, high=1),
        kl=mean(f["kl"], n),
        effective=float(np.median(f["effective"])),
        output=ratio(f["wrong"], f["right"], n) if output else None,
        output_max=float(f["largest"].max()) if output else None,
        mass_above=tuple(float((f["mass"] > level).mean()) for level in LEVELS),
    )
