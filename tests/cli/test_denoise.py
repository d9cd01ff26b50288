"""``nlattn denoise``: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.files import picture as pictures
from tests.cli.commands import refused, run

pytest.importorskip("PIL")


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    images.save(tmp_path / "noisy.png", 0.5 + 0.1 * rng.standard_normal((12, 14, 3)))
    return tmp_path / "noisy.png"


def test_denoise_writes_a_picture_and_a_report(capsys, tmp_path: Path, noisy: Path):
    out = tmp_path / "out"
    code, said, _ = run(capsys, "denoise", noisy, "--sigma", 25.5, "--out", out, "--patch", 3)
    assert code == 0
    assert "noisy.png, 12 x 14: denoised in" in said
    assert "sigma is 25.5" in said
    assert sorted(p.name for p in out.iterdir()) == ["denoised.png", "report.json"]
    assert images.load(out / "denoised.png").std() < images.load(noisy).std() / 2
    text = refused(capsys, "denoise", noisy, "--sigma", 25, "--out", out)
    assert "exists; --force overwrites it" in text
    code, said, _ = run(
        capsys, "denoise", noisy, "--sigma", 0.1, "--out", out, "--force", "--json", "--patch", 3
    )
    assert code == 0
    assert json.loads(said)["sigma"] == 0.1
    assert json.loads(said)["written"] == [str(out / "denoised.png"), str(out / "report.json")]


def test_denoise_writes_one_picture_where_told(capsys, tmp_path: Path, noisy: Path):
    code, said, _ = run(
        capsys, "denoise", noisy, "--sigma", 20, "--out", tmp_path / "clean.png", "--quiet",
        "--patch", 3, "--strength", 1.5,
    )  # fmt: skip
    assert (code, said) == (0, "")
    assert images.load(tmp_path / "clean.png").shape == (12, 14, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean.png", "noisy.png"]


def test_denoise_keeps_16_bits(capsys, tmp_path: Path):
    x = np.random.default_rng(0).integers(20_000, 40_000, (9, 10, 3))
    pictures.write(tmp_path / "deep.png", x / 65535, bits=16, dpi=(300, 300))
    call = ["denoise", tmp_path / "deep.png", "--sigma", 0.1, "--patch", 3, "--out"]
    assert "deep.png has 16 bits, a.jpg holds 8" in refused(capsys, *call, tmp_path / "a.jpg")
    code, said, _ = run(capsys, *call, tmp_path / "o")
    assert code == 0
    assert "16 bits" in said
    got = pictures.read("load", tmp_path / "o" / "denoised.png", max_pixels=1000)
    assert got.bits == 16
    assert got.dpi == pytest.approx((300, 300), abs=0.02)
    want = nlattn.nl_means(images.load(tmp_path / "deep.png"), sigma=0.1, patch_size=3)
    assert np.abs(got.pixels - want).max() <= 0.51 / 65535
    assert run(capsys, *call, tmp_path / "a.jpg", "--bits", 8)[0] == 0
    assert "JPEG of quality 95" in run(capsys, *call, tmp_path / "b.jpg", "--bits", 8)[1]


def test_denoise_says_what_is_wrong(capsys, tmp_path: Path, noisy: Path):
    for sigma in ("0", "much", "inf"):
        assert f"'{sigma}' is no number above 0" in refused(
            capsys, "denoise", noisy, "--sigma", sigma
        )
    text = refused(capsys, "denoise", tmp_path / "none.png", "--sigma", 1, "--out", tmp_path / "o")
    assert "none.png: No such file" in text
    text = refused(capsys, "denoise", noisy, "--sigma", 9, "--patch", 4, "--out", tmp_path / "o")
    assert "--patch 4 is even" in text
    assert not (tmp_path / "o").exists()
