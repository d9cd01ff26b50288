"""Non-local means by bands: the bits of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.engines import components
from nlattn.tiled.nl_means import nl_means


@pytest.mark.parametrize("aggregate", ["patch", "pixel"])
@pytest.mark.parametrize(("patch", "distance"), [(3, 2), (5, 1)])
def test_bands_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aggregate: str, patch: int, distance: int
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 30)
    image = np.random.default_rng(0).random((44, 9, 2)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    options = {"sigma": 0.1, "patch_size": patch, "patch_distance": distance}
    options["aggregate"] = aggregate
    expected = nlattn.nl_means(image, **options)
    for tile in (1, 7, 18):
        records = nl_means(tmp_path / "image.npy", tmp_path / str(tile), tile=tile, **options)
        assert len(records) == {1: 15, 7: 8, 18: 2}[tile]
        assert (np.load(tmp_path / str(tile) / "out.npy") == expected).all()


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 4},
        {"topk": 4, "select": "statistical", "aggregate": "pixel"},
        {"search": "patchmatch", "iterations": 1},
        {"search": "patchmatch", "topk": 3, "select": "statistical", "candidates": "tree"},
        {"search": "union", "topk": 3, "iterations": 1, "seed": 7, "self_weight": "one"},
        {"search": "union", "topk": 2, "iterations": 1, "aggregate": "pixel", "patch_size": 1},
    ],
)
def test_matches_of_the_whole_picture_give_its_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 30)
    image = np.random.default_rng(0).random((17, 9, 2)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    told = {"sigma": 0.2, "patch_size": 3, "patch_distance": 1, **options}
    expected = nlattn.nl_means(image, **told)
    for tile in (1, 100):
        nl_means(tmp_path / "image.npy", tmp_path / str(tile), tile=tile, **told)
        assert (np.load(tmp_path / str(tile) / "out.npy") == expected).all()
        names = sorted(path.name for path in (tmp_path / str(tile)).iterdir())
        assert names == ["manifest.jsonl", "out.npy"]


def test_options_are_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="nl_means: patch_size=4 is even"):
        nl_means(tmp_path / "image.npy", tmp_path / "out", sigma=0.1, patch_size=4)
    assert not (tmp_path / "out").exists()
