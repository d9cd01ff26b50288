"""`LeverageStream` against the offline set: blocks, orders, merges, sources, memory, bad input."""

from __future__ import annotations

import inspect
import re
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nlattn
from nlattn import LeverageStream
from nlattn.engines.ranges import add_ranges, joined
from nlattn.oracle import stream as oracle
from tests.runtime.moments import steps

EPS = 0.05


def heavy_tailed(n: int, d: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) * rng.pareto(2, (n, 1))


def offline(k: Any, eps: float = EPS) -> list[int]:
    return np.flatnonzero(nlattn.leverage_scores(k) >= eps - 1e-12).tolist()


@pytest.mark.parametrize("method", ["qr", "gram"])
@pytest.mark.parametrize("block", [1, 6, 64, 120])
def test_every_block_size_gives_the_offline_set(block: int, method: str) -> None:
    k = heavy_tailed(120, 4)
    stream = LeverageStream(4, EPS, method=method)
    for start in range(0, 120, block):
        stream.update(k[start : start + block])
        assert stream.held <= 4 / EPS
    found = stream.result()
    assert found.index.tolist() == offline(k)
    assert stream.n == 120
    assert found.rank == 4
    np.testing.assert_array_equal(found.keys, k[found.index])
    np.testing.assert_allclose(found.scores, nlattn.leverage_scores(k)[found.index], rtol=1e-10)


@given(
    n=st.integers(0, 60),
    d=st.integers(1, 5),
    rank=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    eps=st.sampled_from([0.02, 0.1, 0.37, 1.0]),
    seed=st.integers(0, 99),
)
def test_any_stream_is_its_oracle(
    n: int, d: int, rank: int, cuts: list[int], eps: float, seed: int
) -> None:
    k = heavy_tailed(n, rank, seed) @ heavy_tailed(rank, d, seed + 1)
    blocks = np.split(k, sorted(c for c in cuts if c <= n))
    got = LeverageStream(d, eps).extend(blocks).result()
    want = oracle.leverage_stream(blocks, d, eps)
    differ = np.setxor1d(got.index, want.index)
    away = np.abs(oracle.scores(want.R, k[differ], n) - eps)
    assert (away <= got.slack + 1e-12).all()  # rounding decides of a key on the threshold
    assert len(got.index) * (eps - got.slack) <= got.rank


def test_every_merge_order_gives_the_offline_set() -> None:
    k = heavy_tailed(200, 4)
    edges = [0, 13, 80, 81, 150, 200]
    want = offline(k)

    def part(i: int) -> LeverageStream:
        return LeverageStream(4, EPS, first=edges[i]).update(k[edges[i] : edges[i + 1]])

    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        whole = part(order[0])
        for i in order[1:]:
            whole.merge(part(i))
        assert whole.result().index.tolist() == want
    left, right = part(0).merge(part(1)), part(2).merge(part(3).merge(part(4)))
    assert left.merge(right).result().index.tolist() == want
    assert left.n == 200


def test_streams_that_merge_drop_what_became_light() -> None:
    """Every part holds keys that are heavy in it alone; the whole has room for d / eps keys."""
    k = np.random.default_rng(4).standard_normal((60, 4))
    parts = [LeverageStream(4, 0.25, first=i).update(k[i : i + 12]) for i in range(0, 60, 12)]
    held = [len(part.to_arrays()["index"]) for part in parts]
    assert max(held) <= 16 < sum(held[:3])
    for part in parts[1:]:
        parts[0].merge(part)
        assert len(parts[0].to_arrays()["index"]) <= 16
    assert (
        parts[0].result().index.tolist()
        == LeverageStream(4, 0.25).update(k).result().index.tolist()
    )


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_light_keys_are_not_held_where_there_is_room(method: str) -> None:
    k = np.concatenate([np.eye(2), np.full((8, 2), 1e-3)])
    stream = LeverageStream(2, 0.1, method=method).update(k)
    assert stream.to_arrays()["index"].tolist() == [0, 1]


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-8])
def test_keys_in_directions_that_rounding_hid_are_held(apart: float) -> None:
    """Beside a key very much larger, the other's own direction has no digit left."""
    k = np.array([[1e20, 1e20], [1, 1 + apart], [2, 2]])
    assert LeverageStream(2, 1.0).update(k).result().index.tolist() == [0, 1]
    stream = LeverageStream(2, 1.0).update(k[1:])
    assert stream.update(k[:1], first=5).result().index.tolist() == [0, 5]


def test_blocks_may_come_out_of_order() -> None:
    k = heavy_tailed(90, 3)
    stream = LeverageStream(3, EPS)
    for start in (60, 0, 30):
        stream.update(k[start : start + 30], first=start)
    assert stream.result().index.tolist() == offline(k)


def test_the_threshold_itself_is_heavy() -> None:
    """Each unit vector eight times: every leverage is 1/8, and all keys are needed."""
    k = np.tile(np.eye(4), (8, 1))
    for block in (1, 5, 32):
        stream = LeverageStream(4, 0.125).extend(np.split(k, range(block, 32, block)))
        assert stream.result().index.tolist() == list(range(32))


def test_scales_may_grow_beyond_all_bounds() -> None:
    k = heavy_tailed(40, 3) * np.array([1e-200, 1, 1e200])
    k[20:] *= 1e90
    got = LeverageStream(3, EPS).extend(np.split(k, 8)).result()
    assert got.index.tolist() == offline(k)


class Zarr:
    """An array that is read by slices alone."""

    def __init__(self, x: Any):
        self._x, self.shape, self.largest = x, x.shape, 0

    def __getitem__(self, rows: slice) -> Any:
        part = self._x[rows]
        self.largest = max(self.largest, len(part))
        return part


def test_sources_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlattn.ops.stream._CHUNK", 64)
    k = heavy_tailed(300, 3).astype(np.float32)
    np.save(tmp_path / "k.npy", k)
    mapped, lazy = np.load(tmp_path / "k.npy", mmap_mode="r"), Zarr(k)

    def blocks() -> Iterator[Any]:
        yield from np.split(k, 10)

    want = offline(k)
    for stream in (
        LeverageStream(3, EPS).update(mapped),
        LeverageStream(3, EPS).update(lazy),
        LeverageStream(3, EPS).update(k.tolist()),
        LeverageStream(3, EPS).update(k[:, ::-1].astype(">f4")[:, ::-1]),
        LeverageStream(3, EPS).extend(blocks()),
    ):
        assert stream.result().index.tolist() == want
    assert lazy.largest == 60  # d / eps


def test_it_is_saved_as_plain_arrays(tmp_path: Path) -> None:
    k = heavy_tailed(120, 3)
    for method in ("qr", "gram"):
        stream = LeverageStream(3, EPS, first=7, method=method).update(k[:80])
        np.savez(tmp_path / "stream.npz", **stream.to_arrays())
        with np.load(tmp_path / "stream.npz", allow_pickle=False) as file:
            again = LeverageStream.from_arrays(file)
        assert (again.d, again.eps, again.method, again.n) == (3, EPS, method, 80)
        got, want = (s.update(k[80:]).result() for s in (again, stream))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
        assert [j - 7 for j in got.index.tolist()] == offline(k)


def peak(blocks: int) -> int:
    """Most bytes that were allocated at a time while blocks of 10,000 keys passed."""
    rng = np.random.default_rng(0)
    stream = LeverageStream(4, 0.1).update(rng.standard_normal((10_000, 4)))
    tracemalloc.start()
    for _ in range(blocks):
        stream.update(rng.standard_normal((10_000, 4)))
    stream.result()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.nbytes < 4000
    return most


@pytest.mark.jit
def test_memory_does_not_grow_with_the_number_of_keys() -> None:
    peak(1)
    # From 20,000 keys to two million: less than a byte for every twenty.
    assert peak(199) < peak(1) + 100_000


STREAM = {"d": 3, "eps": 0.1}
BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"d": 0}, ValueError, "LeverageStream: d=0, expected at least 1"),
    ({"eps": 0}, ValueError, "LeverageStream: eps=0.0, expected a positive number"),
    ({"eps": 1.5}, ValueError, "LeverageStream: eps=1.5, expected at most 1: no score is larger"),
    ({"eps": np.nan}, ValueError, "LeverageStream: eps=nan is not finite"),
    ({"method": "svd"}, ValueError, "LeverageStream: method='svd', expected 'qr' or 'gram'"),
    ({"first": -1}, ValueError, "LeverageStream: first=-1, expected at least 0"),
]


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_options_are_refused(options: Any, error: Any, text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        LeverageStream(**{**STREAM, **options})


UPDATES: list[tuple[Any, type[Exception], str]] = [
    (np.ones((2, 4)), ValueError, "block has shape (2, 4), expected (b, 3) with d=3"),
    (np.ones(3), ValueError, "block has shape (3,), expected (b, 3) with d=3"),
    (
        np.ones((2, 3), int),
        TypeError,
        "block has dtype int64, expected float32, float64 (or float16, bfloat16); "
        "convert it with block.astype(np.float32)",
    ),
    (
        np.array([[1, 2, 3], [1, np.nan, 3]]),
        ValueError,
        "key 6, channel 1 is nan, expected finite values",
    ),
]


@pytest.mark.parametrize(("block", "error", "text"), UPDATES)
def test_bad_blocks_are_refused_and_leave_the_stream_alone(
    block: Any, error: Any, text: str
) -> None:
    stream = LeverageStream(3, 0.1).update(heavy_tailed(5, 3))
    before = stream.to_arrays()
    with pytest.raises(error, match=f"^LeverageStream.update: {re.escape(text)}$"):
        stream.update(block)
    for a, b in zip(before.values(), stream.to_arrays().values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_is_counted_twice() -> None:
    k = heavy_tailed(20, 3)
    stream, other = LeverageStream(3, 0.1).update(k), LeverageStream(3, 0.1, first=20).update(k)
    text = (
        "LeverageStream.update: block holds keys 5 to 19, which were taken in before; give first="
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        stream.update(k, first=5)
    stream.merge(other)
    text = (
        "LeverageStream.merge: other holds keys 20 to 39, which were taken in before; give first="
    )
    for again in (other, LeverageStream.from_arrays(other.to_arrays())):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            stream.merge(again)
    with pytest.raises(ValueError, match="holds keys 0 to 39"):
        stream.merge(stream)


def test_only_streams_of_one_kind_merge() -> None:
    stream = LeverageStream(3, 0.1)
    for other, text in (
        (LeverageStream(3, 0.2), "other has eps=0.2, expected 0.1 as here"),
        (LeverageStream(2, 0.1), "other has d=2, expected 3 as here"),
        (LeverageStream(3, 0.1, method="gram"), "other has method='gram', expected 'qr' as here"),
    ):
        with pytest.raises(ValueError, match=f"^LeverageStream.merge: {text}$"):
            stream.merge(other)
    with pytest.raises(TypeError, match="other is a dict, expected a LeverageStream"):
        stream.merge({})  # type: ignore[arg-type]


def test_a_gram_matrix_that_hides_the_rank_is_refused() -> None:
    k = heavy_tailed(90, 2) @ heavy_tailed(2, 3, 1)
    text = "LeverageStream: method='gram' cannot tell the rank of the keys so far; use method='qr'"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        LeverageStream(3, 0.1, method="gram").update(k)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        LeverageStream(3, 0.1, method="gram").update(k[:5]).result()


BROKEN: list[tuple[str, Any, str]] = [
    ("keys", None, "arrays lack keys"),
    ("format", np.array(9), "arrays have format 9 and method 0, expected 1 and 0 or 1"),
    ("method", np.array(5), "arrays have format 1 and method 5, expected 1 and 0 or 1"),
    ("state", np.zeros((2, 3)), r"state is float64 \(2, 3\), expected \(3, 3\)"),
    ("peak", np.array([1, np.inf, 1]), "peak is not finite"),
    ("index", np.array([0, 0, 1, 2, 3]), "index holds keys twice"),
    ("index", np.array([0, 1, 2, 3, 99]), "index holds keys twice, or keys that were never seen"),
    ("ranges", np.array([[0, 5], [3, 9]]), "ranges overlap or are empty"),
    ("ranges", np.array([[5, 5]]), "ranges overlap or are empty"),
]


@pytest.mark.parametrize(("name", "value", "text"), BROKEN)
def test_broken_arrays_are_refused(name: str, value: Any, text: str) -> None:
    arrays = LeverageStream(3, 0.01).update(heavy_tailed(5, 3)).to_arrays()
    assert len(arrays["index"]) == 5
    arrays[name] = value
    arrays = {key: x for key, x in arrays.items() if x is not None}
    with pytest.raises(ValueError, match=f"^LeverageStream.from_arrays: .*{text}"):
        LeverageStream.from_arrays(arrays)


def test_ranges_are_sets() -> None:
    a, b = np.array([[0, 3], [5, 7]]), np.array([[3, 5], [9, 9]])
    assert add_ranges(a, b).tolist() == [[0, 7]]
    assert joined(a, b) is None
    assert joined(a, [[2, 6]]) == (2, 3)
    assert add_ranges(a[:0], b[:0]).shape == (0, 2)


def test_a_small_key_of_a_direction_of_its_own_stays_where_the_others_hide_it() -> None:
    """Its part outside of them is 0.005 of it, their condition 7e12; exactly, all have 1."""
    k = np.array(
        [
            [5.78569985487081e28, -6.325202691928463e25, -1.7931452429606644e28],
            [-7.3886813437452645e-37, 4.505260658581935e-37, -9.077868842398092e-37],
            [-1081372442624.0, 9596437528576.0, -167178600448.0],
        ]
    )
    for cut in range(4):
        stream = nlattn.LeverageStream(3, eps=0.02).extend([k[:cut], k[cut:]])
        assert stream.result().index.tolist() == [0, 1, 2]


def test_an_interrupt_leaves_a_block_taken_in_or_not() -> None:
    """Ctrl-C before any step of the stream's own code: nothing is half replaced."""
    k = np.random.default_rng(0).standard_normal((40, 3)) * [1, 1e3, 1e-3]

    def begun() -> nlattn.LeverageStream:
        return nlattn.LeverageStream(3, 0.3).update(k[:20])

    def held(stream: nlattn.LeverageStream) -> dict[str, list[Any]]:
        return {n: x.tolist() for n, x in stream.to_arrays().items() if n != "next"}

    allowed = [held(begun()), held(begun().update(k[20:]))]
    file = inspect.getfile(nlattn.LeverageStream)
    every = steps(partial(begun().update, k[20:]), None, file)
    assert every > 100
    for step in range(every):
        stream = begun()
        with pytest.raises(KeyboardInterrupt):
            steps(partial(stream.update, k[20:]), step, file)
        assert held(stream) in allowed, step
