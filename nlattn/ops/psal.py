"""PSAL: softmax over the nearest patches that a search found, each patch perhaps with its votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Border, Candidates, Nonfinite
from nlattn._types import Bools, Field, Floats
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.matches import matches
from nlattn.engines.patch_voting import Votes, VotingOptions
from nlattn.engines.patchmatch import CANDIDATES
from nlattn.maps.sparse import SparseMap
from nlattn.ops.patchmatch import patchmatch

BORDERS: tuple[Border, ...] = get_args(Border)


@ranged(laws.costs)
def psal(
    q: Floats,
    k: Floats,
    v: Floats,
    *,
    patch: int = 3,
    topk: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: Border = "reflect",
    key_mask: Bools | None = None,
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    field: Field | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Attention on nearest patches: ``out[i] = sum_t softmax_t(-c_t(i) / temperature) v[m_t(i)]``.

    ``c_t(i) = sum_w |q[i + w] - k[m_t(i) + w]|^2`` is the cost of match t over the offsets w of
    a patch.

    Parameters
    ----------
    q, k, v : (..., Hq, Wq, d), (..., Hk, Wk, d), (..., Hk, Wk, e) arrays of one dtype
        Queries, keys and values on their grids. Leading axes broadcast.
    patch, topk : int
        Odd width of the patches; matches of each query.
    temperature : float
        Divides the costs.
    aggregate : bool
        Let every patch over a pixel vote: match t of ``i + w`` for the value at ``m_t(i + w) - w``,
        one softmax over all votes. Votes from or for outside the grids are dropped.
    dedup : bool
        Of several votes for one key count the cheapest only.
    border : {"reflect", "edge"}
        How patches are continued over borders; the search reflects.
    key_mask : (..., Hk, Wk) bool, optional
        True where a pixel is known; only patches without an unknown pixel are matched.
    candidates, iterations, seed
        As in `patchmatch`.
    field : Field, optional
        Matches to use instead of a search; then `topk`, `key_mask` and the search have no effect.
    nonfinite : {"raise", "propagate"}
        What to do with NaN and infinities.

    Returns
    -------
    (..., Hq, Wq, e) array, dtype of `q`
        0 where a query has no match.

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; votes and patches above `max_bytes`.

    Notes
    -----
    ``n topk patch^2 (d + e)`` multiply-adds beside the search, ``n patch^2 (d + topk)`` memory.
    Source: [cherel2022]. Status: paper; reflected borders and dropped votes are ours.

    Examples
    --------
    >>> nlattn.psal(grid, grid, grid, patch=3, topk=3).shape
    (16, 16, 8)
    """
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hk Wk e")}
    asked = PsalArguments(patch, topk, temperature, aggregate, dedup, border, key_mask,
        candidates, iterations, seed, field, nonfinite, max_bytes)  # fmt: skip
    return _votes("psal", arrays, asked).attend()


@ranged(laws.costs)
def psal_map(
    q: Floats,
    k: Floats,
    *,
    patch: int = 3,
    topk: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: Border = "reflect",
    key_mask: Bools | None = None,
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    field: Field | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> SparseMap:
    """The map of one head's `psal`, from values (Hk Wk, e) to outputs (Hq Wq, e).

    Arguments as there. Votes for one key are one weight; its score is the logarithm of what they
    add up to.

    Examples
    --------
    >>> A = nlattn.psal_map(grid, grid)
    """
    asked = PsalArguments(patch, topk, temperature, aggregate, dedup, border, key_mask,
        candidates, iterations, seed, field, nonfinite, max_bytes)  # fmt: skip
    votes = _votes("psal_map", {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, asked)
    return SparseMap(*votes.entries())


@ranged(laws.costs)
def psal_vjp(
    q: Floats,
    k: Floats,
    v: Floats,
    dout: Floats,
    *,
    patch: int = 3,
    topk: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: Border = "reflect",
    key_mask: Bools | None = None,
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    field: Field | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> tuple[Floats, Floats, Floats]:
    """Gradients (dq, dk, dv) of ``sum(dout * out)``, exact for the matches, which are constants.

    Arguments as for `psal`, `dout` (..., Hq, Wq, e). A single match without votes has weight 1
    whatever its cost: then dq and dk are 0, and nothing is learned.

    Examples
    --------
    >>> dq, dk, dv = nlattn.psal_vjp(grid, grid, grid, grid)
    """
    arrays = {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d"), "v": (v, "Hk Wk e")}
    asked = PsalArguments(patch, topk, temperature, aggregate, dedup, border, key_mask,
        candidates, iterations, seed, field, nonfinite, max_bytes)  # fmt: skip
    return _votes("psal_vjp", {**arrays, "dout": (dout, "Hq Wq e")}, asked).vjp()


@ranged(laws.along(laws.costs))
def psal_jvp(
    q: Floats,
    k: Floats,
    v: Floats,
    dq: Floats,
    dk: Floats,
    dv: Floats,
    *,
    patch: int = 3,
    topk: int = 3,
    temperature: float = 1.0,
    aggregate: bool = False,
    dedup: bool = False,
    border: Border = "reflect",
    key_mask: Bools | None = None,
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    field: Field | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Change of `psal` along (dq, dk, dv), to first order, the matches held fixed.

    Arguments as there; changes have the shapes of their arrays. Twice the forward pass, without
    its search.

    Examples
    --------
    >>> change = nlattn.psal_jvp(grid, grid, grid, 1e-3 * grid, 0 * grid, 0 * grid)
    """
    specs = {"q": "Hq Wq d", "k": "Hk Wk d", "v": "Hk Wk e"}
    arrays = {n: (x, specs[n]) for n, x in zip(specs, (q, k, v), strict=True)}
    arrays |= {f"d{n}": (x, specs[n]) for n, x in zip(specs, (dq, dk, dv), strict=True)}
    asked = PsalArguments(patch, topk, temperature, aggregate, dedup, border, key_mask,
        candidates, iterations, seed, field, nonfinite, max_bytes)  # fmt: skip
    return _votes("psal_jvp", arrays, asked).jvp()


class PsalArguments(NamedTuple):
    """The options of a call, as they came."""

    patch: int
    topk: int
    temperature: float
    aggregate: bool
    dedup: bool
    border: Border
    key_mask: Bools | None
    candidates: Candidates
    iterations: int | None
    seed: int
    field: Field | None
    nonfinite: Nonfinite
    max_bytes: float


def _votes(op: str, arrays: Mapping[str, tuple[object, str]], asked: PsalArguments) -> Votes:
    """Check a call, search unless there is a field, and collect the votes."""
    fit = _check.fit(op, arrays, nonfinite=asked.nonfinite)
    if "v" not in arrays:
        _check.one_head(fit, "(Hq, Wq, d), (Hk, Wk, d)")
    patch = _check.odd(op, "patch", asked.patch, "its centre is a pixel")
    topk = _check.integer(op, "topk", asked.topk, low=1, high=64)
    options = VotingOptions(
        patch,
        _check.number(op, "temperature", asked.temperature, positive=True),
        _check.flag(op, "aggregate", asked.aggregate),
        _check.flag(op, "dedup", asked.dedup),
        _check.choice(op, "border", asked.border, BORDERS),
    )
    candidates = _check.choice(op, "candidates", asked.candidates, CANDIDATES)
    iterations = asked.iterations
    if iterations is not None:
        iterations = _check.integer(op, "iterations", iterations, low=0)
    grids, field = (fit.shape("Hq Wq"), fit.shape("Hk Wk")), asked.field
    if field is None:
        _refuse(fit, patch, topk * options.around, asked.max_bytes)
        known = asked.key_mask
        field = patchmatch(
            arrays["q"][0],  # type: ignore[arg-type]
            arrays["k"][0],  # type: ignore[arg-type]
            topk=topk,
            candidates=candidates,
            iterations=iterations,
            seed=asked.seed,
            patch=patch,
            score="neg_l2",
            key_mask=None if known is None else _known_patches(op, known, grids[1], patch),
            nonfinite="propagate",
        )
    work = field.work if isinstance(field, Field) else None
    index, key_grid = matches(op, field)
    if (index.shape[-3:-1], key_grid) != grids:
        found = f"is of grids {index.shape[-3:-1]} and {key_grid}"
        _check.fail(op, "field", f"{found}, expected {grids[0]} of q and {grids[1]} of k")
    _refuse(fit, patch, index.shape[-1] * options.around, asked.max_bytes)
    return Votes(fit, index, options, work)


def _refuse(fit: _check.Fit, patch: int, slots: int, max_bytes: float) -> None:
    """MemoryError for votes and patches above `max_bytes`."""
    Hq, Wq, Hk, Wk, d = fit.shape("Hq Wq Hk Wk d")
    size, n = fit.dtype.itemsize, fit.batch * Hq * Wq
    needed = n * slots * (24 + 3 * size) + (n + fit.batch * Hk * Wk) * 2 * patch**2 * d * size
    what = f"{slots} votes and a patch for each of {n} queries"
    _check.memory(fit.op, needed, max_bytes, what, "use parts of q, or a smaller patch")


def _known_patches(op: str, mask: object, grid: tuple[int, ...], patch: int) -> Bools:
    """Where no pixel of the patch is unknown."""
    known = _check.booleans(op, "key_mask", mask)
    if known.shape[-2:] != grid:
        _check.fail(
            op, "key_mask", f"has shape {known.shape}, expected (..., {grid[0]}, {grid[1]})"
        )
    r = patch // 2
    around = [(0, 0)] * (known.ndim - 2) + [(r, r), (r, r)]
    padded = np.pad(known, around, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (patch, patch), axis=(-2, -1))
    whole: Bools = np.asarray(windows.all((-2, -1)))
    return whole
