"""The command: what it prints and writes, and how it ends when things go wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nlattn
from nlattn import images
from nlattn.cli import main, pixelwise
from nlattn.cli.methods import Task
from nlattn.cli.output import Output, StageClock, peak_memory, table, to_json
from nlattn.conformance.table import TABLE
from nlattn.files import picture as pictures

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
from PIL import Image

SMALL = ["--iterations", "2", "--patch", "3", "--channels", "4"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(nlattn.__file__).parents[1])}


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def refused(capsys, *arguments: object, code: int = 2) -> str:
    """The one line with which a command line is refused."""
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.count("\n") == 1, err
    assert err.startswith("nlattn")
    return err.strip()


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 5, 3), "k": (4, 7, 3), "v": (4, 7, 2)}
    paths = {}
    for name, shape in shapes.items():
        paths[name] = tmp_path / f"{name}.npy"
        np.save(paths[name], rng.standard_normal(shape).astype(np.float32))
    return paths


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    x = np.random.default_rng(1).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    return tmp_path / "x.png"


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["map"], "give an IMAGE or --q FILE.npy"),
        (["map", "x.png", "--v", "v.npy"], "--k and --v go with --q"),
        (["demo", "--rows", "0"], "'0' is no whole number from 1 up"),
        (["demo", "--seed", "x"], "'x' is no whole number from 0 up"),
        (["demo", "--query", "3"], "'3' is not ROW,COL, such as 120,88"),
        (["demo", "--query", "3,-1"], "'3,-1' is not ROW,COL"),
        (["demo", "--threads", "100000"], "--threads 100000, expected 1 to"),
        (["demo", "--size", "8", "--patch", "4"], "--patch 4 is even, expected an odd width"),
        (["demo", "--size", "8", "--query", "9,0"], "--query 9,0 lies outside the 8 x 8 grid"),
        (["demo", "--method", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_wrong_use_is_refused_in_a_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b"", "is not a readable .npy file"),
        (b"\x93NUMPY\x01\x00garbage", "is not a readable .npy file"),
        (np.array([None]), "has dtype object, expected numbers"),
        (np.ones((2, 2), int), "has dtype int64, expected float32"),
        (np.ones(3), "has shape (3,), expected (n, d) or (H, W, d)"),
        (np.ones((3, 0, 2)), "has shape (3, 0, 2)"),
        ({"q": np.ones(3)}, "is no .npy array"),
    ],
)
def test_arrays_that_cannot_serve_are_refused(capsys, tmp_path: Path, content, words: str):
    path = tmp_path / "q.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(tmp_path / "q", **content)
        (tmp_path / "q.npz").rename(path)
    elif content is not None:
        np.save(path, content)
    said = refused(capsys, "map", "--q", path, "--out", tmp_path / "o")
    assert words in said
    assert str(path) in said or "dtype" in words
    assert not (tmp_path / "o").exists()


def test_values_that_do_not_fit_are_refused(capsys, tmp_path: Path, arrays):
    said = refused(capsys, "map", "--q", arrays["q"], "--v", arrays["v"], "--out", tmp_path / "o")
    assert said == ("nlattn: map: v has shape (4, 7, 2), expected (Hk, Wk, e) with Hk=6 from k")


@pytest.mark.parametrize("content", [None, "no image"])
def test_pictures_that_cannot_be_read_are_refused(capsys, tmp_path: Path, content: str | None):
    path = tmp_path / "x.png"
    if content:
        path.write_text(content)
    said = refused(capsys, "map", path, "--out", tmp_path / "o")
    assert str(path) in said
    assert not (tmp_path / "o").exists()


def test_a_place_that_cannot_be_written_is_the_environments_fault(capsys, tmp_path: Path):
    (tmp_path / "file").touch()
    said = refused(capsys, "demo", "--size", 8, "--out", tmp_path / "file" / "x", code=3)
    assert f"cannot write to {tmp_path}/file/x: Not a directory" in said
    said = refused(capsys, "demo", "--size", 8, "--out", tmp_path / "file")
    assert "is a file, expected a folder" in said


def test_a_full_disk_leaves_nothing_behind(capsys, tmp_path: Path, monkeypatch, picture: Path):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nlattn.maps.base.AttentionMap.save", full)
    out = tmp_path / "a" / "b"
    said = refused(capsys, "map", picture, *SMALL, "--out", out, code=3)
    assert said == f"nlattn: cannot write to {out}: No space left on device"
    assert not (tmp_path / "a").exists()


@pytest.mark.jit
def test_a_file_too_large_leaves_nothing_behind(tmp_path: Path):
    code = (
        "import resource, sys\n"
        "from nlattn.cli import attend, main\n"
        "write = attend._write\n"
        "def limited(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    write(*arguments)\n"
        "attend._write = limited\n"
        f"sys.exit(main(['demo', '--size', '24', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("File too large")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("delay", [0.0, 1.0, 2.5])
@pytest.mark.jit
def test_ctrl_c_does_not_wait_for_the_search_and_leaves_nothing(tmp_path: Path, delay: float):
    process = subprocess.Popen(
        [sys.executable, "-m", "nlattn", "demo", "--iterations", "9000", "--out", tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)  # the search would take minutes
    assert (process.returncode, out, err) == (130, "", "nlattn: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_its_remedy(capsys, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    said = refused(capsys, "demo", "--out", tmp_path / "o", code=3)
    assert said == "nlattn: PIL is not installed; python -m pip install 'nlattn[cli]' brings it"
    assert not (tmp_path / "o").exists()


def test_a_bug_is_not_called_wrong_use(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "numbers_of_nothing", None)
    monkeypatch.setattr("nlattn.images.photograph", lambda: __import__("numbers_of_nothing"))
    with pytest.raises(ModuleNotFoundError, match="numbers_of_nothing"):
        main(["demo", "--out", str(tmp_path / "o")])
    assert not (tmp_path / "o").exists()


def test_debug_shows_where_an_error_comes_from(tmp_path: Path):
    with pytest.raises(ValueError, match="patch=4 is even"):
        main(["demo", "--size", "8", "--patch", "4", "--debug", "--out", str(tmp_path / "o")])


def test_the_list_is_the_table(capsys):
    code, said, _ = run(capsys, "list")
    assert code == 0
    assert all(spec.name in said and spec.summary in said for spec in TABLE)
    rows = json.loads(run(capsys, "list", "--json")[1])
    assert [row["name"] for row in rows] == [spec.name for spec in TABLE]
    assert run(capsys, "list", "--quiet")[1] == ""


def test_the_doctor_explains_the_machine(capsys):
    code, said, _ = run(capsys, "doctor")
    assert code == 0
    for words in ("numba", "threads", "BLAS", "processor", "cache", "check", "passed"):
        assert words in said
    facts = json.loads(run(capsys, "doctor", "--json")[1])
    assert facts["nlattn"]["value"] == nlattn.__version__
    assert all(fact["means"] for fact in facts.values())
    assert run(capsys, "doctor", "--quiet")[1] == ""


def test_the_doctor_finds_a_machine_that_computes_wrong(capsys, monkeypatch):
    monkeypatch.setattr("nlattn.attention", lambda q, k, v: v[: len(q)] + k[: len(q), :1])
    code, said, _ = run(capsys, "doctor")
    assert code == 1
    assert "results cannot be trusted" in said


def test_warmup_compiles_every_operator(capsys):
    code, said, _ = run(capsys, "warmup")
    assert code == 0
    assert said.startswith(f"{len(TABLE)} operators ready after")
    said = json.loads(run(capsys, "warmup", "--json", "--dtype", "float64")[1])
    assert said["operators"] == len(TABLE)


def test_versions_and_help_end_well(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nlattn {nlattn.__version__}\n"
    assert main(["demo", "--help"]) == 0


def test_a_reader_may_leave():
    done = subprocess.run(
        f"{sys.executable} -m nlattn list | true", shell=True, capture_output=True, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_be_said_in_json_is_null():
    class Odd:
        def __str__(self) -> str:
            return "odd"

    report = {1: float("inf"), "a": np.float32(2), "b": (np.arange(2), Odd(), None, True)}
    assert json.loads(to_json(report)) == {"1": None, "a": 2, "b": [[0, 1], "odd", None, True]}


def test_columns_line_up():
    assert table([("a", "bb", ""), ("aaa", "b", "x")]) == "a    bb\naaa  b   x"


def test_peak_memory_is_this_process():
    peak = peak_memory()
    assert peak is None or peak > 1e7


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="asks the system what a process held")
@pytest.mark.jit
def test_the_memory_reported_is_what_the_run_has_held(tmp_path: Path):
    """Pictures and page included: drawing them takes tens of megabytes.

    A small process starts the command: a child counts as its own what its parent held at the start.
    """
    between = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-m", "nlattn", "demo", "--size", "32", "--quiet"]
    said = subprocess.run(
        [sys.executable, "-c", between, *command, "--out", tmp_path / "out"],
        capture_output=True, text=True, env=ENVIRONMENT, check=True,
    ).stdout  # fmt: skip
    held = int(said) * (1 if sys.platform == "darwin" else 1024)
    reported = json.loads((tmp_path / "out" / "report.json").read_text())["peak_bytes"]
    assert held - 8e6 < reported <= held + 1e6  # what is left is the report itself


def test_what_a_picture_says_of_entropy_is_made_of_some_rows(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((5, 6, 3)), rng.standard_normal((4, 7, 3))
    task = Task("", q, k, None, 1.0, [])
    for A in (
        nlattn.scram_map(q, k, seed=3),
        nlattn.attention_map(q.reshape(-1, 3), k.reshape(-1, 3), scale=1.0),
    ):
        weights = A.to_dense()
        entropy = -np.where(
            weights > 0, weights * np.log(np.where(weights > 0, weights, 1)), 0
        ).sum(1)
        for rows in (1, 7, 30, 999):
            monkeypatch.setattr(pixelwise, "_ROWS", rows)
            np.testing.assert_allclose(pixelwise.spread(A, task).ravel(), np.exp(entropy))


def test_a_terminal_sees_what_is_running(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with StageClock(quiet=False) as stages:
        with stages("search"):
            pass
        assert list(stages.progress(range(2))) == [0, 1]
    assert "search ..." in capsys.readouterr().err
    assert stages.seconds["search"] >= 0


def test_a_terminal_sees_how_long_the_rest_will_take(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = iter([10.0, 12.0, 12.1, 13.0, 14.0, 15.0])
    monkeypatch.setattr("nlattn.cli.output.time.perf_counter", lambda: next(clock))
    stages = StageClock(quiet=False)
    with stages("search"):
        stages.part(2, 8)
        stages.part(3, 8)  # too soon after the last
        stages.part(4, 8)
        stages.part(8, 8)
    said = capsys.readouterr().err
    assert "search: 2 of 8 parts, 6.0 s left" in said
    assert "3 of 8" not in said
    assert "search: 4 of 8 parts, 3.0 s left" in said
    assert "8 of 8" not in said


def test_what_is_logged_is_told_on_request(capsys, monkeypatch):
    def work(_):
        logging.getLogger("nlattn.runtime").info("first call")
        return 0

    monkeypatch.setattr("nlattn.cli.about.list_", work)
    for more, told in ((["--verbose"], "nlattn: first call\n"), ([], "")):
        assert main(["list", *more]) == 0
        assert capsys.readouterr().err == told


def test_a_discarded_output_takes_its_folders_along(tmp_path: Path):
    output = Output(tmp_path / "a" / "b" / "c", ["x"], force=False)
    output.write("x", lambda path: path.write_text("half"))
    Output.discard_all()
    assert not list(tmp_path.iterdir())


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
