"""Non-local means: a picture denoised by what looks alike in it."""

from __future__ import annotations

from typing import get_args

import numpy as np

from nlattn import _check
from nlattn._modes import (
    Aggregate,
    AllPixels,
    Candidates,
    Nonfinite,
    PatchChoice,
    PatchSearch,
    SelfWeight,
)
from nlattn._types import Array, Floats, Support, Work
from nlattn.engines import certified_means, laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.nl_means import denoise, jvp, vjp, weights
from nlattn.engines.similar import joined
from nlattn.maps.sparse import SparseMap
from nlattn.ops._nl_means import NLMeansArguments, checked


@ranged(laws.picture)
def nl_means(
    image: object,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    aggregate: Aggregate = "patch",
    self_weight: SelfWeight = "max",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    support: Support | AllPixels | None = None,
    tolerance: float = 1e-3,
    channel_axis: int | None = -1,
    data_range: float | None = None,
    fast_mode: bool = True,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Means of what looks alike: weights ``w_ij = exp(-max(d2 - 2 sigma^2, 0) / h^2)``.

    ``d2`` is the mean squared difference of the patches around i and j, reflected at the border.

    Parameters
    ----------
    image : (..., H, W, C) or (H, W) floats; or uint8, uint16 with `data_range`
        Leading axes are pictures. `channel_axis` names another axis of channels; None is grey.
    sigma, h : float
        Deviation of the noise, in the image's unit; bandwidth, ``0.6 sigma`` if omitted.
    patch_size, patch_distance : int
        Odd width of patches; how far away the window reaches, in either axis.
    search : {"window", "patchmatch", "union"}
        Where keys come from: the window, PatchMatch over the whole picture, or both.
    topk, select : int, {"nearest", "statistical"}
        Keys kept: of matches 16 if omitted, of a window all. Those of smallest ``d2``, or of ``d2``
        nearest to ``2 sigma^2``, which noise does not choose.
    aggregate : {"patch", "pixel"}
        Whether all patches that cover a pixel vote for it, or the middle one alone.
    self_weight : {"max", "one", "zero"}
        Of the pixel itself; "max" is the largest of its others.
    candidates, iterations, seed : {"random", "tree"}, int, int
        Of PatchMatch; 3 iterations if omitted, with trees 1.
    support : Support or "certified", optional
        ``(..., n, n)`` keys of each pixel, instead of a search; or all pixels, as good as that.
    tolerance : float
        Of "certified": share of a pixel's weights that may be misplaced, in [0, 1).
    data_range : float
        Of integers: 255 says that `sigma` and `h` are in levels, 1 that they are fractions.

    Returns
    -------
    array as `image`, integers rounded

    Raises
    ------
    ValueError, TypeError, MemoryError
        Shapes, dtypes or an option do not fit; a value is not finite; above `max_bytes`.

    Notes
    -----
    ``n (2 distance + 1)^2 (patch_size + C)`` operations, O(n) memory. Source: [buades2005],
    [buades2011]. Status: paper.

    Examples
    --------
    >>> noisy = image + 0.1 * rng.normal(size=image.shape)
    >>> clean = nlattn.nl_means(noisy, sigma=0.1)
    >>> bool(np.abs(clean - image).mean() < np.abs(noisy - image).mean())
    True
    """
    asked = NLMeansArguments(sigma, h, patch_size, patch_distance, search, topk, select,
        self_weight, candidates, iterations, seed, support, channel_axis, data_range, fast_mode,
        nonfinite, max_bytes, tolerance)  # fmt: skip
    picture, call = checked("nl_means", image, asked)
    voting = _check.choice(call.op, "aggregate", aggregate, get_args(Aggregate)) == "patch"
    out = call.fit.empty("H W e")
    for b in range(call.fit.batch):
        if support == "certified":
            certified_means.denoise(call, b, voting, float(tolerance), out[b])
        else:
            denoise(call, b, voting, out[b])
    return picture.restored(out)


@ranged(laws.picture)
def nl_means_support(
    image: Array,
    *,
    sigma: float = 0.0,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    channel_axis: int | None = -1,
    data_range: float | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Support:
    """The keys that `nl_means` compares each pixel with, itself included, for the same options.

    Returns
    -------
    Support
        Of shape ``(..., H W, H W)``.

    Examples
    --------
    >>> support = nlattn.nl_means_support(image, search="patchmatch", topk=8)
    >>> clean = nlattn.nl_means(image, sigma=0.1, support=support)
    """
    asked = NLMeansArguments(sigma, None, patch_size, patch_distance, search, topk, select, "max",
        candidates, iterations, seed, None, channel_axis, data_range, True, nonfinite,
        max_bytes)  # fmt: skip
    _, call = checked("nl_means_support", image, asked)
    parts = [call.edges(b, inside=True) for b in range(call.fit.batch)]
    return joined(parts, call.fit.lead, call.n)


@ranged(laws.picture)
def nl_means_map(
    image: Array,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    self_weight: SelfWeight = "max",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    support: Support | AllPixels | None = None,
    tolerance: float = 1e-3,
    channel_axis: int | None = -1,
    data_range: float | None = None,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> SparseMap:
    """The map of one picture's `nl_means` with ``aggregate="pixel"``, from pixels to pixels.

    Arguments as there. It holds the weights of all keys: 12 bytes each in float32.

    Examples
    --------
    >>> A = nlattn.nl_means_map(image, sigma=0.1)
    """
    asked = NLMeansArguments(sigma, h, patch_size, patch_distance, search, topk, select,
        self_weight, candidates, iterations, seed, support, channel_axis, data_range, True,
        nonfinite, max_bytes, tolerance)  # fmt: skip
    _, call = checked("nl_means_map", image, asked)
    _check.one_head(call.fit, "(H, W, C)", "one picture")
    indptr, indices, scores, P, total, _ = weights(call, 0)
    d = patch_size**2 * call.C
    size = call.fit.dtype.itemsize
    counts = np.diff(indptr)
    work = Work(len(indices), len(indices) * d, len(indices) * (2 * d * size + 4), counts)
    grid = (call.H, call.W)
    found = Support(indptr, indices, (call.n, call.n))
    return SparseMap(found, P, scores, np.log(total.astype(np.float64)), work, grid, grid)


@ranged(laws.picture)
def nl_means_vjp(
    image: object,
    dout: object,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    aggregate: Aggregate = "patch",
    self_weight: SelfWeight = "max",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    support: Support | AllPixels | None = None,
    tolerance: float = 1e-3,
    channel_axis: int | None = -1,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Gradient of ``sum(dout * out)`` of `nl_means` by the image, keys held fixed.

    Arguments as there, floats only. At ``d2 = 2 sigma^2`` the weight's slope is 0, and of equal
    largest weights the lowest key's is the pixel's own. ``O(nnz + n patch_size^2 C)`` memory.

    Examples
    --------
    >>> dimage = nlattn.nl_means_vjp(image, np.ones_like(image), sigma=0.1)
    """
    asked = NLMeansArguments(sigma, h, patch_size, patch_distance, search, topk, select,
        self_weight, candidates, iterations, seed, support, channel_axis, None, True, nonfinite,
        max_bytes, tolerance)  # fmt: skip
    picture, call = checked("nl_means_vjp", image, asked, dout)
    voting = _check.choice(call.op, "aggregate", aggregate, get_args(Aggregate)) == "patch"
    needed = call.n * patch_size**2 * call.C * call.fit.dtype.itemsize * 5
    what = f"the {patch_size} x {patch_size} patches of {call.n} pixels, five times"
    _check.memory(call.op, needed, max_bytes, what, "tile the image")
    gradient = call.fit.empty("H W e")
    for b in range(call.fit.batch):
        gradient[b] = vjp(call, b, voting)
    return picture.restored(gradient)


@ranged(laws.along(laws.picture))
def nl_means_jvp(
    image: object,
    dimage: object,
    *,
    sigma: float,
    h: float | None = None,
    patch_size: int = 5,
    patch_distance: int = 5,
    search: PatchSearch = "window",
    topk: int | None = None,
    select: PatchChoice = "nearest",
    aggregate: Aggregate = "patch",
    self_weight: SelfWeight = "max",
    candidates: Candidates = "random",
    iterations: int | None = None,
    seed: int = 0,
    support: Support | AllPixels | None = None,
    tolerance: float = 1e-3,
    channel_axis: int | None = -1,
    nonfinite: Nonfinite = "raise",
    max_bytes: float = 4e9,
) -> Floats:
    """Change of `nl_means` as the image moves along `dimage`, keys held fixed.

    Arguments as there, floats only; kinks as for the gradient. ``O(nnz + n patch_size^2 C)``
    memory.

    Examples
    --------
    >>> change = nlattn.nl_means_jvp(image, np.ones_like(image), sigma=0.1)
    """
    asked = NLMeansArguments(sigma, h, patch_size, patch_distance, search, topk, select,
        self_weight, candidates, iterations, seed, support, channel_axis, None, True, nonfinite,
        max_bytes, tolerance)  # fmt: skip
    picture, call = checked("nl_means_jvp", image, asked, dimage=dimage)
    voting = _check.choice(call.op, "aggregate", aggregate, get_args(Aggregate)) == "patch"
    needed = call.n * patch_size**2 * call.C * call.fit.dtype.itemsize * 5
    what = f"the {patch_size} x {patch_size} patches of {call.n} pixels, five times"
    _check.memory(call.op, needed, max_bytes, what, "tile the image")
    change = call.fit.empty("H W e")
    for b in range(call.fit.batch):
        change[b] = jvp(call, b, voting)
    return picture.restored(change)
