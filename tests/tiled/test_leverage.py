"""Leverage of keys on disk: the bits of the operator, for any tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.tiled.leverage import job, leverage_scores


@pytest.mark.parametrize("method", ["qr", "svd"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_give_the_bits_of_the_whole(tmp_path: Path, dtype: str, method: str) -> None:
    k = np.random.default_rng(0).standard_normal((700, 6)).astype(dtype)
    k[:, 4] = k[:, 1] * 2**-20
    k[:, 5] *= 1e9
    np.save(tmp_path / "k.npy", k)
    expected, rank = nlattn.leverage_scores(k, method=method, return_rank=True)
    for tile in (11, 100):
        out = tmp_path / str(tile)
        leverage_scores(tmp_path / "k.npy", out, tile=tile, method=method)
        assert (np.load(out / "leverage.npy") == expected).all()
        assert np.load(out / "rank.npy")[0] == rank == 5
        names = ["leverage.npy", "manifest.jsonl", "rank.npy"]
        assert sorted(p.name for p in out.iterdir()) == names


def test_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    k = np.zeros((9, 2), np.float32)
    k[7, 1] = np.inf
    np.save(tmp_path / "k.npy", k)
    with pytest.raises(ValueError, match=r"k\[7, 1\] is not finite, expected finite values"):
        leverage_scores(tmp_path / "k.npy", tmp_path / "out")
    with pytest.raises(ValueError, match=r"rcond=2, expected from 0 to less than 1"):
        job(tmp_path / "k.npy", rcond=2)
    np.save(tmp_path / "k.npy", k[0])
    with pytest.raises(ValueError, match=r"k has shape \(2,\), expected \(n, d\)"):
        job(tmp_path / "k.npy")
