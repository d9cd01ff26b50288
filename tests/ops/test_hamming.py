"""Hamming attention on packed words, against its oracle on -1 and +1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlattn
from nlattn import Signs, hamming_attention, hamming_attention_map, hamming_attention_vjp
from nlattn.kernels.hamming import ones
from nlattn.oracle import hamming as oracle
from nlattn.runtime import jit
from tests.helpers import assert_as_exact_as_numpy


def sets(n: int, m: int, d: int, e: int = 3, seed: int = 0, lead: Any = ()) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*lead, *s)) for s in ((n, d), (m, d), (m, e), (n, e)))


@jit.function
def counted(words: Any, counts: Any) -> None:
    for i in range(len(words)):
        counts[i] = ones(words[i])


def test_the_count_of_ones_is_pythons() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 200)
    words[:4] = 0, -1, -(2**63), 2**63 - 1
    counts = np.empty(200, np.int64)
    counted(words, counts)
    assert counts.tolist() == [(int(w) % 2**64).bit_count() for w in words]


@pytest.mark.parametrize("d", [1, 63, 64, 65, 128, 200])
def test_signs_are_packed_as_stated(d: int) -> None:
    x = np.random.default_rng(d).standard_normal((2, 5, d))
    x[0, 0, 0], x[0, 1, 0] = 0.0, -0.0
    words, channels = nlattn.pack_signs(x)
    assert channels == d
    assert words.dtype == np.uint64
    assert words.shape == (2, 5, -(-d // 64))
    for at in np.ndindex(2, 5):
        bits = sum(int(w) << (64 * c) for c, w in enumerate(words[at]))
        assert bits == sum(1 << c for c in range(d) if x[at][c] < 0)
    np.testing.assert_array_equal(nlattn.pack_signs(x.astype(np.float16)).words, words)
    np.testing.assert_array_equal(nlattn.pack_signs(x[:, ::-1]).words, words[:, ::-1])
    x[0, 0, 0] = np.nan
    np.testing.assert_array_equal(nlattn.pack_signs(x, nonfinite="propagate").words, words)
    with pytest.raises(ValueError, match=r"pack_signs: x\[0, 0, 0\] is nan, expected finite"):
        nlattn.pack_signs(x)


@pytest.mark.parametrize("keys", [1, 4, 50])
@pytest.mark.parametrize("d", [1, 7, 64, 130])
def test_results_gradients_and_map_are_the_oracles(d: int, keys: int) -> None:
    q, k, _, _ = sets(11, 20, d, lead=(2,), seed=d)
    _, _, v, dout = sets(11, 20, d, lead=(3, 2))
    dlse = np.random.default_rng(1).standard_normal((3, 2, 11))
    options: dict[str, Any] = {"keys": keys, "scale": 0.3}
    out, lse = hamming_attention(q, k, v, **options, return_lse=True)
    want, want_lse = oracle.hamming_attention(q, k, v, **options, return_lse=True)
    np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-14)
    for through in ("identity", "clip", "none"):
        how = {**options, "dlse": dlse, "straight_through": through}
        got = hamming_attention_vjp(q, k, v, dout, **how)
        for a, b in zip(got, oracle.hamming_attention_vjp(q, k, v, dout, **how), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    A = hamming_attention_map(q[0], k[0], **options)
    np.testing.assert_allclose(A @ v[1, 0], out[1, 0], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(A.lse, lse[0, 0], rtol=1e-14)
    assert A.work.scores == 11 * 20 + len(A.weights)
    chosen = oracle.nearest(oracle.signs(q[0]) @ oracle.signs(k[0]).T, keys)
    np.testing.assert_array_equal(A.support.indices.reshape(11, -1), chosen)


def test_packed_signs_give_what_the_numbers_give() -> None:
    q, k, v, dout = (x.astype(np.float32) for x in sets(30, 40, 70, lead=(2,)))
    words = nlattn.pack_signs(q), nlattn.pack_signs(k)
    want = hamming_attention(q, k, v)
    for a, b in ((words[0], words[1]), (q, words[1]), (words[0], k)):
        np.testing.assert_array_equal(hamming_attention(a, b, v), want)
    for a, b in zip(
        hamming_attention_vjp(*words, v, dout, straight_through="clip"),
        hamming_attention_vjp(q, k, v, dout),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    one = Signs(words[0].words[1], 70), Signs(words[1].words[1], 70)
    A, B = hamming_attention_map(*one), hamming_attention_map(q[1], k[1])
    np.testing.assert_array_equal(A.to_dense(), B.to_dense())
    assert A.dtype == np.float32


def test_single_precision_is_as_exact_as_numpy() -> None:
    single = [x.astype(np.float32) for x in sets(40, 60, 33)]
    wide = [x.astype(np.float64) for x in single]
    pairs = (
        [[f(*x[:3])] for f, x in ((hamming_attention, single), (oracle.hamming_attention, single))],
        [f(*single) for f in (hamming_attention_vjp, oracle.hamming_attention_vjp)],
    )
    exact = [oracle.hamming_attention(*wide[:3])], oracle.hamming_attention_vjp(*wide)
    for (got, plain), want in zip(pairs, exact, strict=True):
        assert_as_exact_as_numpy(got, plain, want)


def test_sets_without_points() -> None:
    q, k, v, dout = sets(4, 5, 3)
    out, lse = hamming_attention(q, k[:0], v[:0], return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()
    assert hamming_attention(q[:0], k, v).shape == (0, 3)
    assert [g.shape for g in hamming_attention_vjp(q, k[:0], v[:0], dout)] == [
        (4, 3), (0, 3), (0, 3),
    ]  # fmt: skip
    assert hamming_attention(q[None][:0], k, v).shape == (0, 4, 3)


@settings(max_examples=60)
@given(
    st.integers(1, 140), st.integers(1, 40), st.integers(1, 200), st.integers(1, 60),
    st.integers(0, 10**6), st.booleans(),
)  # fmt: skip
def test_the_nearest_keys_are_those_of_all_scores(
    d: int, n: int, m: int, keys: int, seed: int, alike: bool
) -> None:
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    if alike:  # many keys at one distance
        k = k[rng.integers(0, max(1, m // 8), m)]
    index = hamming_attention_map(q, k, keys=keys).support.indices.reshape(n, -1)
    want = oracle.nearest(oracle.signs(q) @ oracle.signs(k).T, keys)
    np.testing.assert_array_equal(index, want)
    order = rng.permutation(m)
    v = rng.standard_normal((m, 2))
    if keys >= m:  # with ties cut off, the order of keys counts
        np.testing.assert_allclose(
            hamming_attention(q, k[order], v[order], keys=keys),
            hamming_attention(q, k, v, keys=keys),
            rtol=1e-12,
            atol=1e-14,
        )


def bad(what: str) -> tuple[Any, Any, dict[str, Any]]:
    q, k, _, _ = sets(4, 5, 70)
    words, channels = nlattn.pack_signs(k)
    return {
        "keys": (q, k, {"keys": 0}),
        "fraction": (q, k, {"keys": 2.5}),
        "scale": (q, k, {"scale": 0.0}),
        "d": (q[:, :3], Signs(words, channels), {}),
        "words": (q, Signs(words[:, :1], channels), {}),
        "dtype": (q, Signs(words.astype(np.int64), channels), {}),
        "bits": (q, Signs(~words, channels), {}),
        "channels": (q, Signs(words, 0), {}),
    }[what]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("keys", ValueError, "keys=0, expected at least 1"),
        ("fraction", TypeError, "keys=2.5 is no integer"),
        ("scale", ValueError, "scale=0.0, expected a positive number"),
        ("d", ValueError, r"k has shape \(5, 70\), expected \(m, d\) with d=3 from q"),
        (
            "words",
            ValueError,
            r"k.words has shape \(5, 1\), expected \(\.\.\., 2\) for 70 channels",
        ),
        ("dtype", TypeError, "k.words has dtype int64, expected uint64"),
        ("bits", ValueError, "k.words has bits beyond 70 channels, expected 0 there"),
        ("channels", ValueError, "k.channels=0, expected at least 1"),
    ],
)
def test_bad_input_is_refused_in_words(what: str, error: Any, text: str) -> None:
    q, k, options = bad(what)
    with pytest.raises(error, match=f"^hamming_attention: {text}"):
        hamming_attention(q, k, np.zeros((5, 2)), **options)


def test_how_gradients_pass_is_a_closed_set() -> None:
    with pytest.raises(ValueError, match="straight_through='tanh', expected 'identity', 'clip' or"):
        hamming_attention_vjp(*sets(3, 3, 3), straight_through="tanh")
    with pytest.raises(ValueError, match="have leading axes"):
        hamming_attention_map(*sets(3, 3, 3, lead=(2,))[:2])
