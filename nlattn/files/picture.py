"""Pictures as their formats define them, or refused by name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nlattn._types import Floats, JsonObject
from nlattn.files import png, tiff
from nlattn.files.untrusted import one_line, open_regular

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
_ORIENTATION = 0x0112


class PictureFile(NamedTuple):
    """Pixels, upright and on white, and what of the file a copy should keep."""

    pixels: Floats
    """(H, W, 1 or 3) float32, 0 to 1, as stored (sRGB, not linear light)."""
    bits: int
    """8 or 16: of a sample in the file."""
    icc: bytes | None
    """The colour profile, if it is one of grey or RGB as the pixels are."""
    dpi: tuple[float, float] | None
    jpeg: JsonObject | None
    """Quantisation tables and subsampling, of a JPEG."""


def read(
    op: str, path: str | os.PathLike[str], *, max_pixels: int, page: int | None = None
) -> PictureFile:
    """The picture in a file; `page` counts from 0 where there are several."""
    from PIL import Image

    with open_regular(op, path, links=True) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what they go on to read
        try:
            try:
                return _read(file, max_pixels, page)
            except Image.UnidentifiedImageError:
                tiff.explain(file)
                raise
        except MemoryError:
            raise MemoryError(f"{op}: {path} takes more memory than there is") from None
        except Image.UnidentifiedImageError:
            text = f"is not an image that can be read, expected {', '.join(FORMATS)}"
            file.seek(0)
            if file.read(6) == b"\x93NUMPY":
                text = "holds an array, expected an image; np.load reads it"
            raise ValueError(f"{op}: {one_line(os.fspath(path))} {text}") from None
        except Exception as error:  # a decoder of a damaged file raises whatever it likes
            name = one_line(os.fspath(path))
            raise ValueError(f"{op}: {name} cannot be read: {one_line(error)}") from None


def _read(file: IO[bytes], max_pixels: int, page: int | None) -> PictureFile:
    from PIL import Image

    def again() -> Image.Image:
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
        if page:
            image.seek(page)
        return image

    with Image.open(file, formats=FORMATS) as image:
        _select(image, page)
        if image.width * image.height > max_pixels:
            raise ValueError(f"it has {image.width} x {image.height} pixels, above {max_pixels}")
        values, opacity, bits = _samples(image, file, page, again)
        icc, dpi = image.info.get("icc_profile"), _dpi(image.info.get("dpi"))
        jpeg = _tables(image) if image.format in ("JPEG", "MPO") else None
        orientation = image.getexif().get(_ORIENTATION, 1)
    if opacity is not None:
        values = values * opacity + (1 - opacity)
    if orientation in (5, 6, 7, 8):
        dpi = dpi and dpi[::-1]
    upright = np.ascontiguousarray(_turned(values, orientation), np.float32)
    space = b"GRAY" if upright.shape[2] == 1 else b"RGB "
    return PictureFile(upright, bits, icc if icc and icc[16:20] == space else None, dpi, jpeg)


def _select(image: Image.Image, page: int | None) -> None:
    """Go to the page; a picture of several is refused unless one is named."""
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # of one scene
    if page is None and count > 1:
        raise ValueError(f"it has {count} pages or frames, expected one; name one of 0 to "
                         f"{count - 1} as the page")  # fmt: skip
    if page is not None and not 0 <= page < count:
        raise ValueError(f"it has no page {page}, expected 0 to {count - 1}")
    if page:
        image.seek(page)


def _samples(
    image: Image.Image, file: IO[bytes], page: int | None, again: Callable[[], Image.Image]
) -> tuple[Floats, Floats | None, int]:
    """Values and opacity of 0 to 1, and the bits they had."""
    if image.format == "PNG" and not page:
        file.seek(0)
        data = png.chunks(file)
        if data.depth == 16:
            samples, opacity = png.deep(data)
            image.load()  # for what stands after the pixels
            return samples.astype(np.float32) / 65535, opacity, 16
        return (*_shallow(image, data), 8)
    if image.format == "TIFF":
        depth, inverted = tiff.check(image.tag_v2)
        if depth == 16 and image.mode in ("RGB", "RGBA"):
            x = tiff.deep(again).astype(np.float32) / 65535
            image.load()
            return x[..., :3], x[..., 3:] if x.shape[2] == 4 else None, 16
        colours = tiff.palette(image.tag_v2) if image.mode == "P" else None
        if colours is not None:
            return colours[np.asarray(image)].astype(np.float32), None, 16
        values, opacity, bits = _plain(image)
        return 1 - values if inverted else values, opacity, bits
    if image.format == "PPM" and image.mode == "RGB" and _maximum(image) > 255:
        raise ValueError("it holds 16-bit colours, expected so of PNG or TIFF")
    return _plain(image)


def _shallow(image: Image.Image, data: png.Png) -> tuple[Floats, Floats | None]:
    """Of a PNG of up to 8 bits, whose one transparent value counts in its own depth."""
    if data.key is None:
        values, opacity, _ = _plain(image)
        return values, opacity
    image.info.pop("transparency", None)
    values, _, _ = _plain(image)
    most = (1 << data.depth) - 1
    return values, png.keyed(np.rint(values * most).astype(np.int64), data.key)


def _maximum(image: Image.Image) -> int:
    """Largest sample that the header of a PPM declares."""
    arguments = image.tile[0][3] if image.tile else ()
    numbers = [x for x in arguments if isinstance(x, int)] if isinstance(arguments, tuple) else []
    return max(numbers, default=255)


def _plain(image: Image.Image) -> tuple[Floats, Floats | None, int]:
    """What Pillow reads right."""
    mode = image.mode
    if mode == "F":
        raise ValueError("it holds floating-point pixels, expected 8 or 16 bits")
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError("it holds 32-bit pixels, expected 8 or 16 bits")
        return values[:, :, None] / 65535, None, 16
    if mode not in (
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
    ):
        raise ValueError(f"it holds {mode} colours, expected grey or RGB")
    grey = mode in ("1", "L", "LA", "La")
    if "A" in mode or "a" in mode or "transparency" in image.info:
        x = np.asarray(image.convert("RGBA"), np.float32) / 255
        return x[..., :1] if grey else x[..., :3], x[..., 3:], 8
    x = np.asarray(image.convert("L" if grey else "RGB"), np.float32) / 255
    return x.reshape(image.height, image.width, -1), None, 8


def _turned(x: Floats, orientation: int) -> Floats:
    """Upright, as EXIF's eight orientations say."""
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        x = x[::-1]
    if orientation in (2, 3, 6, 7):
        x = x[:, ::-1]
    return x


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = (float(x) for x in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 1e6 and 0 < down < 1e6 else None


def _tables(image: Image.Image) -> JsonObject:
    from PIL import JpegImagePlugin

    sampling = JpegImagePlugin.get_sampling(image)
    known = {} if sampling < 0 else {"subsampling": sampling}
    return {"qtables": image.quantization, **known}


def holds_16(name: str, channels: int) -> bool:
    """Whether a file of this name can be written with 16 bits."""
    suffix = Path(name).suffix.lower()
    return suffix == ".png" or (suffix in (".tif", ".tiff") and channels == 1)


def write(
    path: Path,
    pixels: Floats,
    *,
    bits: int = 8,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    jpeg: JsonObject | None = None,
) -> None:
    """Write (H, W, 1 or 3) values, clipped to 0 to 1 and rounded to `bits`; .png or .tif for 16.

    A JPEG has the tables `jpeg` of another, or quality 95.
    """
    from PIL import Image

    most = (1 << bits) - 1
    samples = np.rint(np.clip(pixels, 0, 1).astype(np.float64) * most)
    samples = samples.astype(np.uint16 if bits == 16 else np.uint8)
    suffix = path.suffix.lower()
    if bits == 16 and suffix == ".png":
        png.write(path, samples, icc=icc, dpi=dpi)
        return
    if bits == 16 and not holds_16(path.name, samples.shape[2]):
        raise ValueError(f"save: a {suffix} file holds 8 bits, expected a .png for 16-bit pixels")
    options: JsonObject = {"icc_profile": icc} if icc else {}
    options |= {"dpi": dpi} if dpi else {}
    if suffix in (".jpg", ".jpeg"):
        options |= jpeg or {"quality": 95, "subsampling": 0}
    try:
        Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples).save(
            path, **options
        )
    except (ValueError, KeyError) as error:  # no format of this name, or none so large
        raise ValueError(f"save: a {suffix!r} file cannot be written: {one_line(error)}") from None
