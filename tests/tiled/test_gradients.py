"""Gradients by tiles of queries and of keys: the bits of the operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.engines import components
from nlattn.tiled import gradients
from nlattn.tiled.arrays import scram_arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 18)
    rng = np.random.default_rng(0)
    shapes = {"q": (11, 9, 5), "k": (7, 13, 5), "v": (7, 13, 2), "dout": (11, 9, 2)}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    paths = {name: tmp_path / f"{name}.npy" for name in arrays}
    for name, x in arrays.items():
        np.save(paths[name], x)
    folder = tmp_path / "map"
    three = [paths[name] for name in "qkv"]
    scram_arrays(*three, folder, scale=0.7, kind="union", window=3, iterations=1)
    A = nlattn.open_map(folder)
    expected = nlattn.scram_vjp(*arrays.values(), support=A.support, scale=0.7)
    for tile in (1, 5, 100):
        out = tmp_path / str(tile)
        gradients.scram_vjp(folder, *three, paths["dout"], out, tile=tile, scale=0.7)
        for name, whole in zip(("dq", "dk", "dv"), expected, strict=True):
            assert (np.load(out / f"{name}.npy") == whole).all(), name
        names = ["dk.npy", "dq.npy", "dv.npy", "manifest.jsonl"]
        assert sorted(p.name for p in out.iterdir()) == names
    np.save(paths["dout"], arrays["v"])
    with pytest.raises(ValueError, match=r"dout is float\d\d \(7, 13, 2\), expected float\d\d "):
        gradients.job(folder, *three, paths["dout"])
    with pytest.raises(ValueError, match=r"the map is of \(11, 9\) queries and \(7, 13\) keys, "):
        gradients.job(folder, paths["k"], None, paths["v"], paths["dout"])
