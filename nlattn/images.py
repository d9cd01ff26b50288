"""Images to features and back: reading, writing, patch features, the built-in photograph."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines import components
from nlattn.files import picture
from nlattn.files.whole import whole

MAX_PIXELS = 64_000_000
_MOST = 1 << 14  # numbers of a patch: their covariance is 2 GB


def photograph() -> Floats:
    """Return the built-in photograph: a portrait by NASA, public domain, (512, 512, 3).

    Examples
    --------
    >>> nlattn.images.photograph().shape
    (512, 512, 3)
    """
    return load(Path(__file__).parent / "data" / "astronaut.png")


def load(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, page: int | None = None
) -> Floats:
    """Read an image file as float32 in [0, 1], (H, W, 1) if grey and (H, W, 3) if coloured.

    PNG, JPEG, TIFF, BMP, GIF, WebP and PPM, of 8 bits or 16, as their formats define them. Turned
    upright as EXIF says; transparency is laid on white; palettes are resolved. Values stay as
    stored (sRGB, not linear light). Of a file of several pages or frames, `page` names one from 0.

    Raises
    ------
    ValueError
        It is no image, is damaged, holds pixels of another kind (floating-point, signed, CIELab,
        ...), more than `max_pixels` of them, or several pages and none is named.
    OSError
        The file is missing or may not be read.
    ModuleNotFoundError
        Pillow is not installed.

    Examples
    --------
    >>> nlattn.images.save("small.png", image)
    >>> nlattn.images.load("small.png").shape
    (64, 64, 3)
    """
    most = _check.number("load", "max_pixels", max_pixels, positive=True)
    return picture.read("load", path, max_pixels=int(most), page=page).pixels


def save(path: str | os.PathLike[str], image: Floats, *, bits: int = 8) -> None:
    """Write (H, W, 1) or (H, W, 3) values in [0, 1], clipped and rounded to 8 bits, or 16.

    A ``.png`` holds either; a ``.tif`` 16 bits of grey; a JPEG is written at quality 95.

    Examples
    --------
    >>> nlattn.images.save("small.png", image)
    >>> bool(np.abs(nlattn.images.load("small.png") - image).max() < 0.01)  # eight bits
    True
    """
    if _check.integer("save", "bits", bits) not in (8, 16):
        _check.fail("save", f"bits={bits}", "is unknown here, expected 8 or 16")
    values = _image("save", image, (1, 3))
    with whole(path) as draft:
        picture.write(draft, values, bits=bits)


def resize(image: Floats, height: int, width: int) -> Floats:
    """The picture at another size, float32: Lanczos where it shrinks, smooth where it grows.

    Examples
    --------
    >>> nlattn.images.resize(image, 32, 48).shape
    (32, 48, 3)
    """
    from PIL import Image

    values = _image("resize", image).astype(np.float32)
    size = tuple(
        _check.integer("resize", name, n, low=1)
        for name, n in (("width", width), ("height", height))
    )
    if height * width > MAX_PIXELS:
        _check.fail("resize", f"{height} x {width}", f"has more than {MAX_PIXELS} pixels")
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS))
        for plane in np.moveaxis(values, 2, 0)
    ]
    return np.stack(planes, 2)


def patch_features(
    image: Floats, *, patch: int = 7, channels: int = 32, dtype: DTypeLike = np.float32
) -> Floats:
    r"""Principal components of each pixel's patch: ``f[p] = V^T (x[p] - mean) / sqrt(patch^2 C)``.

    ``x[p]`` is the reflect-padded ``patch x patch x C`` surrounding of pixel p, V holds the
    covariance's leading eigenvectors. Nothing is whitened: ``|f[p] - f[r]|^2`` is the mean squared
    difference of two patches, less what the dropped components held.

    Parameters
    ----------
    image : (H, W, C) array of real numbers
        Any range.
    patch : odd int
        Width of the patch in pixels.
    channels : int
        Components kept, at most ``patch^2 C``, largest variance first. Each one's sign makes the
        largest weight of its eigenvector positive.
    dtype : float32 or float64
        Of the result.

    Returns
    -------
    (H, W, channels) array

    Notes
    -----
    ``H W (patch^2 C) (patch^2 C + channels)`` multiply-adds. Beside the result: a padded
    copy of the image and about 30 MB. The covariance is summed in float64, by one BLAS thread, so
    that any number of threads gives the same bits.

    Examples
    --------
    >>> nlattn.images.patch_features(image, patch=7, channels=16).shape
    (64, 64, 16)
    """
    op = "patch_features"
    values = _image(op, image)
    width = _check.odd(op, "patch", patch, "its centre is a pixel")
    size = width * width * values.shape[2]
    if size > _MOST:
        _check.fail(op, f"patch={width}", f"takes {size} numbers, expected at most {_MOST}")
    kept = _check.integer(op, "channels", channels, low=1, high=size)
    _check.wide_dtype(op, dtype)

    height, length = values.shape[:2]
    parts = components.groups(height, length)
    sums = np.stack([components.channel_sums(values, rows) for rows in parts])
    mean = components.centre(sums, height * length, values.dtype)
    sums = np.stack([components.moments(values, mean, rows, width) for rows in parts])
    axes = components.axes(sums, height * length, kept, dtype)
    out = np.empty((height, length, kept), dtype)
    for rows in parts:
        components.project(values, mean, axes, rows, width, out[rows.start : rows.stop])
    return out


def _image(op: str, image: object, channels: tuple[int, ...] = ()) -> Floats:
    values = _check.pixels(op, "image", image, channels)
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def queries_and_keys(features: Floats, *, gain: float = 1.5) -> tuple[Floats, Floats]:
    """Queries that look for their own patch, stronger: ``q = (f, 1)``, ``k = (f, b)``.

    With ``b = -|f|^2 / (2 gain)``, ``q[p] . k[r] = -|gain f[p] - f[r]|^2 / (2 gain)`` and a term
    of p alone, which no softmax sees. Here f is what sets a patch off from the mean patch. At
    ``gain=1`` every pixel's best key is itself; far above 1 a few extreme patches are everyone's.

    Returns
    -------
    q, k : (H, W, d + 1) arrays
        A constant is added to b so that its mean is 0, which no softmax sees either.

    Examples
    --------
    >>> q, k = nlattn.images.queries_and_keys(nlattn.images.patch_features(image))
    >>> A = nlattn.scram_map(q, k, scale=nlattn.images.softmax_scale(q, k))
    """
    op = "queries_and_keys"
    factor = _check.number(op, "gain", gain, positive=True)
    f = _features(op, features)
    parts = components.groups(*f.shape[:2])
    sums = np.stack([components.sum_of_squares(f, rows) for rows in parts])
    with np.errstate(over="ignore"):
        offset = components.offset(f, sums, math.prod(f.shape[:2]), factor)
    if not np.isfinite(offset).all():
        _check.fail(op, f"gain={factor:g}", f"gives these features keys that no {f.dtype} holds")
    return np.concatenate([f, np.ones_like(offset)], -1), np.concatenate([f, offset], -1)


def gaussian_points(
    features: Floats, *, scale: float, gain: float = 1.5, channels: int | None = None
) -> tuple[Floats, Floats]:
    """Points with ``exp(-|q - k|^2 / 2)`` as the softmax of `queries_and_keys`, but for a factor.

    ``q = sqrt(scale gain) f`` and ``k = sqrt(scale / gain) f``, each (H, W, d), or of the first
    `channels` components, which vary most.

    Examples
    --------
    >>> features = nlattn.images.patch_features(image)
    >>> q, k = nlattn.images.gaussian_points(features, scale=1.0, channels=3)
    """
    op = "gaussian_points"
    factor = _check.number(op, "gain", gain, positive=True)
    sharp = _check.number(op, "scale", scale, positive=True)
    f = _features(op, features)
    if channels is not None:
        f = f[..., : _check.integer(op, "channels", channels, low=1)]
    q, k = ((sharp * x) ** 0.5 * f.astype(np.float64) for x in (factor, 1 / factor))
    return q.astype(f.dtype), k.astype(f.dtype)


def softmax_scale(
    q: Floats, k: Floats, *, keys: float = 16.0, rows: int = 64, seed: int = 0
) -> float:
    """Factor on dot products at which the median query attends to about `keys` keys.

    The weights ``softmax_r(scale q[p] . k[r])`` have a perplexity (exponential of the entropy):
    the scale makes its median over `rows` queries, drawn with `seed`, equal `keys`. It is found on
    the largest ``256 keys`` scores of a row, which hold all weight that matters.

    Examples
    --------
    >>> q, k = nlattn.images.queries_and_keys(nlattn.images.patch_features(image))
    >>> scale = nlattn.images.softmax_scale(q, k, keys=16)  # spread over some 16 keys
    """
    op = "softmax_scale"
    target = _check.number(op, "keys", keys, positive=True)
    fit = _check.fit(op, {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, remedy=False)
    _check.one_head(fit, "(Hq, Wq, d), (Hk, Wk, d)")
    product = _check.largest(fit["q"]) * _check.largest(fit["k"])
    wide = fit.dtype if 1e-24 < product < 1e30 else np.float64
    queries, places = (
        fit[name].reshape(-1, fit.dims["d"]).astype(wide, copy=False) for name in "qk"
    )
    count, start = (
        _check.integer(op, name, x, low=low)
        for name, x, low in (("rows", rows, 1), ("seed", seed, 0))
    )
    chosen = sample(len(queries), count, start)
    near = nearest_enough(len(places), target)
    return fitting_scale(components.largest_scores(queries[chosen], places, near), target)


def sample(n: int, count: int, seed: int) -> Ints:
    """Some of n queries, each once."""
    return np.random.default_rng(seed).choice(n, min(n, count), replace=False)


def nearest_enough(m: int, target: float) -> int:
    """Scores of a row that hold all weight that matters to a spread over `target` keys."""
    return min(m, int(256 * max(target, 1)))


def _features(op: str, x: object) -> Floats:
    f = _check.array(op, "features", x)
    if f.ndim != 3 or 0 in f.shape:
        _check.fail(op, "features", f"has shape {f.shape}, expected (H, W, d), none of them 0")
    _check.finite(op, "features", f, remedy=False)
    return f


def fitting_scale(scores: Floats, target: float) -> float:
    """Factor on scores at which the median row spreads over `target` keys: it is bisected."""
    scores = scores - scores.max(1, keepdims=True)
    span = -float(scores.min())
    if span == 0:
        return 1.0  # all patches alike: any scale spreads over all
    low, high = -np.log(span) - 10, -np.log(span) + 40
    for _ in range(40):
        middle = (low + high) / 2
        logits = scores * np.exp(middle)
        weights = np.exp(logits)
        total = weights.sum(1)
        entropy = np.log(total) - (weights * logits).sum(1) / total
        if np.median(entropy) > np.log(target):
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
