"""SCRAM-style attention: PatchMatch, a support around the matches, a mean over the support."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, MaskedRows, Nonfinite, Propagate, Score, SupportKind, Weight
from nlattn._types import Bools, Field, Floats, Result, Support, Work
from nlattn.engines import forward_mode, laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.matches import support_of_field
from nlattn.engines.sparse import Edges, WeightFunction
from nlattn.maps.sparse import SparseMap
from nlattn.ops.patchmatch import patchmatch

PAIRED: dict[str, Score] = {
    "softmax": "dot",
    "dot": "dot",
    "abspow": "absdot",
    "gaussian": "neg_l2",
}
"""The score whose best key has the largest weight."""


def scram_support(
    field: Field,
    *,
    kind: SupportKind | Sequence[SupportKind] = "window",
    window: int = 3,
    reach: int = 1,
    shift: bool = True,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    max_bytes: float = 4e9,
) -> Support:
    """The keys near the match m(p) of every query p, always with m(p) among them.

    Parameters
    ----------
    field : Field
        Matches, as from `patchmatch`.
    kind : {"window", "neighbours", "topk", "local", "union"}, or several
        "window" the box around m(p); "neighbours" the boxes around the matches m(p + δ) of the
        neighbours and, with `shift`, around m(p + δ) - δ; "topk" all matches of p; "local" the box
        around the place of p on the key grid; "union" all of them. Several are united.
    window : int
        Odd width of the boxes, which are clipped at the border.
    reach : int
        Neighbours are at most this far away, in either axis.
    shift : bool
        Whether neighbours' matches are also moved back.
    key_mask, mask : (..., Hk, Wk), (..., Hq, Wq, Hk, Wk) bool, optional
        True where a key may be used.
    causal : bool
        Use no key after the query in raster order.
    max_bytes : float
        Most bytes that keys and workspace may take.

    Returns
    -------
    Support
        Of shape ``(..., Hq Wq, Hk Wk)``.

    Raises
    ------
    ValueError
        The field or an option is malformed.
    TypeError
        A mask is not boolean, or a number is none.
    MemoryError
        Above `max_bytes`.

    Notes
    -----
    ``O(n (reach window)^2)`` time. Source: [calian2019]. Status: reconstruction.

    Examples
    --------
    >>> field = nlattn.patchmatch(grid, grid)
    >>> out = nlattn.scram(grid, grid, grid, support=nlattn.scram_support(field, window=5))
    """
    op = "scram_support"
    radius = _check.odd(op, "window", window, "the best key is its centre") // 2
    reach = _check.integer(op, "reach", reach, low=0)
    return support_of_field(
        op,
        field,
        kind,
        radius,
        (reach, _check.flag(op, "shift", shift)),
        (key_mask, mask, _check.flag(op, "causal", causal)),
        max_bytes,
    )


@ranged(laws.weight)
def scram(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    weight: Weight = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    candidates: Candidates = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: Propagate = "both",
    seed: int = 0,
    kind: SupportKind | Sequence[SupportKind] = "window",
    window: int = 3,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    field: Field | None = None,
    support: Support | None = None,
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Attention near the best key: ``out[p] = sum_S f(s_pj) v[j] / Z_p``, S around argmax_j s_pj.

    Parameters
    ----------
    q, k, v : (..., Hq, Wq, d), (..., Hk, Wk, d), (..., Hk, Wk, e) arrays of one dtype
        Queries, keys and values on their grids. Leading axes broadcast.
    weight, scale, bandwidth, power, masked_rows, return_lse
        As in `sparse_attention`. The search maximises the score that goes with the weight.
    candidates, iterations, topk, propagate, seed
        As in `patchmatch`.
    kind, window
        As in `scram_support`.
    key_mask, mask, causal
        Keys that may be used, as in both.
    field : Field, optional
        Matches to use instead of a search; also the way to a search's other options.
    support : Support, optional
        Keys to use, whatever the matches.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities. A score of NaN is never the best.

    Returns
    -------
    (..., Hq, Wq, e) array, dtype of `q`

    Raises
    ------
    ValueError
        Shapes do not fit, an option is malformed, or a value is not finite.
    TypeError
        The dtypes differ, or are not floating.
    MemoryError
        The support would take gigabytes.

    Notes
    -----
    ``O(n log n d)`` for the search and ``O(nnz (d + e))`` for the mean; ``O(n)`` memory. How much
    of dense attention is caught, depends on the data: see `quality.compare`.
    Source: [calian2019]. Status: reconstruction.

    Examples
    --------
    >>> out = nlattn.scram(grid, grid, grid, candidates="tree", kind="neighbours")
    """
    asked = ScramArguments(weight, scale, bandwidth, power, candidates, iterations, topk,
        propagate, seed, kind, window, key_mask, mask, causal, field, support,
        masked_rows, nonfinite)  # fmt: skip
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hk Wk e")}
    edges, weights, _ = _prepared("scram", arrays, asked)
    return edges.attend(weights, return_lse)


@ranged(laws.weight)
def scram_map(
    q: Floats,
    k: Floats,
    *,
    weight: Weight = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    candidates: Candidates = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: Propagate = "both",
    seed: int = 0,
    kind: SupportKind | Sequence[SupportKind] = "window",
    window: int = 3,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    field: Field | None = None,
    support: Support | None = None,
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
) -> SparseMap:
    """The map of one head's `scram`, from values (Hk Wk, e) to outputs (Hq Wq, e).

    Arguments as there. Its `work` includes the search, or that of a given `field`.

    Examples
    --------
    >>> A = nlattn.scram_map(grid, grid)
    >>> weights, keys = A.topk(3)
    """
    asked = ScramArguments(weight, scale, bandwidth, power, candidates, iterations, topk,
        propagate, seed, kind, window, key_mask, mask, causal, field, support,
        masked_rows, nonfinite)  # fmt: skip
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}
    edges, weights, search = _prepared("scram_map", arrays, asked)
    return SparseMap(*edges.entries(weights, search))


@ranged(laws.weight)
def scram_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    dlse: Floats | None = None,
    weight: Weight = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    candidates: Candidates = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: Propagate = "both",
    seed: int = 0,
    kind: SupportKind | Sequence[SupportKind] = "window",
    window: int = 3,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    field: Field | None = None,
    support: Support | None = None,
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
) -> tuple[Floats, ...]:
    """Gradients (dq, dk, dv) of ``sum(dout * out) + sum(dlse * lse)`` of `scram`.

    Exact for the support, which is a constant: the one given, or the one `scram` finds with the
    same options. Arguments as there, `dout` (..., Hq, Wq, e), `dlse` (..., Hq, Wq).

    Examples
    --------
    >>> dq, dk, dv = nlattn.scram_vjp(grid, grid, grid, grid)
    """
    asked = ScramArguments(weight, scale, bandwidth, power, candidates, iterations, topk,
        propagate, seed, kind, window, key_mask, mask, causal, field, support,
        masked_rows, nonfinite)  # fmt: skip
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hk Wk e")}
    arrays["dout"] = (dout, "Hq Wq e")
    if dlse is not None:
        arrays["dlse"] = (dlse, "Hq Wq")
    edges, weights, _ = _prepared("scram_vjp", arrays, asked)
    return edges.vjp(weights, dlse is not None)


@ranged(laws.along(laws.weight))
def scram_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    weight: Weight = "softmax",
    scale: float | None = None,
    bandwidth: float = 1.0,
    power: float = 2.0,
    candidates: Candidates = "random",
    iterations: int | None = None,
    topk: int = 1,
    propagate: Propagate = "both",
    seed: int = 0,
    kind: SupportKind | Sequence[SupportKind] = "window",
    window: int = 3,
    key_mask: Bools | None = None,
    mask: Bools | None = None,
    causal: bool = False,
    field: Field | None = None,
    support: Support | None = None,
    masked_rows: MaskedRows = "zero",
    nonfinite: Nonfinite = "raise",
    return_lse: bool = False,
) -> Result:
    """Change of `scram` along (dq, dk, dv), to first order, the support held fixed.

    Arguments as there; changes have the shapes of their arrays. With `return_lse` also that of
    ``lse``. A query without keys does not change.

    Examples
    --------
    >>> change = nlattn.scram_jvp(grid, grid, grid, 1e-3 * grid, 0 * grid, 0 * grid)
    """
    asked = ScramArguments(weight, scale, bandwidth, power, candidates, iterations, topk,
        propagate, seed, kind, window, key_mask, mask, causal, field, support,
        masked_rows, nonfinite)  # fmt: skip
    specs = {"q": "Hq Wq d", "k": "Hk Wk d", "v": "Hk Wk e"}
    arrays = {n: (x, specs[n]) for n, x in zip(specs, (q, k, v), strict=True)}
    arrays |= {f"d{n}": (x, specs[n]) for n, x in zip(specs, (dq, dk, dv), strict=True)}
    edges, weights, _ = _prepared("scram_jvp", arrays, asked)
    return forward_mode.unfolded(edges, *forward_mode.on_edges(edges, weights), return_lse)


class ScramArguments(NamedTuple):
    """The options of a call, as they came."""

    weight: Weight
    scale: float | None
    bandwidth: float
    power: float
    candidates: Candidates
    iterations: int | None
    topk: int
    propagate: Propagate
    seed: int
    kind: SupportKind | Sequence[SupportKind]
    window: int
    key_mask: Bools | None
    mask: Bools | None
    causal: bool
    field: Field | None
    support: Support | None
    masked_rows: MaskedRows
    nonfinite: Nonfinite


def _prepared(
    op: str, arrays: Mapping[str, tuple[object, str]], asked: ScramArguments
) -> tuple[Edges, WeightFunction, Work | None]:
    """The edges of a call, its weights, and the work of its search."""
    fit = _check.fit(op, arrays, nonfinite=asked.nonfinite)
    if "v" not in arrays:
        _check.one_head(fit, "(Hq, Wq, d), (Hk, Wk, d)")
    formula = asked.weight, asked.scale, asked.bandwidth, asked.power
    weights = WeightFunction.checked(fit, *formula, asked.masked_rows)
    if asked.support is not None:
        for name, value in (("key_mask", asked.key_mask), ("mask", asked.mask)):
            if value is not None:
                _check.fail(op, name, "has no effect beside support=; pass it to scram_support")
        if asked.causal:
            _check.fail(op, "causal", "has no effect beside support=; pass it to scram_support")
        return Edges(fit, asked.support), weights, asked.field and asked.field.work
    field = asked.field
    if field is None:
        field = patchmatch(
            arrays["q"][0],  # type: ignore[arg-type]
            arrays["k"][0],  # type: ignore[arg-type]
            candidates=asked.candidates,
            iterations=asked.iterations,
            topk=asked.topk,
            propagate=asked.propagate,
            score=PAIRED[weights.weight],
            scale=asked.scale,
            bandwidth=asked.bandwidth,
            seed=asked.seed,
            key_mask=asked.key_mask,
            mask=asked.mask,
            causal=asked.causal,
            nonfinite="propagate",
        )
    support = scram_support(
        field,
        kind=asked.kind,
        window=asked.window,
        key_mask=asked.key_mask,
        mask=asked.mask,
        causal=asked.causal,
    )
    grids = np.shape(field.index)[-3:-1], field.key_grid
    wanted = fit["q"].shape[1:3], fit["k"].shape[1:3]
    if grids != wanted:
        found = f"is of grids {grids[0]} and {grids[1]}"
        _check.fail(op, "field", f"{found}, expected {wanted[0]} of q and {wanted[1]} of k")
    return Edges(fit, support), weights, field.work
