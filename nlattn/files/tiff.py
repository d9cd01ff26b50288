"""What Pillow gets wrong of TIFF: made right, or refused by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from nlattn._types import Floats, Ints

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _COLORS, _EXTRA, _FORMAT = (
    258, 259, 262, 277, 284, 320, 338, 339,
)  # fmt: skip
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_REFUSED = {
    4: "a transparency mask", 8: "CIELab colours", 9: "ICCLab colours", 10: "ITULab colours",
    32803: "raw colours of a sensor", 34892: "raw colours of a sensor", 32844: "LogL light",
    32845: "LogLuv light", 51177: "depths",
}  # fmt: skip
_FORMATS = {
    2: "signed integers", 3: "floating-point pixels", 5: "complex integers", 6: "complex numbers"
}  # fmt: skip
_JPEG = (6, 7)
_ASSOCIATED = 1


def explain(file: IO[bytes]) -> None:
    """ValueError that names what of a TIFF Pillow does not read; nothing if it is no TIFF."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file.seek(0)
    start = file.read(8)
    if start[:4] not in (b"II*\0", b"MM\0*"):
        return
    tags = ImageFileDirectory_v2(start)
    file.seek(tags.next)
    tags.load(file)
    check(tags)
    count = tags.get(_SAMPLES, 1)
    kind = f"{tags.get(_BITS, (1,))[0]}-bit {'grey' if count < 3 else 'colours'}"
    extra = ", of white 0" if tags.get(_PHOTOMETRIC) == WHITE_IS_ZERO else ""
    raise ValueError(f"it holds {kind} in {count} channels{extra}, a kind of TIFF unknown here")


def check(tags: Any) -> tuple[int, bool]:
    """Bits of a sample, and whether 0 is white and nobody has turned it; ValueError by name."""
    formats = {int(x) for x in _all(tags.get(_FORMAT, 1))} - {1, 4}
    if formats:
        raise ValueError(f"it holds {_FORMATS.get(min(formats), 'pixels of no known format')}")
    bits = {int(x) for x in _all(tags.get(_BITS, 1))}
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
        raise ValueError(f"it holds {sorted(bits)[-1]}-bit pixels, expected 1, 2, 4, 8 or 16 bits")
    (depth,) = bits
    photometric = tags.get(_PHOTOMETRIC, WHITE_IS_ZERO)
    if photometric not in (WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR):
        raise ValueError(f"it holds {_REFUSED.get(photometric, 'colours of no known kind')}")
    if photometric == YCBCR and tags.get(_COMPRESSION, 1) not in _JPEG:
        raise ValueError("it holds YCbCr colours outside JPEG")
    if depth == 16 and photometric in (CMYK, PALETTE, YCBCR):
        raise ValueError("it holds 16-bit CMYK, YCbCr or palette colours, expected grey or RGB")
    apart = tags.get(_PLANAR, 1) == 2 and tags.get(_SAMPLES, 1) > 1
    if apart and (photometric != RGB or depth != 8):
        raise ValueError("it stores channels apart, expected so of 8-bit RGB alone")
    if depth == 16 and _ASSOCIATED in _all(tags.get(_EXTRA, ())):
        raise ValueError("it holds 16-bit colours multiplied by their opacity")
    return depth, photometric == WHITE_IS_ZERO and depth == 16


def palette(tags: Any) -> Floats | None:
    """Colours (entries, 3) of 0 to 1, where Pillow, which takes their high bytes, loses some."""
    table = np.reshape(tags[_COLORS], (3, -1)).T
    if table.max() < 256:  # bytes, as libtiff takes them to be
        return table / 255
    whole_bytes = not (table & 255).any() or not (table % 257).any()
    return None if whole_bytes else table / 65535


def _all(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def deep(again: Callable[[], Any]) -> Ints:
    """Samples (H, W, 3 or 4) of 16 bits, from Pillow's high bytes, and its low ones.

    ``again()`` opens the image anew; Pillow takes one byte of a sample, the other one if it is
    told that samples are of the other byte order.
    """
    high, low = again(), again()
    low.tile = [_of_other_byte(part) for part in low.tile]
    for image in (high, low):
        image.load()
    bytes_ = [np.asarray(image) for image in (high, low)]
    samples: Ints = bytes_[0].astype(np.uint16) << 8 | bytes_[1]
    return samples


def _of_other_byte(part: Any) -> Any:
    """A tile of Pillow's, a named tuple since its version 11."""
    arguments = _other_byte(part[3])
    if hasattr(part, "_replace"):
        return part._replace(args=arguments)
    return (*part[:3], arguments)


def _other_byte(arguments: Any) -> Any:
    if isinstance(arguments, str):
        name, _, order = arguments.partition(";16")
        native = "L" if sys.byteorder == "little" else "B"
        other = {"L": "B", "B": "L"}
        if order not in ("L", "B", "N"):
            raise ValueError("it holds 16-bit colours that cannot be read")
        return f"{name};16{other[native if order == 'N' else order]}"
    return (_other_byte(arguments[0]), *arguments[1:])
