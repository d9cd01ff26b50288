"""Images to features and back: reading, writing, patch features, the built-in photograph."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nlattn import _check
from nlattn._types import Floats

_BLOCK = 1 << 13  # patches in memory at a time: about 10 MB of 7 x 7 RGB patches


def photograph() -> Floats:
    """Return the built-in photograph: a portrait by NASA, public domain, (512, 512, 3)."""
    return load(Path(__file__).parent / "data" / "astronaut.png")


def load(path: str | os.PathLike[str], *, max_pixels: int = 64_000_000) -> Floats:
    """Read an image file as float32 in [0, 1], (H, W, 1) if grey and (H, W, 3) if coloured.

    PNG, JPEG, TIFF and whatever else Pillow reads, of 8 bits or 16 (Pillow reads coloured 16-bit
    files as 8-bit). Turned upright as its EXIF tag says; transparency is laid on white; palettes
    are resolved. Values stay as stored (sRGB, not linear light).

    Raises
    ------
    ValueError
        It is no image, is damaged, holds floating-point pixels or more than `max_pixels` of them.
    OSError
        The file is missing or may not be read.
    ModuleNotFoundError
        Pillow is not installed.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    data = path.open("rb")  # missing or forbidden files raise what Python raises
    with data, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they go on to read
        try:
            with Image.open(data) as image:
                if image.width * image.height > max_pixels:
                    raise ValueError(
                        f"{image.width} x {image.height} pixels, above max_pixels={max_pixels}"
                    )
                return _pixels(ImageOps.exif_transpose(image))
        except MemoryError:
            raise
        except Image.UnidentifiedImageError:
            raise ValueError(f"load: {path} is not an image that can be read") from None
        except Exception as error:  # a decoder of a damaged file raises whatever it likes
            raise ValueError(f"load: {path} cannot be read: {error}") from None


def _pixels(image: Any) -> Floats:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, expected 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float32) / 65535
        if values.size and not 0 <= values.min() <= values.max() <= 1:
            raise ValueError("it holds 32-bit pixels, expected 8 or 16 bits")
        return values[:, :, None]
    grey = image.mode in ("1", "L", "LA", "La")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        image = Image.alpha_composite(white, colour)
    image = image.convert("L" if grey else "RGB")
    values = np.asarray(image, np.float32) / 255
    return values.reshape(image.height, image.width, -1)


def save(path: str | os.PathLike[str], image: Floats) -> None:
    """Write (H, W, 1) or (H, W, 3) values in [0, 1], clipped and rounded to 8 bits."""
    from PIL import Image

    values = _image("save", image)
    pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def patch_features(
    image: Floats,
    *,
    patch: int = 7,
    channels: int = 32,
    whiten: float = 0.5,
    dtype: Any = np.float32,
) -> Floats:
    r"""Principal components of each pixel's patch: ``f[p] = c (V^T (x[p] - mean)) / sigma^whiten``.

    ``x[p]`` is the reflect-padded ``patch x patch x C`` surrounding of pixel p, V holds the
    covariance's leading eigenvectors, sigma the standard deviations along them; c makes the mean
    of ``|f|^2`` equal `channels`. The dot product of two features then says how far their patches
    stray from the mean patch in the same direction.

    Parameters
    ----------
    image : (H, W, C) array of real numbers
        Any range.
    patch : odd int
        Width of the patch in pixels.
    channels : int
        Components kept, at most ``patch^2 C``, largest variance first. Each one's sign makes the
        largest weight of its eigenvector positive.
    whiten : float from 0 to 1
        0: the largest components, those of colour, decide; 1: all components count alike, so that
        fine texture and noise decide.
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
    """
    op = "patch_features"
    values = _image(op, image)
    width = _check.odd(op, "patch", patch, "its centre is a pixel")
    size = width * width * values.shape[2]
    kept = _check.integer(op, "channels", channels, low=1, high=size)
    power = _check.number(op, "whiten", whiten)
    if not 0 <= power <= 1:
        _check.fail(op, "whiten", f"is {power}, expected 0 to 1")
    if np.dtype(dtype) not in (np.float32, np.float64):
        _check.fail(op, "dtype", f"is {np.dtype(dtype)}, expected float32 or float64")

    height, length = values.shape[:2]
    margin = width // 2
    padded = np.pad(
        values - values.mean((0, 1), dtype=np.float64).astype(values.dtype),
        ((margin, margin), (margin, margin), (0, 0)),
        mode="reflect",
    )
    patches = np.lib.stride_tricks.sliding_window_view(padded, (width, width), axis=(0, 1))
    step = max(1, _BLOCK // length)
    blocks = [slice(top, top + step) for top in range(0, height, step)]
    out = np.empty((height, length, kept), dtype)
    with threadpool_limits(1, "blas"):
        total, moment = np.zeros(size), np.zeros((size, size))
        for rows in blocks:
            vectors = patches[rows].astype(np.float64).reshape(-1, size)
            total += vectors.sum(0)
            moment += vectors.T @ vectors
        mean = total / (height * length)
        axes = _axes(moment / (height * length) - np.outer(mean, mean), kept, power)
        narrow, shift = axes.astype(dtype), (mean @ axes).astype(dtype)
        for rows in blocks:
            vectors = patches[rows].astype(dtype).reshape(-1, size)
            out[rows] = (vectors @ narrow - shift).reshape(-1, length, kept)
    return out


def _axes(covariance: Floats, kept: int, power: float) -> Floats:
    """Leading eigenvectors, scaled; zero where there is no variance."""
    variance, axes = np.linalg.eigh(covariance)
    variance, axes = variance[::-1][:kept], axes[:, ::-1][:, :kept]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(kept)])
    real = variance > np.finfo(np.float32).eps ** 2 * max(1.0, np.trace(covariance))
    variance = np.where(real, variance, 1)
    scaled = np.where(real, variance ** (1 - power), 0).sum()
    axes = axes * (real * variance ** (-power / 2) * np.sqrt(kept / scaled if scaled else 1))
    return np.ascontiguousarray(axes)


def _image(op: str, image: object) -> Floats:
    values = np.asarray(image)
    if values.ndim != 3 or 0 in values.shape:
        _check.fail(op, "image", f"has shape {values.shape}, expected (H, W, C), none of them 0")
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{op}: image has dtype {values.dtype}, expected real numbers")
    if values.dtype.kind != "f":
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        _check.fail(op, "image", "holds NaN or infinities")
    return values


def softmax_scale(features: Floats, *, keys: float = 16.0, rows: int = 64, seed: int = 0) -> float:
    """Factor on dot products at which the median pixel attends to about `keys` keys.

    The weights ``softmax_r(scale f[p] . f[r])`` have a perplexity (exponential of the entropy):
    the scale makes its median over `rows` pixels, drawn with `seed`, equal `keys`. It is found on
    the largest ``256 keys`` scores of a row, which hold all weight that matters.
    """
    op = "softmax_scale"
    target = _check.number(op, "keys", keys, positive=True)
    flat = np.asarray(features)
    if flat.ndim != 3 or 0 in flat.shape:
        _check.fail(op, "features", f"has shape {flat.shape}, expected (H, W, d), none of them 0")
    flat = flat.reshape(-1, flat.shape[-1])
    count = min(len(flat), _check.integer(op, "rows", rows, low=1))
    chosen = np.random.default_rng(seed).choice(len(flat), count, replace=False)
    near = min(len(flat), int(256 * max(target, 1)))
    with threadpool_limits(1, "blas"):
        scores = (flat @ flat[chosen].T).T
    scores = np.partition(scores, len(flat) - near, axis=1)[:, len(flat) - near :]
    return _solve(scores.astype(np.float64) - scores.max(1, keepdims=True), target)


def _solve(scores: Floats, target: float) -> float:
    """Bisect the logarithm of the scale: perplexity falls with it."""
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
