"""Runs by tiles: the bits of a whole run, whatever the tiles."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.engines import components, tree_search
from nlattn.tiled import features as features_
from nlattn.tiled import scram as tiled
from nlattn.tiled.scram import scram

RESULTS = ["indices", "indptr", "lse", "match_scores", "matches", "out", "scores", "weights"]


def features(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return images.queries_and_keys(images.patch_features(image, patch=3, channels=4))


def whole(image: np.ndarray, **search: object) -> dict[str, np.ndarray]:
    """What public functions give for all at once."""
    q, k = features(image)
    scale = images.softmax_scale(q, k, keys=4, seed=search.get("seed", 0))
    field = nlattn.patchmatch(q, k, scale=scale, **search)
    support = nlattn.scram_support(field, kind="neighbours", window=1)
    A = nlattn.scram_map(q, k, field=field, support=support, scale=scale)
    return {
        "matches": field.index,
        "match_scores": field.score,
        "indptr": support.indptr,
        "indices": support.indices,
        "weights": A.weights,
        "scores": A.edge_scores,
        "lse": A.lse,
        "out": (A @ image.reshape(-1, 3)).reshape(image.shape),
    }


def same(folder: Path, expected: dict[str, np.ndarray]) -> None:
    assert sorted(os.listdir(folder)) == sorted(
        [*(f"{n}.npy" for n in expected), "manifest.jsonl", "map.json"]
    )
    for name, array in expected.items():
        found = np.load(folder / f"{name}.npy")
        assert found.shape == array.shape, name
        assert (found == array).all(), name


@pytest.mark.parametrize("topk", [1, 2])
def test_bands_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topk: int
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 30)
    monkeypatch.setattr(components, "GROUP", 2)
    monkeypatch.setattr(components, "KEYS", 10)
    monkeypatch.setattr(features_, "PARTS", 3)
    image = np.random.default_rng(0).random((14, 9, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    expected = whole(image, iterations=2, topk=topk, seed=5)
    options = {"patch": 3, "channels": 4, "keys": 4, "iterations": 2, "topk": topk, "seed": 5}
    for tile in (1, 7, 100):
        out = tmp_path / str(tile)
        records = scram(tmp_path / "image.npy", out, tile=tile, **options)
        begun = [r for r in records if r.task.startswith("begin/")]
        assert len(begun) == {1: 5, 7: 3, 100: 1}[tile]
        same(out, expected)


@pytest.mark.parametrize(("iterations", "topk"), [(0, 1), (1, 2), (3, 1)])
def test_trees_give_the_bits_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iterations: int, topk: int
) -> None:
    monkeypatch.setattr(components, "_BLOCK", 30)
    monkeypatch.setattr(tree_search, "LEAF", 16)
    image = np.random.default_rng(0).random((14, 9, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    told = {"candidates": "tree", "iterations": iterations, "topk": topk, "trees": 2}
    expected = whole(image, **told)
    for tile in (1, 7):
        out = tmp_path / str(tile)
        records = scram(tmp_path / "image.npy", out, tile=tile, patch=3, channels=4, keys=4, **told)
        same(out, expected)
        q, k = features(image)
        scale = images.softmax_scale(q, k, keys=4)
        field = nlattn.patchmatch(q, k, scale=scale, **told)
        searched = [r.scores for r in records if r.task.startswith(("begin", "leaves"))]
        assert sum(searched) == field.work.scores


@pytest.mark.jit
@pytest.mark.parametrize("tile", [64, 100, 512])
def test_tiles_of_a_photograph_give_the_bits_of_the_whole(tmp_path: Path, tile: int) -> None:
    image = images.photograph()[:120, :400]
    np.save(tmp_path / "image.npy", image)
    options = {"patch": 3, "channels": 4, "keys": 4, "iterations": 1}
    scram(tmp_path / "image.npy", tmp_path / "out", tile=tile, **options)
    same(tmp_path / "out", whole(image, iterations=1))


def begin(tmp_path: Path, **options: object) -> tuple[Path, dict[str, object]]:
    image = np.random.default_rng(1).random((9, 8, 1)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    return tmp_path / "image.npy", {"patch": 3, "channels": 2, "iterations": 1, **options}


class EndedError(Exception):
    """The run is over before it is done."""


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".npy"}


def test_a_run_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_BLOCK", 20)
    path, options = begin(tmp_path, tile=1)
    done: list[str] = []
    complete = scram(path, tmp_path / "whole", **options)
    tasks = len(complete)

    for number in range(1, tasks, 11):

        def stop(stage: str, count: int, *_: int, number: int = number) -> None:
            done.append(stage)
            if count and len(done) >= number:
                raise EndedError

        done.clear()
        out = tmp_path / f"out{number}"
        with pytest.raises(EndedError):
            scram(path, out, progress=stop, **options)
        with pytest.raises(ValueError, match="holds a run; resume=True continues it"):
            scram(path, out, **options)
        scram(path, out, resume=True, **options)
        assert contents(out) == contents(tmp_path / "whole")
        assert sorted(os.listdir(out)) == sorted(os.listdir(tmp_path / "whole"))


def test_what_was_damaged_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_BLOCK", 20)
    path, options = begin(tmp_path, tile=1)
    scram(path, tmp_path / "whole", **options)
    for name, stage in (("keys", "search 02"), ("index_02", "search 03"), ("counts", "weigh")):
        for cut in (False, True):
            out = tmp_path / f"{name}{cut}"

            def stop(found: str, count: int, *_: int, stage: str = stage) -> None:
                if found == stage and count:
                    raise EndedError

            with pytest.raises(EndedError):
                scram(path, out, progress=stop, **options)
            file = out / f"{name}.npy"
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data[:-1] if cut else data)
            scram(path, out, resume=True, **options)
            assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_run_is_looked_at_again(tmp_path: Path) -> None:
    path, options = begin(tmp_path)
    out = tmp_path / "out"
    scram(path, out, **options)
    before = (out / "manifest.jsonl").read_bytes()
    scram(path, out, resume=True, **options)
    assert (out / "manifest.jsonl").read_bytes() == before
    data = bytearray((out / "weights.npy").read_bytes())
    data[-1] ^= 1
    (out / "weights.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"is complete, but indptr or .*weights.* has changed"):
        scram(path, out, resume=True, **options)


def test_another_job_is_refused(tmp_path: Path) -> None:
    path, options = begin(tmp_path)
    out = tmp_path / "out"
    scram(path, out, **options)
    with pytest.raises(ValueError, match=r"was begun with features.seed=0 and not 1, search"):
        scram(path, out, resume=True, **{**options, "seed": 1})
    np.save(path, np.zeros((9, 8, 1), np.float32))
    with pytest.raises(ValueError, match="was begun with image='"):
        scram(path, out, resume=True, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files of others"):
        scram(path, tmp_path / "other", **options)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    path, options = begin(tmp_path)
    out = tmp_path / "out"

    def meddle(*_: object) -> None:
        with pytest.raises(ValueError, match="is written to by another run"):
            scram(path, out, resume=True, **options)

    scram(path, out, progress=meddle, **options)


def test_options_are_checked(tmp_path: Path) -> None:
    path, options = begin(tmp_path)
    for name, value, text in (
        ("tile", 0, "tile=0, expected at least 1"),
        ("patch", 4, "patch=4 is even"),
        ("channels", 10, "channels=10, expected at most 9"),
        ("window", 2, "window=2 is even"),
        ("kind", "box", "kind='box', expected"),
    ):
        with pytest.raises(ValueError, match=text):
            tiled.job(path, **{**options, name: value})
