"""Keys in pages: the same numbers as in one piece, and gradients of pages that are shared."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn


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
    monkeypatch.setattr("nlattn.ops.pages._ROWS", block)
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
    ):
        got = nlattn.paged_attention(
            q, pages, values, table, key_lengths=lengths, return_lse=True, **more
        )
        want = nlattn.attention(q, k, v, key_lengths=own, return_lse=True, **more)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


def test_pages_that_do_not_fit_are_refused() -> None:
    q, k = np.ones((3, 2)), np.ones((4, 5, 2))
    with pytest.raises(ValueError, match=r"^paged_attention: v_pages has shape \(4, 6, 2\)"):
        nlattn.paged_attention(q, k, np.ones((4, 6, 2)), [0])
    with pytest.raises(ValueError, match=r"^paged_attention: key_lengths holds 9, expected 0 to 5"):
        nlattn.paged_attention(q, k, k, [0], key_lengths=9)
