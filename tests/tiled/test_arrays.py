"""Arrays on disk by tiles: the bits of the operators on the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.cli import main
from nlattn.engines import components
from nlattn.tiled import arrays
from nlattn.tiled.arrays import scram_arrays


def saved(tmp_path: Path, dtype: str) -> tuple[list[np.ndarray], list[Path]]:
    rng = np.random.default_rng(0)
    made = [rng.standard_normal(shape).astype(dtype) for shape in ((11, 9, 5), (7, 13, 5))]
    made.append(rng.standard_normal((7, 13, 2)).astype(dtype))
    paths = [tmp_path / f"{name}.npy" for name in "qkv"]
    for path, x in zip(paths, made, strict=True):
        np.save(path, x)
    return made, paths


@pytest.mark.parametrize("candidates", ["random", "tree"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, candidates: str
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 18)
    (q, k, v), paths = saved(tmp_path, dtype)
    how = {"candidates": candidates, "iterations": 1, "topk": 2, "seed": 3}
    field = nlattn.patchmatch(q, k, scale=0.7, **how)
    support = nlattn.scram_support(field, kind="union", window=3)
    A = nlattn.scram_map(q, k, scale=0.7, field=field, support=support)
    for tile in (1, 100):
        out = tmp_path / f"out{tile}"
        scram_arrays(*paths, out, tile=tile, scale=0.7, kind="union", window=3, **how)
        assert (np.load(out / "matches.npy") == field.index).all()
        found = nlattn.open_map(out)
        assert (found.query_grid, found.key_grid) == ((11, 9), (7, 13))
        assert (found.weights == A.weights).all()
        assert (found.support.indices == support.indices).all()
        assert found.dtype == dtype
        assert (np.load(out / "out.npy").reshape(99, 2) == A @ v.reshape(91, 2)).all()
        assert not (out / "scale.npy").exists()


def test_the_command_takes_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, (q, k, v) = saved(tmp_path, "float32")
    arguments = ["map", "--q", str(q), "--k", str(k), "--tile", "64", "--iterations", "1"]
    arguments += ["--candidates", "random", "--quiet", "--out"]
    assert main([*arguments, str(tmp_path / "map"), "--v", str(v)]) == 0
    assert np.load(tmp_path / "map" / "out.npy").shape == (11, 9, 2)
    assert main([*arguments, str(tmp_path / "keys")]) == 0
    assert not (tmp_path / "keys" / "out.npy").exists()
    code = main([*arguments, str(tmp_path / "x"), "--picture", str(tmp_path / "a.tif")])
    assert code == 2
    assert "--picture and --query go with an IMAGE" in capsys.readouterr().err


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, (q, k, v) = saved(tmp_path, "float32")
    for name, x, text in (
        ("k", np.zeros((7, 13, 4), np.float32), "k has 4 channels, expected 5 from q"),
        ("k", np.zeros((7, 13, 5)), "arrays must share one dtype"),
        ("v", np.zeros((7, 12, 2), np.float32), r"v has shape \(7, 12, 2\), expected \(7, 13, e\)"),
        ("q", np.zeros((9, 5), np.float32), r"q has shape \(9, 5\), expected \(H, W, channels\)"),
        ("q", np.zeros((9, 5, 5), np.float16), "q holds float16, expected float32 or float64"),
    ):
        np.save(tmp_path / "other.npy", x)
        paths = {"q": q, "k": k, "v": v} | {name: tmp_path / "other.npy"}
        with pytest.raises((ValueError, TypeError), match=text):
            arrays.job(**paths)
    x = np.load(k)
    x[6, 2, 1] = np.nan
    np.save(k, x)
    with pytest.raises(ValueError, match=r"k\[6, 2, 1\] is not finite, expected finite values"):
        scram_arrays(q, k, v, tmp_path / "out")
