"""PNG of 16 bits, which Pillow reads and writes as 8, and transparency of grey, which it misses."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from nlattn._types import Floats, Ints

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 4, 6
_PASSES = {
    _GREY: (("LA", "LA"),),
    _GREY_ALPHA: (("RGBA", "RGBA"),),
    _COLOUR: (("RGB", "RGB;16B"), ("RGB", "RGB;16L")),
    _COLOUR_ALPHA: (("RGBA", "RGBA;16B"), ("RGBA", "RGBA;16L")),
}
"""Pillow's 8-bit modes with as many bytes to a pixel: all bytes at once, or high ones and low."""


class Png(NamedTuple):
    """What the chunks of a file say."""

    width: int
    height: int
    depth: int
    kind: int
    interlaced: int
    key: tuple[int, ...] | None
    """Samples of the one value that is transparent, if there is one (tRNS of grey and RGB)."""
    data: bytes


def chunks(file: IO[bytes]) -> Png:
    """Header, transparency and packed pixels; ValueError if the file is damaged."""
    if file.read(8) != _SIGNATURE:
        raise ValueError("it is no PNG")
    head, key, parts = b"", None, []
    size = file.seek(0, 2)
    file.seek(8)
    while True:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("it ends before its last chunk")
        length, name = struct.unpack(">I4s", start)
        if file.tell() + length > size:
            raise ValueError(f"its chunk of {length} bytes goes on beyond its end")
        wanted = name in (b"IHDR", b"tRNS", b"IDAT", b"IEND")
        if not wanted:
            file.seek(length + 4, 1)
            continue
        body, check = file.read(length), file.read(4)
        if len(body) < length or check != struct.pack(">I", zlib.crc32(name + body)):
            raise ValueError(f"its chunk {name.decode()} is damaged")
        if name == b"IHDR":
            head = body
        elif name == b"tRNS":
            key = body
        elif name == b"IDAT":
            parts.append(body)
        else:
            break
    if len(head) != 13:
        raise ValueError("it has no header")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", head)
    count = {_GREY: 1, _COLOUR: 3}.get(kind)
    sized = key is not None and count is not None and len(key) == 2 * count
    samples = struct.unpack(f">{count}H", key) if sized and key is not None else None
    return Png(width, height, depth, kind, interlaced, samples, b"".join(parts))


def deep(png: Png) -> tuple[Ints, Floats | None]:
    """Samples (H, W, 1 or 3) of 16 bits, and opacity (H, W, 1) of 0 to 1 if there is any."""
    from PIL import Image

    size = png.width, png.height
    bytes_ = [
        np.asarray(Image.frombytes(mode, size, png.data, "zip", raw, png.interlaced))
        for mode, raw in _PASSES[png.kind]
    ]
    if len(bytes_) == 1:
        high, low = bytes_[0][..., ::2], bytes_[0][..., 1::2]
    else:
        high, low = bytes_
    samples = high.astype(np.uint16) << 8 | low
    if png.kind in (_GREY_ALPHA, _COLOUR_ALPHA):
        return samples[..., :-1], samples[..., -1:].astype(np.float32) / 65535
    return samples, None if png.key is None else keyed(samples, png.key)


def keyed(samples: Ints, key: tuple[int, ...]) -> Floats:
    """Opacity (H, W, 1): 0 where all samples are the key's."""
    opaque: Floats = (samples != np.array(key)).any(-1, keepdims=True).astype(np.float32)
    return opaque


def write(
    path: Path, samples: Ints, *, icc: bytes | None = None, dpi: tuple[float, float] | None = None
) -> None:
    """Write (H, W, 1 or 3) samples of 16 bits."""
    height, width, channels = samples.shape
    kind = _GREY if channels == 1 else _COLOUR
    rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)  # each row less the one above
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    with open(path, "wb") as file:
        file.write(_SIGNATURE)
        _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        if icc:
            _chunk(file, b"iCCP", b"profile\0\0" + zlib.compress(icc))
        if dpi:
            metres = [round(x / 0.0254) for x in dpi]
            _chunk(file, b"pHYs", struct.pack(">IIB", *metres, 1))
        _chunk(file, b"IDAT", zlib.compress(filtered.tobytes(), 6))
        _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], name: bytes, body: bytes) -> None:
    file.write(struct.pack(">I", len(body)) + name + body)
    file.write(struct.pack(">I", zlib.crc32(name + body)))
