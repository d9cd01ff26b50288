"""The oracle of pages: rows by hand, and the gradient of what several sequences share."""

from __future__ import annotations

from typing import Any

import numpy as np

from nlattn.oracle.dense import attention
from nlattn.oracle.pages import (
    gather_pages,
    gather_pages_vjp,
    paged_attention,
    paged_attention_jvp,
    paged_attention_vjp,
)


def test_rows_by_hand() -> None:
    """Pages of two rows: the second, then none, then the first."""
    pages = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    table = np.array([1, -1, 0])
    np.testing.assert_array_equal(gather_pages(pages, table)[:, 0], [3, 4, 0, 0, 1, 2])
    dout = np.arange(6.0)[:, None]
    np.testing.assert_array_equal(gather_pages_vjp(pages, table, dout)[..., 0], [[4, 5], [0, 1]])


def test_a_shared_page_gets_the_sum() -> None:
    rng = np.random.default_rng(0)
    pages, table = rng.standard_normal((4, 2, 3, 5)), np.array([[1, 1, -1], [3, 1, 0]])
    out = gather_pages(pages, table)
    assert out.shape == (2, 6, 3, 5)
    g, way = rng.standard_normal(out.shape), rng.standard_normal(pages.shape)
    moved = gather_pages(pages + 1e-30j * way, table).imag / 1e-30
    inner = (gather_pages_vjp(pages, table, g) * way).sum()
    np.testing.assert_allclose((moved * g).sum(), inner, rtol=1e-13)


STEP = 1e-30


def paged() -> tuple[list[Any], dict[str, Any]]:
    """Queries (3, 2, 4, 3), pages with heads (5, 4, 2, 3) and (5, 4, 2, 2), and what else."""
    rng = np.random.default_rng(1)
    shapes = (3, 2, 4, 3), (5, 4, 2, 3), (5, 4, 2, 2)
    table = np.array([[1, 1, -1], [3, 1, 0], [2, 4, 4]])
    options = {"key_lengths": np.array([7, 12, 0]), "sinks": rng.standard_normal(2)}
    return [rng.standard_normal(s) for s in shapes], {"table": table, **options}


def test_a_sequence_sees_the_rows_of_its_pages() -> None:
    (q, k, v), o = paged()
    out = paged_attention(q, k, v, **o)
    for h in range(2):
        keys, values = (np.concatenate([x[1, :, h], x[1, :3, h]]) for x in (k, v))
        want = attention(q[0, h], keys, values, sinks=o["sinks"][h])
        np.testing.assert_allclose(out[0, h], want, rtol=1e-13)
    assert not out[2].any()  # a sequence without keys: the sink has no value


def test_changes_and_gradients_by_the_complex_step() -> None:
    arrays, o = paged()
    rng = np.random.default_rng(2)
    ways = [rng.standard_normal(x.shape) for x in arrays]
    moved = [x + STEP * 1j * way for x, way in zip(arrays, ways, strict=True)]
    want = [x.imag / STEP for x in paged_attention(*moved, **o, return_lse=True)]
    got = paged_attention_jvp(*arrays, dq=ways[0], dk_pages=ways[1], dv_pages=ways[2], **o,
                              return_lse=True)  # fmt: skip
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-13)
    g, a = rng.standard_normal(got[0].shape), rng.standard_normal(got[1].shape)
    gradients = paged_attention_vjp(*arrays, dout=g, dlse=a, **o)
    inner = sum((x * y).sum() for x, y in zip(gradients[:3], ways, strict=True))
    np.testing.assert_allclose((g * want[0]).sum() + (a * want[1]).sum(), inner, rtol=1e-11)
