"""Lewis weights of keys on disk: the bits of the operator, for any tile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.tiled.lewis import job, lewis_weights


def test_tiles_give_the_bits_of_the_whole(tmp_path: Path) -> None:
    k = np.random.default_rng(0).standard_normal((2500, 4)).astype(np.float32)
    k[:7] *= 30
    np.save(tmp_path / "k.npy", k)
    for p, steps in ((1.0, 40), (4.0, 3)):
        expected = nlattn.lewis_weights(k, p, steps=steps)
        assert (expected.iterations < steps) == (steps == 40)
        for tile in (1, 100):
            out = tmp_path / f"{p}-{tile}"
            lewis_weights(tmp_path / "k.npy", p, out, tile=tile, steps=steps)
            assert (np.load(out / "weights.npy") == expected.weights).all()
            assert np.load(out / "residual.npy").max() == expected.residual
            names = ["manifest.jsonl", "residual.npy", "weights.npy"]
            assert sorted(path.name for path in out.iterdir()) == names


def test_keys_that_cannot_be_are_refused(tmp_path: Path) -> None:
    path, rng = tmp_path / "k.npy", np.random.default_rng(0)
    np.save(path, np.ones((9, 2)))
    with pytest.raises(ValueError, match="k has 9 keys, expected more than 1024; nlattn"):
        job(path, 1.0)
    np.save(path, np.ones((1100, 2)))
    with pytest.raises(ValueError, match="keys are too near dependence for two passes"):
        lewis_weights(path, 1.0, tmp_path / "a")
    k = rng.standard_normal((1100, 2))
    k[5] = 0
    np.save(path, k)
    with pytest.raises(ValueError, match=r"k\[5\] is 0 or not finite; leave keys of zeros out"):
        lewis_weights(path, 1.0, tmp_path / "b")
    np.save(path, rng.standard_normal((1100, 2)) * 1e-290)
    with pytest.raises(ValueError, match="keys are near the edges of float64"):
        lewis_weights(path, 1.0, tmp_path / "c")
