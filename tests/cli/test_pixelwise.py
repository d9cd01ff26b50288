"""What is said of each pixel of a map, in blocks of rows."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn
from nlattn.cli import pixelwise
from nlattn.cli.methods import Task


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
