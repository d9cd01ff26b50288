"""``nlattn demo`` and ``nlattn map``: what they write, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.cli import pixelwise
from nlattn.cli.methods import Task
from tests.cli.commands import SMALL, refused, run

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
from PIL import Image


def test_the_demo_writes_what_it_says_and_says_what_it_measured(capsys, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    code, said, err = run(capsys, "demo", "--size", 12, *SMALL, "--out", out)
    assert (code, err) == (0, "")
    for words in (
        "12 x 12",
        "score evaluations per query",
        "argmax recall",
        "score gap",
        "captured mass",
        "output error",
        "peak memory",
        "dense, predicted seconds",
        str(out),
    ):
        assert words in said
    files = [
        "entropy.png", "explorer.html", "map.npz", "matches.png", "out.png", "overlay.png",
        "received.png", "report.json",
    ]  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == files
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    report = json.loads((out / "report.json").read_text())
    assert report["files"] == files
    assert report["queries"] == report["keys"] == 144
    assert report["quality"]["recall"]["low"] <= report["quality"]["recall"]["value"]
    assert report["options"]["seed"] == 0
    assert report["versions"]["nlattn"] == nlattn.__version__
    A = nlattn.load_map(out / "map.npz")
    assert A.shape == (144, 144)
    assert A.query_grid == A.key_grid == (12, 12)
    for name in ("overlay.png", "matches.png", "entropy.png", "received.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300


@pytest.mark.jit
def test_a_second_run_overwrites_only_by_force(capsys, tmp_path: Path, picture: Path):
    out = tmp_path / "out"
    call = ["map", picture, *SMALL, "--out", out, "--quiet"]
    assert run(capsys, *call) == (0, "", "")
    (out / "mine.txt").write_text("kept")
    before = (out / "map.npz").read_bytes()
    said = refused(capsys, *call)
    assert (
        said == f"nlattn: {out}/map.npz exists; --force overwrites it, --out names another folder"
    )
    assert run(capsys, *call, "--force") == (0, "", "")
    assert (out / "map.npz").read_bytes() == before
    assert (out / "mine.txt").read_text() == "kept"
    assert not list(out.glob(".nlattn*"))


@pytest.mark.parametrize("method", ["scram", "lev", "hamming", "permutohedral", "dense"])
def test_arrays_give_the_output_of_their_operator(capsys, tmp_path: Path, arrays, method: str):
    out = tmp_path / "out"
    code, said, _ = run(
        capsys, "map", *(x for n, p in arrays.items() for x in (f"--{n}", p)),
        "--method", method, "--query", "2,3", "--query", "0,0", "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(said)
    q, k, v = (np.load(arrays[n]) for n in "qkv")
    got, weights = np.load(out / "out.npy"), np.load(out / "weights.npy")
    assert weights.shape == (2, 4, 7)
    assert np.allclose(weights.sum((1, 2)), 1, atol=1e-6)
    if method == "dense":
        expected = nlattn.attention(q.reshape(-1, 3), k.reshape(-1, 3), v.reshape(-1, 2))
        assert report["quality"] is None
    elif method == "lev":
        flat = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
        expected = nlattn.lev_attention(*flat, keys=32)
    elif method == "hamming":
        flat = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
        expected = nlattn.hamming_attention(*flat, keys=32)
    elif method == "permutohedral":
        flat = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
        expected = nlattn.permutohedral_attention(*flat, weight="softmax")
    else:
        field = nlattn.patchmatch(q, k, candidates="tree")
        support = nlattn.scram_support(field, kind="neighbours", window=1)
        expected = nlattn.scram(q, k, v, field=field, support=support)
    if method != "dense":
        assert report["quality"]["rows"] == 30
        assert (out / "map.npz").exists()
    assert got.shape == (6, 5, 2)
    assert np.allclose(got, expected.reshape(got.shape), atol=1e-6)


def test_certified_attention_says_what_it_may_miss(capsys, tmp_path: Path, arrays):
    out = tmp_path / "out"
    call = ["map", *(x for n, p in arrays.items() for x in (f"--{n}", p)), "--method", "certified"]
    code, said, _ = run(
        capsys, *call, "--tolerance", "1e-4", "--query", "2,3", "--out", out, "--json"
    )
    assert code == 0
    report = json.loads(said)
    assert 0 < report["missed"]["mean"] <= report["missed"]["max"] <= 1e-4
    q, k, v = (np.load(arrays[n]).reshape(-1, c) for n, c in (("q", 3), ("k", 3), ("v", 2)))
    exact = nlattn.attention_map(q, k)
    got = np.load(out / "out.npy").reshape(-1, 2)
    assert (np.abs(got - exact @ v) <= 1e-4 * np.ptp(v, axis=0)).all()
    assert np.allclose(np.load(out / "weights.npy").reshape(1, -1), exact.rows([13]), atol=1e-6)
    assert run(capsys, *call, "--out", tmp_path / "table")[1].count("misplaced at most") == 1
    said = refused(capsys, *call, "--tolerance", "1", "--out", tmp_path / "none")
    assert "tolerance=1.0 is a share of the weights, expected 0 to below 1" in said


@pytest.mark.parametrize("method", ["scram", "lev"])
def test_all_queries_are_judged_where_that_is_wished(capsys, tmp_path: Path, arrays, method: str):
    out = tmp_path / "out"
    call = ["map", *(x for n, p in arrays.items() for x in (f"--{n}", p)), "--method", method]
    code, said, _ = run(capsys, *call, "--every", "--kept", "5", "--out", out, "--json")
    assert code == 0
    found, sampled = json.loads(said)["all_queries"], json.loads(said)["quality"]
    assert found["queries"] == sampled["rows"] == 30  # here the sample is all of them
    assert abs(found["mass"] - sampled["mass"]["value"]) < 1e-3
    assert abs(found["mass_p5"] - sampled["mass_p5"]) < 1e-3
    assert found["recall"] == sampled["recall"]["value"]
    again = run(capsys, *call, "--every", "--out", tmp_path / "table")[1]
    assert again.count("mass, all queries") == 1
    assert again.count("recall, all queries") == 1
    assert again.count("certified attention, seconds") == 1
    assert 0.999 <= found["certified_mass"] <= 1


def test_a_wished_share_is_reported(capsys, tmp_path: Path, arrays):
    call = ["map", *(x for n, p in arrays.items() for x in (f"--{n}", p))]
    code, said, _ = run(capsys, *call, "--mass", "0.4", "--out", tmp_path / "out", "--json")
    assert code == 0
    wish = json.loads(said)["wish"]
    assert wish["reached"]
    assert 0.4 <= wish["chosen"]["low"] <= wish["chosen"]["held"]
    assert wish["chosen"] == wish["tried"][-1]
    again = run(capsys, *call, "--mass", "0.4", "--out", tmp_path / "table")[1]
    assert again.count("mass as wished") == 1
    said = refused(capsys, *call, "--mass", "1.5", "--out", tmp_path / "none")
    assert "'1.5' is no share between 0 and 1" in said


@pytest.mark.parametrize("method", ["efficient", "refined", "enla"])
def test_linear_methods_give_map_output_and_rows(capsys, tmp_path: Path, arrays, method: str):
    out = tmp_path / "out"
    code, said, _ = run(
        capsys, "map", *(x for n, p in arrays.items() for x in (f"--{n}", p)),
        "--method", method, "--query", "2,3", "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    assert json.loads(said)["quality"] is None
    one = nlattn.load_map(out / "map.npz")
    v = np.load(arrays["v"]).reshape(-1, 2)
    assert one.query_grid == (6, 5)
    assert np.allclose(np.load(out / "out.npy").reshape(-1, 2), one @ v, atol=1e-6)
    assert np.allclose(np.load(out / "weights.npy").reshape(1, -1), one.rows([13]), atol=1e-6)


@pytest.mark.parametrize(
    "method", ["efficient", "refined", "enla", "hamming", "permutohedral", "certified"]
)
def test_a_picture_by_other_methods(capsys, tmp_path: Path, picture: Path, method: str):
    out = tmp_path / "o"
    call = ["map", picture, *SMALL, "--method", method, "--query", "1,2", "--out", out]
    assert run(capsys, *call)[0] == 0
    files = {"explorer.html", "map.npz", "out.png", "overlay.png", "received.png", "report.json"}
    files |= {"entropy.png"} if method == "hamming" else set()  # whose keys are few
    files -= {"explorer.html", "map.npz", "received.png"} if method == "certified" else set()
    assert {p.name for p in out.iterdir()} == files


@pytest.mark.parametrize("pairwise", ["embedded_gaussian", "dot_product", "concatenation"])
def test_non_local_means_of_arrays(capsys, tmp_path: Path, arrays, pairwise: str):
    out, weight = tmp_path / "out", None
    call = ["map", *(x for n, p in arrays.items() for x in (f"--{n}", p)), "--out", out]
    call += ["--method", "nonlocal", "--pairwise", pairwise, "--query", "2,3", "--scale", "1"]
    if pairwise == "concatenation":
        assert "weight is missing, expected (2 d,)" in refused(capsys, *call)
        (tmp_path / "bad.npy").write_text("no array")
        text = refused(capsys, *call, "--weight", tmp_path / "bad.npy")
        assert "bad.npy is not a readable .npy file" in text
        weight = np.linspace(-1, 1, 6, dtype=np.float32)
        np.save(tmp_path / "w.npy", weight)
        call += ["--weight", tmp_path / "w.npy"]
    assert run(capsys, *call)[0] == 0
    q, k, v = (np.load(arrays[n]).reshape(-1, np.load(arrays[n]).shape[-1]) for n in "qkv")
    want = nlattn.nonlocal_mean(q, k, v, pairwise=pairwise, weight=weight)
    assert np.allclose(np.load(out / "out.npy").reshape(want.shape), want, atol=1e-6)
    A = nlattn.nonlocal_mean_map(q, k, pairwise=pairwise, weight=weight)
    assert np.allclose(np.load(out / "weights.npy")[0].reshape(-1), A.rows(13), atol=1e-6)


def test_a_picture_of_weights_without_a_softmax(capsys, tmp_path: Path, picture: Path):
    call = ["map", picture, *SMALL, "--method", "nonlocal", "--pairwise", "dot_product"]
    code, said, _ = run(capsys, *call, "--query", "1,2", "--out", tmp_path / "o", "--json")
    assert code == 0
    assert json.loads(said)["quality"] is None
    assert nlattn.load_map(tmp_path / "o" / "map.npz").query_grid == (9, 11)
    assert (tmp_path / "o" / "overlay.png").exists()


def test_sets_are_attended_to_densely(capsys, tmp_path: Path):
    x = np.random.default_rng(2).standard_normal((7, 3))
    np.save(tmp_path / "x.npy", x)
    call = ["map", "--q", tmp_path / "x.npy", "--v", tmp_path / "x.npy", "--out", tmp_path / "o"]
    assert "expected (Hq, Wq, d) and (Hk, Wk, d)" in refused(capsys, *call)
    code, said, _ = run(capsys, *call, "--method", "dense", "--query", "3,0")
    assert code == 0
    assert "dense attention" in said
    assert np.allclose(np.load(tmp_path / "o" / "out.npy"), nlattn.attention(x, x, x))


@pytest.mark.parametrize("method", ["scram", "lev", "dense"])
def test_a_picture_comes_with_its_output_and_maps(capsys, tmp_path: Path, picture: Path, method):
    out = tmp_path / "o"
    code, said, _ = run(capsys, "map", picture, *SMALL, "--method", method, "--out", out, "--json")
    assert code == 0
    report = json.loads(said)
    image = images.load(picture)
    features = images.patch_features(image, patch=3, channels=4)
    q, k = (x.reshape(-1, 5) for x in images.queries_and_keys(features))
    exact = nlattn.attention_map(q, k, scale=report["scale"])
    A = exact if method == "dense" else nlattn.load_map(out / "map.npz")
    want = (A @ image.reshape(-1, 3)).reshape(image.shape)
    got = images.load(out / "out.png")
    assert np.abs(got - want).max() < 0.51 / 255 + 1e-6
    task = Task("x", q.reshape(9, 11, 5), k.reshape(9, 11, 5), image, report["scale"], [], image)
    weights = A.to_dense().astype(np.float64)
    terms = weights * np.log(np.where(weights > 0, weights, 1))
    assert np.allclose(pixelwise.spread(A, task).ravel(), np.exp(-terms.sum(1)), rtol=1e-3)
    share = weights.sum(0) / weights.sum(0).mean()
    assert np.allclose(pixelwise.received(A, task).ravel(), share, atol=1e-4)
    assert {"entropy.png", "received.png"} < {*report["files"]}


def test_force_clears_what_an_earlier_run_wrote(capsys, tmp_path: Path, picture: Path):
    out = tmp_path / "o"
    call = ["map", picture, *SMALL, "--out", out, "--quiet"]
    assert run(capsys, *call)[0] == 0
    (out / "mine.png").write_text("kept")
    assert (out / "matches.png").exists()
    assert run(capsys, *call, "--method", "dense", "--only-shown", "--force")[0] == 0
    assert {p.name for p in out.iterdir()} == {"mine.png", "overlay.png", "report.json"}


def test_a_useless_map_says_so(capsys, tmp_path: Path):
    x = 8 * np.random.default_rng(0).standard_normal((20, 20, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    call = ["map", "--q", tmp_path / "x.npy", "--v", tmp_path / "x.npy", "--scale", 1]
    call += ["--candidates", "random", "--support", "topk", "--iterations", 0]
    code, said, _ = run(capsys, *call, "--out", tmp_path / "o")
    assert code == 0
    assert "warning: the keys kept hold " in said
    assert "warning: the output is off by " in said
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert any("does not stand for exact attention" in text for text in report["warnings"])
    assert len(report["quality"]["mass_above"]) == 4
    assert run(capsys, *call, "--force", "--json", "--out", tmp_path / "o")[2].startswith(
        "nlattn: warning: the keys kept hold "
    )


def test_the_defaults_of_the_search(capsys, tmp_path: Path, arrays):
    call = ["map", *(x for n, p in arrays.items() for x in (f"--{n}", p)), "--out", tmp_path]
    report = json.loads(run(capsys, *call, "--force", "--json")[1])
    asked = [report["options"][x] for x in ("candidates", "support", "window")]
    assert asked == ["tree", "neighbours", 1]
    call += ["--support", "window", "--candidates", "random"]
    report = json.loads(run(capsys, *call, "--force", "--json")[1])
    asked = [report["options"][x] for x in ("candidates", "support", "window")]
    assert asked == ["random", "window", 3]
