"""Keys in pages: the same numbers as in one piece, and gradients of pages that are shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import pages as oracle


def test_paged_keys_are_keys_in_one_piece() -> None:
    rng = np.random.default_rng(0)
    pages = rng.standard_normal((6, 4, 3))
    table = np.array([[5, 2, -1], [0, 2, 3]], np.int32)
    k = nlattn.gather_pages(pages, table)
    np.testing.assert_array_equal(k[0], np.concatenate([pages[5], pages[2], 0 * pages[0]]))
    q, lengths = rng.standard_normal((2, 5, 3)), np.array([7, 12])
    out = nlattn.attention(q, k, k, key_lengths=lengths)
    for b, length in enumerate(lengths):
        whole = np.concatenate(list(pages[table[b]]))[:length]
        np.testing.assert_array_equal(out[b], nlattn.attention(q[b], whole, whole))


def test_a_shared_page_gets_the_sum_of_its_gradients() -> None:
    """``<gather(x), g> = <x, gather_vjp(g)>``, heads between rows and channels."""
    rng = np.random.default_rng(0)
    pages, table = rng.standard_normal((4, 2, 3, 5)), np.array([[1, 1, -1], [3, 1, 0]])
    out = nlattn.gather_pages(pages, table)
    assert out.shape == (2, 6, 3, 5)
    g = rng.standard_normal(out.shape)
    back = nlattn.gather_pages_vjp(pages, table, g)
    np.testing.assert_allclose((out * g).sum(), (pages * back).sum(), rtol=1e-13)
    assert not back[2].any()


def test_bad_tables_are_refused_in_words() -> None:
    pages = np.ones((3, 2, 1))
    with pytest.raises(ValueError, match=r"^gather_pages: table\[0, 1\] is 3, expected below 3$"):
        nlattn.gather_pages(pages, [[0, 3]])
    with pytest.raises(
        TypeError, match=r"^gather_pages: table has dtype float64, expected integers"
    ):
        nlattn.gather_pages(pages, [[0.0]])
    with pytest.raises(ValueError, match=r"^gather_pages: pages has shape \(2, 1\), expected"):
        nlattn.gather_pages(np.ones((2, 1)), [[0]])
    with pytest.raises(ValueError, match=r"^gather_pages_vjp: dout has shape \(1, 1\), expected"):
        nlattn.gather_pages_vjp(pages, [[0]], np.ones((1, 1)))


@pytest.mark.parametrize("block", [4, 8, 4096])
@pytest.mark.parametrize("heads", [False, True])
def test_attention_by_blocks_of_pages(
    block: int, heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What attention to the gathered pages gives; shares of blocks are merged."""
    monkeypatch.setattr("nlattn.ops._paged._ROWS", block)
    rng = np.random.default_rng(0)
    middle = (2,) if heads else ()
    pages, values = rng.standard_normal((6, 4, *middle, 3)), rng.standard_normal((6, 4, *middle, 2))
    table, lengths = np.array([[5, 2, 1, -1], [0, 2, 3, 4]], np.int32), np.array([10, 16])
    q = rng.standard_normal((2, *middle, 7, 3))
    k, v = (nlattn.gather_pages(x, table) for x in (pages, values))
    if heads:
        k, v = np.moveaxis(k, -2, -3), np.moveaxis(v, -2, -3)
    own = lengths[:, None] if heads else lengths
    for more in (
        {},
        {"causal": True, "causal_offset": "bottom-right", "sinks": np.array(0.3)},
        {"causal": True, "causal_offset": 3, "alibi": np.array(0.2), "softcap": 2.0},
        {"causal": True, "causal_offset": 9, "window": (4, 0), "lse_base": "2"},
    ):
        got = nlattn.paged_attention(
            q, pages, values, table, key_lengths=lengths, return_lse=True, **more
        )
        about = {"window_about": "offset"} if "window" in more else {}
        want = nlattn.attention(q, k, v, key_lengths=own, return_lse=True, **more, **about)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True, "causal_offset": "bottom-right", "sinks": np.array(0.3)},
    {"causal": True, "causal_offset": 3, "alibi": np.array(0.2), "softcap": 2.0},
    {"window": (4, 2), "causal_offset": 5, "sinks": np.array(-0.4), "lse_base": "2"},
    {"window": (6, None), "causal": True, "causal_offset": "bottom-right", "alibi": np.array(0.1)},
)


def paged(heads: bool, dtype: Any = np.float64) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    middle = (2,) if heads else ()
    shapes = (3, *middle, 7, 3), (6, 4, *middle, 3), (6, 4, *middle, 2)
    table = np.array([[5, 2, 1, -1], [0, 2, 3, 4], [3, 3, 3, -1]], np.int32)
    given = {"table": table, "key_lengths": np.array([10, 16, 0])}
    return [rng.standard_normal(s).astype(dtype) for s in shapes], given


@pytest.mark.parametrize("block", [4, 8, 4096])
@pytest.mark.parametrize("heads", [False, True])
def test_gradients_and_changes_by_blocks_of_pages(
    block: int, heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of all gathered pages; shared pages get the sum, pages that none has get 0."""
    monkeypatch.setattr("nlattn.ops._paged._ROWS", block)
    rng = np.random.default_rng(3)
    arrays, given = paged(heads)
    ways = dict(zip(("dq", "dk_pages", "dv_pages"), map(np.ones_like, arrays), strict=True))
    ways = {n: rng.standard_normal(x.shape) for n, x in ways.items()}
    for more in OPTIONS:
        extra = {f"d{name}": np.array(0.7) for name in ("sinks", "alibi") if name in more}
        slopes = {"alibi_gradient": True} if "alibi" in more else {}
        got = nlattn.paged_attention_jvp(*arrays, **given, **more, **ways, **extra, return_lse=True)
        want = oracle.paged_attention_jvp(*arrays, **given, **more, **ways, **extra,
                                          return_lse=True)  # fmt: skip
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
        cotangents = {"dout": rng.standard_normal(got[0].shape)}
        cotangents["dlse"] = rng.standard_normal(got[1].shape)
        found = nlattn.paged_attention_vjp(*arrays, **given, **more, **slopes, **cotangents)
        exact = oracle.paged_attention_vjp(*arrays, **given, **more, **slopes, **cotangents)
        for x, y in zip(found, exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
        both = [*zip(found, [*ways.values(), *extra.values()], strict=True)]
        right = sum((g * x).sum() for g, x in both)
        left = sum((x * y).sum() for x, y in zip(got, cotangents.values(), strict=True))
        np.testing.assert_allclose(left, right, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_narrow_formats_are_rounded_once(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bits the last rounding alone shows; of 32, some of sums of few terms."""
    monkeypatch.setattr("nlattn.ops._paged._ROWS", 4)
    arrays, given = paged(True, dtype)
    wide = [x.astype(float) for x in arrays]
    dout = np.ones((3, 2, 7, 2), dtype)
    got = (nlattn.paged_attention(*arrays, **given),
           *nlattn.paged_attention_vjp(*arrays, dout=dout, **given))  # fmt: skip
    want = (oracle.paged_attention(*wide, **given),
            *oracle.paged_attention_vjp(*wide, dout=dout.astype(float), **given))  # fmt: skip
    for x, y in zip(got, want, strict=True):
        assert x.dtype == dtype
        eps = float(np.finfo(dtype).eps)
        atol = eps * max(1, abs(y).max()) * (1 if dtype == np.float16 else 8)
        np.testing.assert_allclose(x.astype(float), y, rtol=0, atol=atol)


def test_what_does_not_fit_gradients_is_refused() -> None:
    arrays, given = paged(False)
    with pytest.raises(
        ValueError, match=r"^paged_attention_vjp: dout has shape \(7, 2\), expected"
    ):
        nlattn.paged_attention_vjp(*arrays, dout=np.ones((7, 2)), **given)
    ways = [np.ones_like(x) for x in arrays]
    with pytest.raises(ValueError, match=r"^paged_attention_jvp: dk_pages has shape \(5, 4, 3\)"):
        nlattn.paged_attention_jvp(*arrays, given["table"], ways[0], ways[1][1:], ways[2])
    with pytest.raises(ValueError, match=r"^paged_attention_jvp: dsinks is given without sinks"):
        nlattn.paged_attention_jvp(*arrays, given["table"], *ways, dsinks=np.array(1.0))
    with pytest.raises(ValueError, match=r"^paged_attention_jvp: dalibi is given without alibi"):
        nlattn.paged_attention_jvp(*arrays, given["table"], *ways, dalibi=np.array(1.0))
    with pytest.raises(TypeError, match=r"^paged_attention: arrays must share one dtype, got q: "):
        nlattn.paged_attention(arrays[0].astype(np.float32), *arrays[1:], given["table"])


def test_pages_that_do_not_fit_are_refused() -> None:
    q, k = np.ones((3, 2)), np.ones((4, 5, 2))
    with pytest.raises(ValueError, match=r"^paged_attention: v_pages has shape \(4, 6, 2\)"):
        nlattn.paged_attention(q, k, np.ones((4, 6, 2)), [0])
    with pytest.raises(ValueError, match=r"^paged_attention: key_lengths holds 9, expected 0 to 5"):
        nlattn.paged_attention(q, k, k, [0], key_lengths=9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": "x"}, "scale='x' is no number"),
        ({"softcap": -1.0}, "softcap=-1.0, expected"),
        ({"causal_offset": 2.5}, "causal_offset has dtype float64, expected integers"),
    ],
)
def test_errors_name_what_was_called(options: Any, text: str) -> None:
    """Not `attention`, which does the work."""
    pages, q = np.ones((5, 4, 3)), np.ones((2, 3))
    calls: Any = {
        nlattn.paged_attention: (),
        nlattn.paged_attention_vjp: (q,),
        nlattn.paged_attention_jvp: (q, pages, pages),
    }
    for function, more in calls.items():
        with pytest.raises((ValueError, TypeError), match=f"^{function.__name__}: {text}"):
            function(q, pages, pages, [1, 2], *more, **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_changes_of_lse_in_base_2_lose_no_more_in_16_bits_than_the_result_does(dtype: str) -> None:
    rng = np.random.default_rng(0)
    kind = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    q, pages = (rng.standard_normal(x).astype(kind) for x in ((2, 5, 3), (6, 4, 3)))
    table = np.array([[5, 2], [0, 3]])
    given = (np.zeros((2, 5, 3), kind), np.ones((2, 5), kind))
    got, want = (
        nlattn.paged_attention_vjp(a, b, b, table, dout, dlse=dlse, lse_base="2")[0].astype(float)
        for a, b, dout, dlse in ((q, pages, *given), (x.astype(float) for x in (q, pages, *given)))
    )
    unit = 2.0**-11 if dtype == "float16" else 2.0**-8
    assert (abs(got - want) <= 1.01 * unit * abs(want)).mean() > 0.95
