"""Pictures as their formats define them: PNG and TIFF of every depth, kind, order and packing."""

from __future__ import annotations

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn import images
from nlattn.files import picture

pytest.importorskip("PIL")
from PIL import Image, ImageCms

DATA = Path(__file__).parents[1] / "data" / "pictures"
RNG = np.random.default_rng(0)
CLOSE = 2e-7  # a rounding to float32, and one of the opacity


def paeth(a: Any, b: Any, c: Any) -> Any:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))


def filtered(rows: Any, wide: int) -> bytes:
    """Rows of bytes as PNG filters them, one of the five kinds after the other."""
    out, above = b"", np.zeros(rows.shape[1], int)
    for i, row in enumerate(rows.astype(int)):
        left, corner = (np.concatenate([np.zeros(wide, int), x[:-wide]]) for x in (row, above))
        guess = [0, left, above, (left + above) // 2, paeth(left, above, corner)][i % 5]
        out += bytes([i % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def packed(x: Any, depth: int) -> Any:
    """Samples (h, w, c) as bytes of rows."""
    if depth == 16:
        return np.ascontiguousarray(x, ">u2").reshape(len(x), -1).view(np.uint8)
    flat = x.reshape(len(x), -1).astype(np.uint8)
    bits = np.unpackbits(flat[:, :, None], axis=2)[:, :, 8 - depth :]
    return np.packbits(bits.reshape(len(x), -1), axis=1)


PASSES = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
)  # fmt: skip


def png(x: Any, depth: int, kind: int, key: Any = None, interlaced: bool = False) -> bytes:
    """A PNG file, written from its specification."""
    wide = max(1, depth * x.shape[2] // 8)
    parts = [x[t::h, l::w] for t, l, h, w in PASSES] if interlaced else [x]
    data = b"".join(filtered(packed(part, depth), wide) for part in parts if part.size)

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    head = struct.pack(">IIBBBBB", x.shape[1], x.shape[0], depth, kind, 0, 0, int(interlaced))
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    ends = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + transparent + ends


KINDS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 4: (2, (8, 16)), 6: (4, (8, 16))}
PNGS = [
    (kind, depth, key, interlaced)
    for kind, (_, depths) in KINDS.items()
    for depth in depths
    for key in (False, True)[: 2 if kind in (0, 2) else 1]
    for interlaced in (False, True)
]


@pytest.mark.parametrize(("kind", "depth", "key", "interlaced"), PNGS)
def test_png_is_read_as_its_samples_say(
    kind: int, depth: int, key: bool, interlaced: bool, tmp_path: Path
):
    most = (1 << depth) - 1
    x = RNG.integers(0, most + 1, (11, 13, KINDS[kind][0]))
    chosen = x[4, 5] if key else None
    (tmp_path / "x.png").write_bytes(png(x, depth, kind, chosen, interlaced))
    got = picture.read("load", tmp_path / "x.png", max_pixels=1000)
    want = x / most
    if kind in (4, 6):
        want = want[..., :-1] * want[..., -1:] + 1 - want[..., -1:]
    if key:
        want = np.where((x == chosen).all(-1, keepdims=True), 1, want)
    assert np.abs(got.pixels - want).max() < CLOSE
    assert got.bits == max(8, depth)


def test_the_transparent_value_of_two_bits():
    assert images.load(DATA / "g2_trns.png")[0, :, 0].tolist() == pytest.approx([0, 1, 2 / 3, 1])


def test_a_picture_of_white_zero_is_turned():
    got = images.load(DATA / "miniswhite16.tif")[..., 0] * 65535
    assert np.abs(got - [[0, 20000], [40000, 65535]]).max() < 0.01


TIFFS = list(
    itertools.product(
        ("miniswhite", "minisblack", "rgb"), ("u1", "u2", "i1", "i2", "u4", "f4"), (False, True)
    )
)


@pytest.mark.parametrize(("photometric", "dtype", "alpha"), TIFFS)
def test_tiff_is_read_as_tifffile_wrote_it_or_refused_by_name(
    photometric: str, dtype: str, alpha: bool, tmp_path: Path
):
    tifffile = pytest.importorskip("tifffile")
    colours = 3 if photometric == "rgb" else 1
    x = RNG.integers(0, 120, (20, 24, colours + alpha)).astype(dtype)
    if dtype == "u2":
        x = RNG.integers(0, 65536, x.shape).astype(dtype)
    read = 0
    ways = itertools.product((None, "zlib"), (None, (16, 16)), "<>", (False, True), (False, True))
    for compression, tile, order, predictor, apart in ways:
        if (predictor and (compression is None or dtype == "f4")) or (apart and x.shape[2] == 1):
            continue
        planes = np.moveaxis(x, 2, 0) if apart else x
        tifffile.imwrite(
            tmp_path / "x.tif", planes if x.shape[2] > 1 else x[..., 0], photometric=photometric,
            planarconfig=("separate" if apart else "contig") if x.shape[2] > 1 else None,
            compression=compression, tile=tile, byteorder=order, predictor=predictor or None,
            extrasamples=["unassalpha"] if alpha else None,
        )  # fmt: skip
        try:
            got = picture.read("load", tmp_path / "x.tif", max_pixels=1000)
        except ValueError as error:
            assert "x.tif cannot be read: it " in str(error)  # noqa: PT017
            continue
        want = x / np.iinfo(dtype).max
        opacity = want[..., colours:] if alpha else 1
        want = want[..., :colours] if colours == 3 or alpha else want
        want = 1 - want if photometric == "miniswhite" else want
        assert np.abs(got.pixels - (want * opacity + 1 - opacity)).max() < CLOSE
        assert got.bits == 8 * np.dtype(dtype).itemsize
        read += 1
    usual = dtype in ("u1", "u2") and not (photometric != "rgb" and alpha)
    assert read > 0 or not usual


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"photometric": "cielab"}, "CIELab colours"),
        ({"photometric": "cfa"}, "raw colours of a sensor"),
        ({"photometric": "ycbcr"}, "YCbCr colours outside JPEG"),
    ],
)
def test_colours_of_other_kinds_are_refused_by_name(options: Any, words: str, tmp_path: Path):
    tifffile = pytest.importorskip("tifffile")
    x = np.zeros((8, 8) if options["photometric"] == "cfa" else (8, 8, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", x, **options)
    with pytest.raises(ValueError, match=words):
        images.load(tmp_path / "x.tif")


@pytest.mark.parametrize(
    ("table", "most", "bits"),
    [
        (RNG.integers(0, 65536, (3, 256)), 65535, 16),
        (RNG.integers(0, 256, (3, 256)) * 257, 65535, 8),  # bytes, written twice
        (RNG.integers(0, 256, (3, 256)) * 256, 65280, 8),  # bytes, above a byte of 0
        (RNG.integers(0, 256, (3, 256)), 255, 16),  # bytes, which some programs write as they are
    ],
)
def test_a_palette_keeps_its_digits(table: Any, most: int, bits: int, tmp_path: Path):
    tifffile = pytest.importorskip("tifffile")
    x = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = table.astype(np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", x, photometric="palette", colormap=table)
    got = picture.read("load", tmp_path / "x.tif", max_pixels=1000)
    assert np.abs(got.pixels - np.moveaxis(table[:, x], 0, 2) / most).max() < CLOSE
    assert got.bits == bits


def test_bits_of_one_are_black_and_white(tmp_path: Path):
    tifffile = pytest.importorskip("tifffile")
    x = RNG.integers(0, 2, (9, 17)).astype(bool)
    for photometric in ("minisblack", "miniswhite"):
        tifffile.imwrite(tmp_path / "x.tif", x, photometric=photometric)
        want = x if photometric == "minisblack" else ~x
        assert (images.load(tmp_path / "x.tif")[..., 0] == want).all()


@pytest.mark.parametrize("suffix", [".tif", ".png", ".gif", ".webp"])
def test_of_several_pages_one_is_named(suffix: str, tmp_path: Path):
    frames = [Image.fromarray(np.full((4, 5, 3), 80 * i, np.uint8)) for i in range(3)]
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with pytest.raises(ValueError, match="it has 3 pages or frames, expected one; name one of 0"):
        images.load(path)
    for i in range(3):
        assert np.abs(images.load(path, page=i) * 255 - 80 * i).max() < 1
    with pytest.raises(ValueError, match="it has no page 3, expected 0 to 2"):
        images.load(path, page=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_every_orientation_is_turned_upright(orientation: int, suffix: str, tmp_path: Path):
    x = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(x)
    image.save(tmp_path / f"x{suffix}", exif=exif)
    turns = {
        1: x, 2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 5: x.swapaxes(0, 1),
        6: np.rot90(x, -1), 7: x.swapaxes(0, 1)[::-1, ::-1], 8: np.rot90(x),
    }  # fmt: skip
    got = images.load(tmp_path / f"x{suffix}")
    assert np.abs(got * 255 - turns[orientation]).max() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_written_and_read_back(channels: int, tmp_path: Path):
    x = RNG.integers(0, 65536, (7, 9, channels))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.write(tmp_path / "x.png", x / 65535, bits=16, icc=profile, dpi=(300, 150))
    got = picture.read("load", tmp_path / "x.png", max_pixels=1000)
    assert (np.rint(got.pixels * 65535) == x).all()
    assert got.bits == 16
    assert got.dpi == pytest.approx((300, 150), abs=0.02)
    assert got.icc == (profile if channels == 3 else None)  # a profile of colours, not of grey
    with pytest.raises(ValueError, match=r"a \.jpg file holds 8 bits, expected a \.png for 16-bit"):
        picture.write(tmp_path / "x.jpg", x / 65535, bits=16)


def test_a_jpeg_keeps_the_tables_of_its_source(tmp_path: Path):
    x = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "a.jpg", quality=61, subsampling=1)
    source = picture.read("load", tmp_path / "a.jpg", max_pixels=1000)
    picture.write(tmp_path / "b.jpg", source.pixels, jpeg=source.jpeg)
    picture.write(tmp_path / "c.jpg", source.pixels)
    with Image.open(tmp_path / "a.jpg") as a, Image.open(tmp_path / "b.jpg") as b:
        assert a.quantization == b.quantization
    with Image.open(tmp_path / "c.jpg") as c:
        Image.new("RGB", (8, 8)).save(tmp_path / "d.jpg", quality=95)
        with Image.open(tmp_path / "d.jpg") as d:
            assert c.quantization == d.quantization


def test_deep_ppm_is_grey_or_refused(tmp_path: Path):
    x = RNG.integers(0, 65536, (3, 4))
    (tmp_path / "x.pgm").write_bytes(b"P5 4 3 65535\n" + x.astype(">u2").tobytes())
    assert np.abs(images.load(tmp_path / "x.pgm")[..., 0] * 65535 - x).max() < 0.01
    (tmp_path / "x.ppm").write_bytes(b"P6 4 1 65535\n" + x[:2, :3].astype(">u2").tobytes() * 2)
    with pytest.raises(ValueError, match="it holds 16-bit colours"):
        images.load(tmp_path / "x.ppm")
