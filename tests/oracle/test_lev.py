"""The oracle of LevAttention: numbers worked by hand, identities, gradients by complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.dense import attention, attention_stages
from nlattn.oracle.lev import key_scores, lev_attention, lev_attention_vjp, lev_keys


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def test_one_channel_by_hand() -> None:
    """Keys 0, log 3, 1e-3: the first of the two heaviest weighs 3/4 against 1/4 for the zero."""
    q, k = np.array([[1.0]]), np.array([[1e-3], [-np.log(3.0)], [1e-3], [0.0], [np.log(9.0)]])
    v = np.arange(5.0)[:, None]
    assert lev_keys(q, k, keys=2).tolist() == [1, 4]
    out, lse = lev_attention(q, k, v, keys=2, return_lse=True)
    np.testing.assert_allclose(out, [[(1 / 3 * 1 + 9 * 4) / (1 / 3 + 9)]])
    np.testing.assert_allclose(lse, [np.log(1 / 3 + 9)])


def test_ties_go_to_the_lowest_key() -> None:
    k = np.array([[1.0], [2], [2], [-2], [1]])
    assert lev_keys(k, k, keys=2).tolist() == [1, 2]
    assert lev_keys(k, k, keys=4).tolist() == [0, 1, 2, 3]
    assert lev_keys(k, k, keys=2, scores=np.array([0.0, 1, 5, 1, 1])).tolist() == [1, 2]


def test_all_keys_are_dense_attention() -> None:
    q, k, v = normal(3, 2, 6, 3)
    np.testing.assert_array_equal(lev_attention(q, k, v, keys=9), attention(q, k, v))


def test_mass_that_keys_receive_by_hand() -> None:
    """Two queries, weights 1/4 3/4 and 1/2 1/2: masses 3/4 and 5/4."""
    q, k = np.array([[1.0], [0.0]]), np.array([[0.0], [np.log(3)]])
    np.testing.assert_allclose(key_scores(q, k, "oracle"), [0.75, 1.25])
    q, k = normal(2, 6, 4, 3), normal(2, 2, 5, 3, seed=1)
    P = attention_stages(q, k, k, gqa=True).weights
    want = P.sum(-2).reshape(2, 2, 3, 5).sum(2)
    np.testing.assert_allclose(key_scores(q, k, "oracle", gqa=True), want)
    np.testing.assert_allclose(key_scores(q, k[:1, :1], "oracle").sum(), 2 * 6 * 4)


def test_other_selections() -> None:
    q, k = normal(4, 3), normal(2, 50, 3, seed=1)
    np.testing.assert_array_equal(key_scores(q, k, "norm"), (k**2).sum(-1))
    draws = key_scores(q, k, "random", seed=3)
    assert draws.shape == (2, 50)
    assert ((draws > 0) & (draws <= 1)).all()
    assert abs(draws.mean() - 0.5) < 0.1
    assert (draws != key_scores(q, k, "random", seed=4)).all()
    assert (draws[0] != draws[1]).all()


def test_the_identities_of_a_restricted_softmax() -> None:
    """TV = 1 - P(U) and KL = -log P(U), whatever U."""
    q, k, v = normal(5, 3), normal(40, 3, seed=1), np.eye(40)
    P = attention_stages(q, k, v)
    Q, lse = lev_attention(q, k, v, keys=6, return_lse=True)
    mass = np.exp(lse - P.lse)
    np.testing.assert_allclose(np.abs(P.weights - Q).sum(1) / 2, 1 - mass, rtol=1e-13)
    some = Q > 0
    kl = np.where(some, Q * np.log(np.where(some, Q, 1) / P.weights), 0).sum(1)
    np.testing.assert_allclose(kl, -np.log(mass), rtol=1e-13)


SHAPES = [
    ((2, 4, 3), (2, 6, 3), (2, 6, 2), {}),
    ((4, 3), (2, 6, 3), (3, 1, 6, 2), {"scale": -0.7}),
    ((2, 4, 4, 3), (2, 2, 6, 3), (1, 6, 2), {"gqa": True, "select": "norm"}),
    ((2, 4, 3), (1, 6, 3), (6, 2), {"select": "oracle"}),
    ((2, 4, 3), (2, 6, 3), (2, 6, 2), {"select": "random", "seed": 3}),
]


@pytest.mark.parametrize(("of_q", "of_k", "of_v", "options"), SHAPES)
def test_gradients_agree_with_the_complex_step(
    of_q: Any, of_k: Any, of_v: Any, options: dict[str, Any]
) -> None:
    inputs = {"q": normal(*of_q), "k": normal(*of_k, seed=1), "v": normal(*of_v, seed=2)}
    options = {"keys": 3, **options}
    out, lse = lev_attention(**inputs, **options, return_lse=True)
    dout, dlse = normal(*out.shape, seed=3), normal(*lse.shape, seed=4)
    gradients = lev_attention_vjp(**inputs, dout=dout, dlse=dlse, **options)
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        assert gradient.shape == x.shape
        want = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            moved = {key: a.astype(complex) for key, a in inputs.items()}
            moved[name][place] += 1e-30j
            a, b = lev_attention(**moved, **options, return_lse=True)
            want[place] = ((dout * a).sum() + (dlse * b).sum()).imag / 1e-30
        np.testing.assert_allclose(gradient, want, rtol=0, atol=4e-15 * max(1, abs(want).max()))
    unused = np.setdiff1d(np.arange(6), lev_keys(inputs["q"], inputs["k"], **options))
    for j in unused:
        assert not gradients[1][..., j, :].any()
        assert not gradients[2][..., j, :].any()


def test_longdouble_stays_longdouble() -> None:
    x = normal(5, 2).astype(np.longdouble)
    assert lev_attention(x, x, x, keys=2).dtype == np.longdouble
    assert all(g.dtype == np.longdouble for g in lev_attention_vjp(x, x, x, x, keys=2))
