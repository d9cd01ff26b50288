"""Wording of input errors, and how arrays are folded for the kernels."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlattn import _check

Q, K = np.ones((2, 3), np.float32), np.ones((7, 3), np.float32)


def fit(**arrays: object) -> _check.Fit:
    specs = {"q": "n d", "k": "m d", "v": "m e", "dout": "n e"}
    return _check.fit("attention", {name: (x, specs[name]) for name, x in arrays.items()})


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        (
            {"q": Q, "k": np.ones((7, 2), np.float32)},
            ValueError,
            "attention: k has shape (7, 2), expected (m, d) with d=3 from q",
        ),
        (
            {"q": Q, "k": K.astype(float)},
            TypeError,
            "attention: arrays must share one dtype, got q: float32, k: float64",
        ),
        (
            {"q": Q, "k": K, "v": np.ones((7, 0), np.float32)},
            ValueError,
            "attention: v has 0 channels, expected at least 1",
        ),
        (
            {"q": np.ones(3)},
            ValueError,
            "attention: q has shape (3,), expected (n, d) or with leading axes",
        ),
        (
            {"q": np.ones((2, 3), int)},
            TypeError,
            "attention: q has dtype int64, expected float32, float64 (or float16, bfloat16); "
            "convert it with q.astype(np.float32)",
        ),
        (
            {"q": np.ones((2, 3), complex)},
            TypeError,
            "attention: q is complex, expected float32, float64 (or float16, bfloat16)",
        ),
        (
            {"q": np.ones((2, 3), object)},
            TypeError,
            "attention: q has dtype object, expected float32, float64 (or float16, bfloat16)",
        ),
        (
            {"q": np.ma.masked_less(np.eye(3), 1)},
            TypeError,
            "attention: q is a masked array, whose mask would be lost; use mask=",
        ),
        ({"q": np.matrix("1. 2.")}, TypeError, "attention: q is a np.matrix; pass np.asarray(q)"),
        ({"q": [[1.0], [1.0, 2.0]]}, ValueError, "attention: q is a ragged sequence, expected an "
         "array"),
        (
            {"q": np.array([[1.0, np.nan], [0, 1]])},
            ValueError,
            "attention: q[0, 1] is nan, expected finite values; "
            "nonfinite='propagate' lets them pass",
        ),
        (
            {"q": np.ones((3, 2, 3)), "k": np.ones((2, 7, 3))},
            ValueError,
            "attention: leading axes do not broadcast, got q: (3,), k: (2,)",
        ),
        (
            {"q": np.ones((2, 3)), "k": np.ones((7, 3)), "v": np.ones((7, 4)),
             "dout": np.ones((5, 2, 4))},
            ValueError,
            "attention: dout has leading axes (5,), expected () as the output has",
        ),
    ],
)  # fmt: skip
def test_refusals(arrays: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        fit(**arrays)
    assert str(caught.value) == text


def test_empty_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scram: q has shape \(0, 4, 3\), expected at least one"):
        _check.fit("scram", {"q": (np.ones((0, 4, 3)), "Hq Wq d")})


def test_infinities_whose_sum_is_finite_do_not_exist() -> None:
    x = np.full((4, 2), np.finfo(np.float32).max, np.float32)  # the sum overflows, no entry does
    assert fit(q=x)["q"].shape == (1, 4, 2)
    x[2, 1] = -np.inf
    with pytest.raises(ValueError, match=r"q\[2, 1\] is -inf"):
        fit(q=x)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.copy(order="F"),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape),
    ],
    ids=["fortran", "strided", "reversed", "byte-swapped", "unaligned"],
)
def test_every_layout_becomes_one(make: object) -> None:
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    folded = fit(q=make(x))["q"]  # type: ignore[operator]
    assert folded.flags.c_contiguous
    assert folded.flags.aligned
    assert not folded.flags.writeable
    assert folded.dtype == np.float32
    np.testing.assert_array_equal(folded[0], x)


def test_inputs_keep_their_flags() -> None:
    x = np.ones((4, 3))
    fit(q=x)
    assert x.flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: type) -> None:
    half = fit(q=np.ones((2, 3), dtype))
    assert half.dtype == np.float32
    assert half["q"].dtype == np.float32
    assert half.unfold(np.ones((1, 2, 3), np.float32)).dtype == dtype


def test_leading_axes_broadcast_without_a_copy() -> None:
    q, k = np.ones((2, 3, 4, 5)), np.ones((3, 6, 5))
    both = fit(q=q, k=k)
    assert both.lead == (2, 3)
    assert both["k"].shape == (3, 6, 5)
    assert np.shares_memory(both["k"], k)
    np.testing.assert_array_equal(both.index[:, 1], [0, 1, 2, 0, 1, 2])


def test_grouped_heads_share_a_slice() -> None:
    arrays = {"q": (np.ones((2, 4, 3, 5)), "n d"), "k": (np.ones((2, 2, 6, 5)), "m d")}
    shared = _check.fit("attention", arrays, gqa=True)
    np.testing.assert_array_equal(shared.index[:, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    gradient = np.arange(8.0).reshape(8, 1, 1) * np.ones((8, 6, 5))
    summed = shared.reduce("k", gradient)
    assert summed.shape == (2, 2, 6, 5)
    np.testing.assert_array_equal(summed[..., 0, 0], [[1, 5], [9, 13]])


def test_grouped_heads_must_divide() -> None:
    arrays = {"q": (np.ones((4, 3, 5)), "n d"), "k": (np.ones((3, 6, 5)), "m d")}
    with pytest.raises(ValueError, match="k has 3 heads, expected a divisor of the 4 heads of q"):
        _check.fit("attention", arrays, gqa=True)
    with pytest.raises(ValueError, match="q has no head axis"):
        _check.fit("attention", {"q": (np.ones((3, 5)), "n d")}, gqa=True)


@given(
    lead=st.lists(st.integers(1, 3), max_size=3),
    drop=st.integers(0, 3),
    ones=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_reduce_is_the_adjoint_of_broadcasting(
    lead: list[int], drop: int, ones: list[bool]
) -> None:
    q = np.ones((*lead, 2, 3))
    short = [1 if one else size for size, one in zip(lead, ones, strict=False)][drop:]
    k = np.random.default_rng(0).standard_normal((*short, 4, 3))
    both = fit(q=q, k=k)
    wide = np.random.default_rng(1).standard_normal((both.batch, 4, 3))
    spread = both["k"][both.index[:, 1]]
    np.testing.assert_allclose((spread * wide).sum(), (k * both.reduce("k", wide)).sum())


def test_scalars() -> None:
    assert _check.integer("op", "n", np.int32(3), low=3, high=3) == 3
    assert _check.number("op", "x", np.float32(0.5), positive=True) == 0.5
    assert _check.odd("op", "window", 3, "it has a centre") == 3
    assert _check.flag("op", "causal", np.True_) is True
    for call, error, text in [
        (lambda: _check.integer("op", "n", 2.0), TypeError, "op: n=2.0 is no integer"),
        (lambda: _check.integer("op", "n", True), TypeError, "op: n=True is no integer"),
        (lambda: _check.integer("op", "n", 0, low=1), ValueError, "op: n=0, expected at least 1"),
        (lambda: _check.integer("op", "n", 9, high=8), ValueError, "op: n=9, expected at most 8"),
        (lambda: _check.number("op", "x", "1"), TypeError, "op: x='1' is no number"),
        (lambda: _check.number("op", "x", np.inf), ValueError, "op: x=inf is not finite"),
        (
            lambda: _check.number("op", "x", 0, positive=True),
            ValueError,
            "op: x=0.0, expected a positive number",
        ),
        (lambda: _check.flag("op", "causal", 1), TypeError, "op: causal=1 is no bool"),
        (
            lambda: _check.odd("scram_support", "window", 4, "the best key is its centre"),
            ValueError,
            "scram_support: window=4 is even, expected an odd width so that the best key is its "
            "centre",
        ),
        (
            lambda: _check.choice("op", "kind", "c", ("a", "b", "d")),
            ValueError,
            "op: kind='c', expected 'a', 'b' or 'd'",
        ),
        (lambda: _check.choice("op", "kind", 1, ("a",)), ValueError, "op: kind=1, expected 'a'"),
    ]:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value) == text


def test_memory_is_refused_in_words() -> None:
    _check.memory("op", 4 * 10**9, 4e9, "n x m float32", "use rows()")
    with pytest.raises(MemoryError) as caught:
        _check.memory(
            "attention_map.to_dense", 4 * 262144**2, 4e9, "262144 x 262144 float32", "use rows()"
        )
    assert str(caught.value) == (
        "attention_map.to_dense: needs 275 GB (262144 x 262144 float32), above max_bytes=4 GB; "
        "use rows()"
    )
    assert _check.size(17) == "17 B"


def test_a_shared_array_has_no_leading_axes() -> None:
    arrays = {"q": (Q, "n d"), "projection": (np.ones((1, 5, 3), np.float32), "r d")}
    text = r"favor: projection has shape \(1, 5, 3\), expected \(r, d\), one for all slices"
    with pytest.raises(ValueError, match=text):
        _check.fit("favor", arrays, shared=["projection"])


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: _check.pair("op", "window", (3, 0), 1), ValueError, "window[1]=0, expected at l"),
        (lambda: _check.pair("op", "window", (3,), 1), ValueError, "window=(3,) has not two entr"),
        (lambda: _check.pair_of("op", "w", 3, "(left, right)"), TypeError, "w=3, expected (left,"),
        (lambda: _check.integers("op", "index", [0.5]), TypeError, "index has dtype float64, exp"),
        (
            lambda: _check.booleans("op", "mask", [1]),
            TypeError,
            "mask has dtype int64, expected bool, True where a key may be used; convert it with "
            "mask.astype(bool)",
        ),
        (
            lambda: _check.booleans("op", "mask", np.ma.masked_array([True])),
            TypeError,
            "mask is a masked array, expected bool; use mask.filled()",
        ),
        (
            lambda: _check.slices("op", "support", (3,), (2, 4)),
            ValueError,
            "support has leading axes (3,), expected axes that broadcast to (2, 4)",
        ),
        (lambda: _check.instance("op", "x", 1, dict), TypeError, "x is a int, expected a dict"),
        (
            lambda: _check.number("op", "eps", -1, low=0),
            ValueError,
            "eps=-1.0, expected at least 0",
        ),
        (lambda: _check.number("op", "p", 2, high=1), ValueError, "p=2, expected at most 1"),
        (
            lambda: _check.number("op", "p", 10**400),
            ValueError,
            f"p=1{'0' * 60}... is more than a f",
        ),
        (
            lambda: _check.number("op", "p", np.complex128(1)),
            TypeError,
            "p=np.complex128(1+0j) is no",
        ),
        (lambda: _check.number("op", "p", b"1"), TypeError, "p=b'1' is no number"),
        (
            lambda: _check.number("op", "p", np.timedelta64(1)),
            TypeError,
            "p=np.timedelta64(1) is no",
        ),
        (
            lambda: _check.integer("op", "n", 10**5000, high=1),
            ValueError,
            "n=<int>, expected at most",
        ),
        (lambda: _check.flag("op", "x", np.zeros((9, 9))), TypeError, "x=array([[0., 0., "),
        (
            lambda: _check.integers("op", "i", [[1], [1, 2]]),
            TypeError,
            "i=[[1], [1, 2]] holds no int",
        ),
        (
            lambda: _check.integers("op", "i", np.ma.masked_equal([1, 2], 2)),
            TypeError,
            "i is a masked array, expected integers; use i.filled()",
        ),
        (lambda: _check.memory("op", 1, "4GB", "", ""), TypeError, "max_bytes='4GB' is no number"),
        (lambda: _check.memory("op", 1, np.nan, "", ""), ValueError, "max_bytes is nan, expected"),
        (lambda: _check.wide_dtype("op", int), ValueError, "dtype=int64 is unknown here"),
    ],
)
def test_what_stands_beside_arrays_is_refused_in_words(call: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=f"^op: {re.escape(text)}"):
        call()


class Shy:
    """What nobody can print."""

    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value", [Shy(), np.zeros((99, 99)), "x" * 999, "a\nb", 10**9999, [Shy()]], ids=type
)
def test_whatever_was_given_is_quoted_in_a_short_line(value: Any) -> None:
    text = _check.quoted(value)
    assert "\n" not in text
    assert len(text) <= 64


def test_slices_of_arrays_that_broadcast() -> None:
    np.testing.assert_array_equal(_check.slices("op", "x", (2, 1), (2, 3)), [0, 0, 0, 1, 1, 1])
    assert _check.pair("op", "stride", 2, 1) == (2, 2)
