"""A wished share of attention: reached where it can be, and said where not."""

from __future__ import annotations

import numpy as np
import pytest

import nlattn
from nlattn import compare_all, scram_for_mass
from nlattn.ops.wish import LADDER


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Peaked attention: every query has a few keys that are alike."""
    rng = np.random.default_rng(seed)
    k = rng.standard_normal((9, 10, 4)).cumsum(0).cumsum(1)
    q = 3 * k + 0.1 * rng.standard_normal(k.shape)
    return q, k - (k**2).mean(-1, keepdims=True)


@pytest.mark.parametrize("mass", [0.3, 0.9])
def test_the_share_is_held(mass: float) -> None:
    q, k = scene()
    wish = scram_for_mass(q, k, mass=mass, scale=0.05)
    exact = nlattn.attention_map(q.reshape(90, 4), k.reshape(90, 4), scale=0.05).to_dense()
    inside = np.where(wish.map.to_dense() != 0, exact, 0).sum(1)
    assert wish.reached
    assert wish.rows == 90  # so it is no estimate
    np.testing.assert_allclose(wish.chosen.held, inside.mean(), rtol=0, atol=2e-3)  # tolerance
    assert inside.mean() >= mass - 1e-3
    assert wish.chosen == wish.tried[-1]
    assert [t.setting for t in wish.tried] == list(LADDER[: len(wish.tried)])
    assert all(t.low < mass for t in wish.tried[:-1])


def test_what_cannot_be_reached_is_said() -> None:
    rng = np.random.default_rng(1)
    q, k = (rng.standard_normal((12, 16, 3)) for _ in range(2))
    wish = scram_for_mass(q, k, mass=0.99, scale=1e-6, rows=50)  # even weights of 192 keys
    assert not wish.reached
    assert len(wish.tried) == len(LADDER)
    assert wish.chosen.held == max(t.held for t in wish.tried) < 0.99
    assert wish.chosen.keys == len(wish.map.support.indices) / 192


def test_bad_wishes_are_named() -> None:
    q, k = scene()
    with pytest.raises(
        ValueError,
        match=r"scram_for_mass: mass=1.0 is a share of exact attention, expected between 0 and 1",
    ):
        scram_for_mass(q, k, mass=1.0)
    with pytest.raises(
        ValueError, match=r"scram_for_mass: q has leading axes \(2,\), expected one head"
    ):
        scram_for_mass(q[None].repeat(2, 0), k, mass=0.5)


def test_every_query_is_judged() -> None:
    q, k = scene(2)
    v = np.random.default_rng(3).standard_normal((90, 2))
    field = nlattn.patchmatch(q, k, scale=0.05, topk=2)
    A = nlattn.scram_map(q, k, field=field, kind="topk", scale=0.05)
    sets = q.reshape(90, 4), k.reshape(90, 4)
    B = nlattn.certified_attention_map(*sets, scale=0.05, tolerance=1e-9)
    found = compare_all(A, B, v)
    known = nlattn.quality.compare(A, nlattn.attention_map(*sets, scale=0.05), v, rows=90)
    assert found.queries == 90
    assert found.recall == known.recall.value
    near = {"rtol": 0, "atol": 1e-8}  # the tolerance times 10
    np.testing.assert_allclose(found.mass, known.mass.value, **near)
    np.testing.assert_allclose(found.mass_p5, known.mass_p5, **near)
    np.testing.assert_allclose(found.held.mean(), found.mass, **near)
    assert found.output == pytest.approx(known.output.value, rel=1e-6)
    assert 0 <= found.mass_error <= 2e-9
    with pytest.raises(ValueError, match=r"compare_all: A gives some keys more than B gives all"):
        compare_all(nlattn.scram_map(4 * q, k, field=field, kind="topk", scale=0.05), B)
    with pytest.raises(TypeError, match=r"compare_all: B is a SparseMap, expected the map of"):
        compare_all(A, A)
