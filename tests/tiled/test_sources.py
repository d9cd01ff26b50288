"""Pictures read by rows: the numbers of the whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn import images
from nlattn.tiled import sources
from nlattn.tiled.scram import scram

tifffile = pytest.importorskip("tifffile")


def picture(dtype: str, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(0).random((37, 21, channels))
    return values.astype(dtype) if dtype[0] == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def read(path: Path) -> np.ndarray:
    """All of it, in three parts; and it is a file of its own."""
    source = sources.source(path)
    height = source.shape[0]
    parts = [sources.rows(source, *ends) for ends in ((0, 5), (5, 30), (30, height))]
    assert sources.digest(source) == sources.digest(sources.source(path))
    return np.concatenate(parts)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(
    "layout",
    [{}, {"rowsperstrip": 4}, {"tile": (16, 16)}, {"tile": (16, 32), "compression": "zlib"}],
)
def test_tiffs_are_read_by_rows(tmp_path: Path, dtype: str, layout: dict[str, object]) -> None:
    x, path = picture(dtype), tmp_path / "a.tif"
    tifffile.imwrite(path, x, photometric="rgb", **layout)
    expected = x.astype(np.float32) / (np.iinfo(dtype).max if dtype[0] == "u" else 1)
    found = read(path)
    assert found.dtype == np.float32
    assert (found == expected.astype(np.float32)).all()
    if dtype == "uint8":
        assert (found == images.load(path)).all()


def test_grey_arrays_and_other_pictures_are_read(tmp_path: Path) -> None:
    x = picture("uint16", 1)
    np.save(tmp_path / "a.npy", x[..., 0])
    images.save(tmp_path / "a.png", x.astype(np.float32) / 65535, bits=16)
    tifffile.imwrite(tmp_path / "a.tiff", x[..., 0])
    first = read(tmp_path / "a.npy")
    assert first.shape == (37, 21, 1)
    for name in ("a.png", "a.tiff"):
        assert (read(tmp_path / name) == first).all()


def test_zarr_and_ome_zarr_are_read(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    x = picture("uint8")
    plain = zarr.create_array(tmp_path / "a.zarr", shape=x.shape, chunks=(8, 8, 3), dtype="u1")
    plain[:] = x
    group = zarr.open_group(tmp_path / "b.zarr", mode="w")
    level = group.create_array("0", shape=(1, 3, 37, 21), chunks=(1, 1, 16, 16), dtype="u1")
    level[:] = x.transpose(2, 0, 1)[None]
    axes = [{"name": name} for name in "tcyx"]
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    expected = x.astype(np.float32) / 255
    assert (read(tmp_path / "a.zarr") == expected).all()
    assert (read(tmp_path / "b.zarr") == expected).all()
    group.attrs["ome"] = {}
    with pytest.raises(ValueError, match="is a group without multiscales"):
        sources.source(tmp_path / "b.zarr")
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(ValueError, match="is no zarr array or group"):
        sources.source(tmp_path / "c.zarr")


def test_dask_arrays_are_computed_by_rows(tmp_path: Path) -> None:
    dask = pytest.importorskip("dask.array")
    x = picture("uint8")
    array = dask.from_array(x, chunks=(10, 7, 3))
    source = sources.source(array + np.uint8(0))
    found = np.concatenate([sources.rows(source, 0, 12), sources.rows(source, 12, 37)])
    assert (found == x.astype(np.float32) / 255).all()
    assert sources.digest(source) == sources.digest(sources.source(array))
    np.save(tmp_path / "image.npy", x)
    how = {"patch": 3, "channels": 3, "iterations": 0}
    for name, image in (("a", array), ("b", tmp_path / "image.npy")):
        scram(image, tmp_path / name, **how)
    for path in (tmp_path / "a").glob("*.npy"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    with pytest.raises(TypeError, match="image is a ndarray, expected a path, or a dask array"):
        sources.source(x)
    with pytest.raises(ValueError, match="image holds int64, expected unsigned"):
        sources.source(array.astype(int))


def test_what_xarray_has_around_a_dask_array_is_read() -> None:
    xarray, dask = pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    x = picture("float32", 1)
    labelled = xarray.DataArray(dask.from_array(x, chunks=8), dims=("y", "x", "c"))
    assert (sources.rows(sources.source(labelled), 3, 20) == x[3:20]).all()


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    x, path = picture("uint8"), tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([x, x]), photometric="rgb")
    with pytest.raises(ValueError, match="has 2 pages, expected one picture"):
        sources.source(path)
    tifffile.imwrite(path, x.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    with pytest.raises(ValueError, match="stores channels apart"):
        sources.source(path)
    tifffile.imwrite(path, x.astype(np.int16), photometric="rgb")
    with pytest.raises(ValueError, match="holds int16, expected unsigned"):
        sources.source(path)
    tifffile.imwrite(path, x[..., 0], photometric="miniswhite")
    with pytest.raises(ValueError, match="is neither grey nor RGB"):
        sources.source(path)
    np.save(tmp_path / "a.npy", np.zeros(4))
    with pytest.raises(ValueError, match=r"has shape \(4,\), expected \(H, W\)"):
        sources.source(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.full((2, 2), np.nan))
    np.save(tmp_path / "beyond.npy", np.full((3, 3), 1e300))
    with pytest.raises(ValueError, match=r"beyond\.npy holds numbers that float32 does not"):
        sources.rows(sources.source(tmp_path / "beyond.npy"), 0, 3)
    with pytest.raises(ValueError, match="holds NaN or infinities"):
        sources.rows(sources.source(tmp_path / "a.npy"), 0, 2)


TIFFS: dict[str, tuple[dict[str, Any], str]] = {
    "turned": ({"extratags": [(274, 3, 1, 6, True)]}, "is stored turned or mirrored, expected up"),
    "of 12 bits": ({"bitspersample": 12}, "holds 12-bit pixels, expected 8, 16 or more"),
    "white is 0": ({"photometric": "miniswhite"}, "is neither grey nor RGB without opacity"),
}


@pytest.mark.parametrize("what", TIFFS)
def test_tiffs_that_would_be_read_wrongly_are_refused(what: str, tmp_path: Path) -> None:
    options, text = TIFFS[what]
    path = tmp_path / "x.tif"
    given = {key: value for key, value in options.items() if key != "bitspersample"}
    tifffile.imwrite(path, np.zeros((4, 6), np.uint16), **given)
    if "bitspersample" in options:
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags["BitsPerSample"].overwrite(options["bitspersample"])
    with pytest.raises(ValueError, match=f"^tiled: x.tif {text}"):
        sources.source(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
@pytest.mark.parametrize("name", ["x.tif", "x.npy", "x.png"])
def test_pipes_and_junk_are_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"^tiled: {name} is a pipe, expected a plain file$"):
        sources.source(tmp_path / name)
    (tmp_path / name).unlink()
    for content in (b"", b"II*\0" + bytes(range(200)), bytes(300)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^tiled: .*{name}"):
            sources.source(tmp_path / name)
