"""Normalisers of heavy entries, by a factor of the keys: their value, and the error they state."""

from __future__ import annotations

import numpy as np

from nlattn.kernels import heavy
from nlattn.kernels.gemm import width
from nlattn.runtime import jit


def quadratic(q: np.ndarray, root: np.ndarray, seen: int) -> np.ndarray:
    norm = np.empty((4, len(q)))
    panels = jit.blocks(len(q), width(root))
    for x in (q, root):
        x.flags.writeable = False
    heavy.quadratic(panels, q, root, heavy.squares(root), seen, norm)
    return norm


def test_the_error_is_of_what_cancels() -> None:
    """A query across the long rows has the digits that rounding of its products leaves."""
    root, q = np.array([[1e4, 1e4, 0], [0, 0, 1]]), np.array([[1.0, 1, 0], [3, -3, 0.5]])
    norm = quadratic(q, root, 2)
    products = q @ root.T
    total = (products**2).sum(1)
    top, shift = norm[0], np.ldexp(1.0, norm[2].astype(int))
    np.testing.assert_allclose(top * top * norm[1] * shift**2, total)
    sizes = np.sqrt((root**2).sum() * (q**2).sum(1) / total)
    np.testing.assert_allclose(norm[3], 4 * (3 + 2) * 2.0**-53 * sizes)
    assert norm[3, 1] > 1e4 * norm[3, 0]


def test_each_query_sees_a_row_more() -> None:
    root = np.diag([1.0, 2, 4])
    norm = quadratic(np.ones((2, 3)), root, 1)
    shift = np.ldexp(1.0, norm[2].astype(int))
    assert (norm[0] ** 2 * norm[1] * shift**2).tolist() == [1 + 4, 1 + 4 + 16]
    nothing = quadratic(np.array([[0.0, 0, 1]]), root[:2].copy(), 2)
    assert nothing[1].tolist() == [0]
    assert nothing[3].tolist() == [np.inf]
