"""``nlattn explore``: folders and maps in, one page out, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.cli import main, pixelwise
from nlattn.cli.methods import Task

pytest.importorskip("PIL")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, a map of it, and a report that names the picture."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).random((5, 7, 3))
    images.save(tmp_path / "x.png", x)
    folder = tmp_path / "run"
    folder.mkdir()
    flat = x.reshape(-1, 3)
    nlattn.attention_map(flat, flat, query_grid=(5, 7), key_grid=(5, 7)).save(folder / "map.npz")
    text = '{"command": "map", "options": {"image": "x.png", "page": null}}'
    (folder / "report.json").write_text(text)
    return folder


def said(capsys, *arguments: object, code: int = 0) -> str:
    assert main([str(a) for a in ("explore", *arguments)]) == code
    got = capsys.readouterr()
    return (got.err if code else got.out).strip()


def test_a_folder_becomes_a_page_of_the_picture_that_its_report_names(capsys, there: Path):
    assert said(capsys, there) == "explorer.html"
    assert Path("explorer.html").read_text().startswith("<!doctype html>")
    assert "explorer.html exists; --force overwrites it" in said(capsys, there, code=2)
    assert said(capsys, there, "--force", "--quiet") == ""
    assert [p.name for p in Path().glob(".*")] == []


def test_a_page_does_not_take_the_place_of_what_it_is_made_from(capsys, there: Path):
    before = (there / "map.npz").read_bytes()
    text = said(capsys, there, "--force", "--out", there / "map.npz", code=2)
    assert text.endswith("map.npz is read, and would be overwritten; another name is free")
    text = said(capsys, there, "--force", "--image", "x.png", "--out", "x.png", code=2)
    assert "x.png is read" in text
    assert (there / "map.npz").read_bytes() == before


def test_two_maps_have_names_of_their_own(capsys, there: Path):
    said(capsys, there, there / "map.npz", "--out", "two.html")
    text = Path("two.html").read_text()
    assert '"name": "run"' in text
    assert '"name": "map"' in text
    said(capsys, there, there, "--out", "same.html")
    assert '"name": "run\'"' in Path("same.html").read_text()


def test_what_is_missing_is_said(capsys, there: Path):
    said(capsys, there / "map.npz", "--image", "x.png", "--out", "a.html")
    text = said(capsys, there / "map.npz", code=2)
    assert text.endswith("map.npz does not say which picture it is of; --image names it")
    for text in ("[]", "", "[" * 99999):
        (there / "report.json").write_text(text)
        assert "report.json is no report of nlattn map" in said(capsys, there, code=2)
    assert "expected one or two" in said(capsys, there, there, there, code=2)
    images.save("y.png", np.zeros((4, 7, 1)))
    text = said(capsys, there, "--image", "y.png", code=2)
    assert "image is 4 x 7, map 'run' has (5, 7)" in text
    assert not Path("explorer.html").exists()
    text = said(capsys, there, "--image", "x.png", "--out", "no/a.html", code=2)
    assert text.startswith("nlattn: no/a.html cannot be written: there is no folder ")


@pytest.mark.parametrize(
    "options",
    ['{"size": "9"}', '{"size": -9}', '{"size": 9.5}', '{"image": 5}', '{"image": ["x.png"]}',
     '{"image": "x.png", "page": "0"}', "5", "null"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["demo", "map"])
def test_reports_of_others_are_read_without_trust(
    capsys, there: Path, command: str, options: str
) -> None:
    (there / "report.json").write_text(f'{{"command": "{command}", "options": {options}}}')
    assert said(capsys, there, code=2).endswith("report.json is no report of nlattn map")


def test_the_share_held_is_that_of_the_weights():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 5, 4))
    task = Task("x", q, k, None, 0.5, [])
    A = nlattn.lev_attention_map(q.reshape(6, 4), k.reshape(10, 4), index=[1, 4, 7], scale=0.5)
    exact = nlattn.attention_map(q.reshape(6, 4), k.reshape(10, 4), scale=0.5).to_dense()
    found = pixelwise.held(A, task)
    assert found is not None
    assert found[1] == 1
    assert np.allclose(found[0].ravel(), exact[:, [1, 4, 7]].sum(1), rtol=1e-12)


def test_of_many_pixels_the_share_held_is_that_of_some(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((7, 11, 4)), rng.standard_normal((2, 5, 4))
    task = Task("x", q, k, None, 0.5, [])
    A = nlattn.lev_attention_map(q.reshape(77, 4), k.reshape(10, 4), index=[1, 4], scale=0.5)
    whole = pixelwise.held(A, task)
    assert whole is not None
    monkeypatch.setattr(pixelwise, "_PAIRS", 769)
    monkeypatch.setattr(pixelwise, "_FEW", 90)  # 770 / 90 scores: one of 3 x 3 pixels
    assert pixelwise.held(A, task) is None  # too few to show
    monkeypatch.setattr(pixelwise, "_FEWEST", 12)
    found = pixelwise.held(A, task)
    assert found is not None
    share, step = found
    assert (share.shape, step) == ((7, 11), 3)
    for i, j in np.ndindex(7, 11):
        middle = min(i // 3 * 3 + 1, 6), min(j // 3 * 3 + 1, 10)
        assert share[i, j] == whole[0][middle]
    known = rng.random(77)
    np.testing.assert_array_equal(pixelwise.held(A, task, known)[0], known.reshape(7, 11))
