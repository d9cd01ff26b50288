"""Maps that stay on the disk: what a map in memory answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn.maps import on_disk
from nlattn.maps.sparse import SparseMap
from nlattn.tiled import overview, pyramid, sources
from nlattn.tiled.scram import scram


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map")
    np.save(path / "image.npy", np.random.default_rng(0).random((9, 8, 2), np.float32))
    scram(path / "image.npy", path / "out", patch=3, channels=3, iterations=1)
    return path / "out"


def test_it_answers_as_a_map_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "_ROWS", 10)
    A = nlattn.open_map(folder)
    own = SparseMap(A.support, A.weights, A.edge_scores, A.lse, A.work, (9, 8), (9, 8))
    v = np.random.default_rng(1).random((72, 3), np.float32)
    assert A.query_grid == A.key_grid == (9, 8)
    assert A.work.scores > 0
    assert (A @ v == own @ v).all()
    assert (A.T @ v == own.T @ v).all()
    assert (A.rows([3, 70]) == own.rows([3, 70])).all()
    for mine, other in zip(A.topk(4), own.topk(4), strict=True):
        assert (mine == other).all()
    image = np.load(folder.parent / "image.npy").reshape(72, 2)
    assert (np.load(folder / "out.npy").reshape(72, 2) == A @ image).all()
    assert not A.weights.flags.owndata


def test_an_overview_adds_up_squares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "_SIDE", 3)
    source = sources.source(folder.parent / "image.npy")
    found = overview.overview(source, folder, [(8, 7), (0, 1)])
    assert (found.step, found.image.shape, found.points.tolist()) == (
        3,
        (3, 3, 2),
        [[2, 2], [0, 0]],
    )
    image = np.load(folder.parent / "image.npy")
    assert np.allclose(found.image[1, 2], image[3:6, 6:8].mean((0, 1)))
    row = nlattn.open_map(folder).rows([71, 1]).reshape(2, 9, 8)
    assert np.allclose(found.weights[0, 1, 2], row[0, 3:6, 6:8].sum())
    assert np.allclose(found.weights.sum((1, 2)), 1)
    with pytest.raises(ValueError, match="the query 9,0 lies outside the 9 x 8 grid"):
        overview.overview(source, folder, [(9, 0)])


def test_a_damaged_map_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no map, or one that is not complete"):
        nlattn.open_map(tmp_path)
    with pytest.raises(ValueError, match="is a file, expected the folder of a run; load_map reads"):
        nlattn.open_map(folder / "lse.npy")

    def damaged(name: str, change: object) -> Path:
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        if isinstance(change, bytes):
            (copy / name).write_bytes(change)
        else:
            np.save(copy / name, change)
        return copy

    indices = np.load(folder / "indices.npy")
    wrong = indices.copy()
    wrong[-1] = 72
    indptr, weights = np.load(folder / "indptr.npy"), np.load(folder / "weights.npy")
    indptr[-1] += 1
    for name, change, text in (
        ("indices.npy", wrong, "holds key 72, expected 0 to 71"),
        ("indices.npy", indices[:-1], "weights.npy has shape"),
        ("indptr.npy", indptr, "has rows 0 to"),
        ("lse.npy", (folder / "lse.npy").read_bytes()[:-8], "but holds"),
        ("map.json", b"{}", "map.json is damaged: 'query_grid'"),
        (
            "weights.npy",
            weights.astype(np.float16),
            "weights.npy holds float16, scores.npy float32",
        ),
        ("scores.npy", weights.astype(float), "weights.npy holds float32, scores.npy float64, exp"),
    ):
        with pytest.raises(ValueError, match=text):
            nlattn.open_map(damaged(name, change))


def test_a_pyramid_halves_until_it_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "_SMALL", 3)
    monkeypatch.setattr(pyramid, "_PIXELS", 8)
    x = np.arange(9 * 6, dtype=np.float32).reshape(9, 6, 1)
    np.save(tmp_path / "image.npy", x)
    scram(tmp_path / "image.npy", tmp_path / "out", patch=3, channels=3, iterations=1, topk=1)
    levels = [np.load(tmp_path / "out" / f"out{end}.npy") for end in ("", "_1", "_2")]
    assert [level.shape[:2] for level in levels] == [(9, 6), (5, 3), (3, 2)]
    assert not (tmp_path / "out" / "out_3.npy").exists()
    first = levels[0]
    assert np.allclose(levels[1][1, 2], first[2:4, 4:6].mean())
    assert np.allclose(levels[1][4, 0], first[8, :2].mean())
