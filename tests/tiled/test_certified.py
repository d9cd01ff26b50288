"""Certified attention by groups of queries: the bits of the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn import _check, images
from nlattn.cli import main
from nlattn.engines import certified as engine
from nlattn.tiled import certified

pytestmark = pytest.mark.jit


@pytest.fixture(autouse=True)
def _trees_of_few_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_FEW", 0)
    monkeypatch.setattr(engine, "_MANY", 0)


def clustered(dtype: str, spread: float, n: int = 900) -> np.ndarray:
    """Points in clusters: what trees are good at if `spread` is small."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.standard_normal((12, 6))
    x = centres[rng.integers(0, 12, n)] + spread * rng.standard_normal((n, 6))
    return x.astype(dtype)


def fewer(sound: Callable[..., Any]) -> Callable[..., Any]:
    """As if rounding left too little for a third of the panels of every part."""

    def find(*arguments: Any) -> Any:
        part, left = sound(*arguments)
        panels = part.asked.panels
        left = np.union1d(left, engine.queries_of(part, panels[::3]))
        kept = _check.frozen(np.delete(panels, np.s_[::3]))
        return part._replace(asked=part.asked._replace(panels=kept)), left

    return find


@pytest.mark.parametrize(
    ("dtype", "spread", "lengthened", "options"),
    [
        ("float32", 0.2, 0, {"scale": 1.0}),
        ("float64", 0.2, 0, {"weight": "gaussian", "tolerance": 1e-6}),
        ("float32", 0.2, 0, {"scale": 30.0, "tolerance": 1e-5}),
        ("float32", 0.2, 100, {"scale": 2.0, "tolerance": 1e-4}),
        ("float32", 9.0, 0, {}),
        ("float32", 0.2, 0, {"tolerance": 0.0}),
    ],
)
def test_groups_give_the_bits_of_the_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    spread: float,
    lengthened: int,
    options: dict[str, Any],
) -> None:
    if lengthened:  # panels of both precisions, and queries that are left to dense attention
        monkeypatch.setattr(engine, "_SINGLE", 8)
        monkeypatch.setattr(engine, "_sound", fewer(engine._sound))
    q, k = clustered(dtype, spread)[:300], clustered(dtype, spread)
    q[:lengthened] *= 40
    v = np.random.default_rng(1).standard_normal((900, 2)).astype(dtype) + 3
    expected = nlattn.certified_attention(q, k, v, return_lse=True, return_missed=True, **options)
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    grids = (15, 20), (30, 30), (30, 30)
    for path, x, grid in zip(paths, (q, k, v), grids, strict=True):
        np.save(path, x.reshape(*grid, -1))
    for tile in (5, 100):
        out = tmp_path / f"out{tile}"
        certified.certified_attention(*paths, out, tile=tile, **options)
        for name, whole in zip(("out", "lse", "missed"), expected, strict=True):
            found = np.load(out / f"{name}.npy")
            assert (found.reshape(whole.shape) == whole).all(), name
        assert sorted(p.name for p in out.iterdir()) == [
            "lse.npy", "manifest.jsonl", "map.json", "missed.npy", "out.npy"
        ]  # fmt: skip


def test_a_picture_is_attended_to_by_the_command(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((20, 18, 1)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    arguments = ["map", str(tmp_path / "image.npy"), "--method", "certified", "--tile", "8"]
    arguments += ["--patch", "3", "--channels", "3", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(arguments) == 0
    q, k = images.queries_and_keys(images.patch_features(image, patch=3, channels=3))
    scale = images.softmax_scale(q, k, keys=16)
    arrays = (x.reshape(360, -1) for x in (q, k, image))
    expected = nlattn.certified_attention(*arrays, scale=scale)
    assert (np.load(tmp_path / "out" / "out.npy").reshape(360, 1) == expected).all()
