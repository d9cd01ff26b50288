"""Non-local means: a picture denoised by what looks alike in it."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np

from nlattn import _check
from nlattn._modes import Aggregate, Candidates, Nonfinite, PatchChoice, PatchSearch, SelfWeight
from nlattn._types import Array, Floats, Ints, Support, Work
from nlattn.engines import laws
from nlattn.engines.magnitude import ranged
from nlattn.engines.nl_means import BANDWIDTH, SELF, PictureMeans, denoise, jvp, vjp, weights
from nlattn.engines.patchmatch import CANDIDATES
from nlattn.engines.similar import SEARCHES, SELECTS, PixelSearch, joined
from nlattn.engines.support import checked_support
from nlattn.maps.sparse import SparseMap
from nlattn.ops._picture import ABSENT, Picture


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
    support: Support | None = None,
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
    support : Support, optional
        ``(..., n, n)`` keys of each pixel, instead of a search.
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
        nonfinite, max_bytes)  # fmt: skip
    picture, call = checked("nl_means", image, asked)
    voting = _check.choice(call.op, "aggregate", aggregate, get_args(Aggregate)) == "patch"
    out = call.fit.empty("H W e")
    for b in range(call.fit.batch):
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
    support: Support | None = None,
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
        nonfinite, max_bytes)  # fmt: skip
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
    support: Support | None = None,
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
        max_bytes)  # fmt: skip
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
    support: Support | None = None,
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
        max_bytes)  # fmt: skip
    picture, call = checked("nl_means_jvp", image, asked, dimage=dimage)
    voting = _check.choice(call.op, "aggregate", aggregate, get_args(Aggregate)) == "patch"
    needed = call.n * patch_size**2 * call.C * call.fit.dtype.itemsize * 5
    what = f"the {patch_size} x {patch_size} patches of {call.n} pixels, five times"
    _check.memory(call.op, needed, max_bytes, what, "tile the image")
    change = call.fit.empty("H W e")
    for b in range(call.fit.batch):
        change[b] = jvp(call, b, voting)
    return picture.restored(change)


class NLMeansArguments(NamedTuple):
    """The options of a call, as they came."""

    sigma: float
    h: float | None
    patch_size: int
    patch_distance: int
    search: PatchSearch
    topk: int | None
    select: PatchChoice
    self_weight: SelfWeight
    candidates: Candidates
    iterations: int | None
    seed: int
    support: Support | None
    channel_axis: int | None
    data_range: float | None
    fast_mode: bool
    nonfinite: Nonfinite
    max_bytes: float


def checked(
    op: str,
    image: object,
    asked: NLMeansArguments,
    dout: object = ABSENT,
    *,
    dimage: object = ABSENT,
) -> tuple[Picture, PictureMeans]:
    """The picture and its call; ValueError for values outside their sets."""
    sigma = _check.number(op, "sigma", asked.sigma)
    if sigma < 0:
        _check.fail(op, f"sigma={sigma}", "is negative, expected the noise's deviation")
    h = BANDWIDTH * sigma if asked.h is None else _check.number(op, "h", asked.h)
    if h < 0:
        _check.fail(op, f"h={h}", "is negative, expected a bandwidth")
    own = _check.choice(op, "self_weight", asked.self_weight, SELF)
    search = _search(op, asked)
    if not _check.flag(op, "fast_mode", asked.fast_mode):
        text = "weighs the pixels of a patch by a Gaussian, which is not offered"
        _check.fail(op, "fast_mode=False", text)
    picture = Picture(
        op,
        image,
        channel_axis=asked.channel_axis,
        data_range=asked.data_range,
        nonfinite=asked.nonfinite,
        beside={"dout": dout, "dimage": dimage},
    )
    sigma, h, fit = sigma * picture.unit, h * picture.unit, picture.fit
    support: Support | None = None
    slices: Ints = np.zeros(fit.batch, np.int64)
    if asked.support is not None:
        support, slices = _given(fit, asked.support)
    search = search._replace(sigma=sigma)
    H, W, C = fit.shape("H W e")
    call = PictureMeans(fit, H, W, C, search, sigma, h, own, asked.max_bytes, support, slices)
    return picture, call


def _search(op: str, asked: NLMeansArguments) -> PixelSearch:
    topk, iterations = asked.topk, asked.iterations
    if topk is not None:
        topk = _check.integer(op, "topk", topk, low=1, high=63)
    elif asked.select == "statistical" and asked.search == "window":
        text = "chooses topk keys, and topk is not given; topk=16 chooses 16"
        _check.fail(op, "select='statistical'", text)
    if iterations is None:
        iterations = 1 if asked.candidates == "tree" else 3
    return PixelSearch(
        _check.choice(op, "search", asked.search, SEARCHES),
        _check.odd(op, "patch_size", asked.patch_size, "its centre is a pixel"),
        _check.integer(op, "patch_distance", asked.patch_distance, low=0),
        topk,
        _check.choice(op, "select", asked.select, SELECTS),
        _check.choice(op, "candidates", asked.candidates, CANDIDATES),
        _check.integer(op, "iterations", iterations, low=0),
        _check.integer(op, "seed", asked.seed, low=0, high=2**64 - 1),
        0.0,
    )


def _given(fit: _check.Fit, support: Support) -> tuple[Support, Ints]:
    """A checked support, and its slice for each picture."""
    checked, n = checked_support(fit.op, support), fit.dims["H"] * fit.dims["W"]
    *lead, rows, m = checked.shape
    if (rows, m) != (n, n):
        text = f"has shape {checked.shape}, expected (..., n, n) with n={n} pixels"
        _check.fail(fit.op, "support", text)
    return checked, _check.slices(fit.op, "support", tuple(lead), fit.lead)
