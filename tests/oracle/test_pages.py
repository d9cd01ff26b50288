"""The oracle of pages: rows by hand, and the gradient of what several sequences share."""

from __future__ import annotations

import numpy as np

from nlattn.oracle.pages import gather_pages, gather_pages_vjp


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
