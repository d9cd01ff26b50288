"""What a run has made, for other programs."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.tiled import exports, lazy, pyramid, sources
from nlattn.tiled.nl_means import nl_means


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of 300 x 270 in 16 bits, denoised, with two smaller copies."""
    monkeypatch.setattr(pyramid, "_SMALL", 80)
    x = np.random.default_rng(0).integers(0, 65536, (300, 270, 3), np.uint16)
    np.save(tmp_path / "image.npy", x)
    nl_means(tmp_path / "image.npy", tmp_path / "out", sigma=0.1, patch_size=3, patch_distance=0)
    return tmp_path


def expected(values: np.ndarray, bits: int) -> np.ndarray:
    most = 2**bits - 1
    return np.rint(values.astype(float) * most) if bits else values


@pytest.mark.parametrize("bits", [0, 8, 16])
def test_a_tiff_has_the_picture_and_its_smaller_copies(folder: Path, bits: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    exports.picture(folder / "out", folder / "a.tif", bits=bits)
    with tifffile.TiffFile(folder / "a.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled
        levels = file.series[0].levels
        assert [level.shape[:2] for level in levels] == [(300, 270), (150, 135), (75, 68)]
        for number, level in enumerate(levels):
            name = "out" if number == 0 else f"out_{number}"
            whole = np.load(folder / "out" / f"{name}.npy")
            assert (level.asarray() == expected(whole, bits)).all()
    source = sources.source(folder / "a.tif")
    assert (source.shape, source.bits) == ((300, 270, 3), bits)
    whole = expected(np.load(folder / "out" / "out.npy"), bits)
    if bits:
        whole = whole.astype(np.float32) / np.float32(2**bits - 1)
    assert (sources.rows(source, 250, 300) == whole[250:]).all()
    assert not list(folder.glob(".*"))


def test_ome_zarr_has_the_picture_and_its_smaller_copies(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr")
    monkeypatch.setattr(exports, "TILE", 64)
    monkeypatch.setattr(exports, "SHARD", 128)
    exports.picture(folder / "out", folder / "a.zarr", bits=16)
    group = zarr.open_group(folder / "a.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    (scale,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in scale["axes"]] == ["c", "y", "x"]
    for number, each in enumerate(scale["datasets"]):
        name = "out" if number == 0 else f"out_{number}"
        whole = expected(np.load(folder / "out" / f"{name}.npy"), 16)
        assert (group[each["path"]][:] == whole.transpose(2, 0, 1)).all()
    source = sources.source(folder / "a.zarr")
    assert (source.shape, source.bits) == ((300, 270, 3), 16)


def test_a_name_that_is_taken_or_of_no_format_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the picture is 'a.png', expected a name that ends in"):
        exports.picture(folder / "out", folder / "a.png")
    (folder / "a.tif").write_text("mine")
    with pytest.raises(FileExistsError, match="exists; another name is free"):
        exports.picture(folder / "out", folder / "a.tif")
    assert (folder / "a.tif").read_text() == "mine"


def test_the_command_writes_a_picture_of_the_same_bits(folder: Path) -> None:
    pytest.importorskip("tifffile")
    arguments = ["denoise", str(folder / "image.npy"), "--sigma", "9", "--tile", "64", "--quiet",
                 "--patch", "3", "--distance", "0", "--out", str(folder / "clean")]  # fmt: skip
    assert main([*arguments, "--picture", str(folder / "b.tif")]) == 0
    assert sources.source(folder / "b.tif").bits == 16
    assert main([*arguments, "--resume", "--picture", str(folder / "c.tif"), "--bits", "8"]) == 0
    assert sources.source(folder / "c.tif").bits == 8
    assert main([*arguments, "--resume", "--picture", str(folder / "c.tif")]) == 0


def test_dask_and_xarray_read_blocks_by_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask.array")
    monkeypatch.setattr(lazy, "_BLOCK", 100 * 270 * 3 * 4)
    whole = np.load(folder / "out" / "out.npy")
    x = lazy.as_dask(folder / "out")
    assert x.chunks[0] == (100, 100, 100)
    assert len(pickle.dumps(x)) < 10_000
    assert (x[90:110].compute(scheduler="synchronous") == whole[90:110]).all()
    xarray = pytest.importorskip("xarray")
    named = lazy.as_xarray(folder / "out", "out_1")
    assert isinstance(named, xarray.DataArray)
    assert named.dims == ("y", "x", "c")
    assert (named.isel(y=3).values == np.load(folder / "out" / "out_1.npy")[3]).all()
