"""The oracle of non-local means: numbers worked by hand, invariants, gradients by complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle.nonlocal_mean import nonlocal_mean, nonlocal_mean_vjp, scores, weights

PAIRWISE = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
RNG = np.random.default_rng(0)


def options(pairwise: str, d: int = 3) -> dict[str, Any]:
    if pairwise == "concatenation":
        return {"pairwise": pairwise, "weight": RNG.standard_normal(2 * d)}
    return (
        {"pairwise": pairwise}
        if pairwise == "dot_product"
        else {"pairwise": pairwise, "scale": 0.7}
    )


def test_softmax_by_hand() -> None:
    """Scores 0 and 2 log 3 give weights 1/10 and 9/10; there is no 1/sqrt(d)."""
    q, k = np.array([[1.0, 0, 0, 0]]), np.array([[0.0, 1, 1, 1], [2 * np.log(3), 1, 1, 1]])
    v = np.array([[10.0], [20.0]])
    np.testing.assert_allclose(nonlocal_mean(q, k, v), [[19]])
    np.testing.assert_allclose(nonlocal_mean(q, k, v, pairwise="gaussian", scale=0.5), [[17.5]])


def test_dot_product_by_hand() -> None:
    """Products 3 and -1 over two keys; weights neither positive nor of sum 1."""
    q, k, v = np.array([[1.0, 2]]), np.array([[1.0, 1], [1, -1]]), np.array([[2.0, 0], [4, 6]])
    np.testing.assert_allclose(nonlocal_mean(q, k, v, pairwise="dot_product"), [[1, -3]])


def test_concatenation_by_hand() -> None:
    """a = q.(1, 0) = 1, b = k.(0, 2) = (-4, 2): relu gives 0 and 3, over two keys."""
    q, k, v = np.array([[1.0, 9]]), np.array([[7.0, -2], [7, 1]]), np.array([[5.0, 5], [4, 6]])
    weight = np.array([1.0, 0, 0, 2])
    got = nonlocal_mean(q, k, v, pairwise="concatenation", weight=weight)
    np.testing.assert_allclose(got, [[6, 9]])
    dq, dk, dv, dw = nonlocal_mean_vjp(
        q, k, v, np.ones((1, 2)), pairwise="concatenation", weight=weight
    )
    np.testing.assert_allclose(dq, [[5, 0]])  # (4 + 6) / 2 into w_q
    np.testing.assert_allclose(dk, [[0, 0], [0, 10]])
    np.testing.assert_allclose(dv, [[0, 0], [1.5, 1.5]])
    np.testing.assert_allclose(dw, [5, 45, 35, 5])


def test_a_sum_of_zero_has_no_slope() -> None:
    q, k = np.array([[1.0]]), np.array([[-1.0]])
    for gradient in nonlocal_mean_vjp(
        q, k, k, k, pairwise="concatenation", weight=np.array([1.0, 1.0])
    ):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian"])
def test_softmax_rows_sum_to_one_and_constants_pass(pairwise: str) -> None:
    q, k = RNG.standard_normal((5, 3)), RNG.standard_normal((7, 3))
    f = scores(q, k, pairwise, 0.7, None)
    np.testing.assert_allclose(weights(f, pairwise).sum(1), 1)
    np.testing.assert_allclose(weights(f + 3, pairwise), weights(f, pairwise))
    out = nonlocal_mean(q, k, np.full((7, 2), 4.0), pairwise=pairwise)
    np.testing.assert_allclose(out, 4)


def test_large_scores_do_not_overflow() -> None:
    q = 1e4 * np.eye(2)
    np.testing.assert_array_equal(nonlocal_mean(q, np.eye(2), q), q)


def test_concatenation_far_from_its_kink() -> None:
    q, k, v = RNG.random((5, 3)), RNG.random((7, 3)), RNG.standard_normal((7, 2))
    weight = RNG.random(6)
    more = nonlocal_mean(q, k, v, pairwise="concatenation", weight=weight)
    affine = (q @ weight[:3])[:, None] * v.mean(0) + ((k @ weight[3:])[:, None] * v).mean(0)
    np.testing.assert_allclose(more, affine)
    none = nonlocal_mean(q, k, v, pairwise="concatenation", weight=-weight)
    np.testing.assert_array_equal(none, 0)
    for gradient in nonlocal_mean_vjp(q, k, v, more, pairwise="concatenation", weight=-weight):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_keys_permuted_with_their_values_change_nothing(pairwise: str) -> None:
    q, k, v = RNG.standard_normal((5, 3)), RNG.standard_normal((7, 3)), RNG.standard_normal((7, 2))
    some, order = options(pairwise), RNG.permutation(7)
    want = nonlocal_mean(q, k, v, **some)
    np.testing.assert_allclose(nonlocal_mean(q, k[order], v[order], **some), want, atol=1e-14)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_gradients_agree_with_the_complex_step(pairwise: str) -> None:
    inputs = {
        "q": RNG.standard_normal((2, 1, 5, 3)),
        "k": RNG.standard_normal((3, 7, 3)),
        "v": RNG.standard_normal((1, 1, 7, 2)),
    }
    some = options(pairwise)
    dout = RNG.standard_normal((2, 3, 5, 2))
    gradients = nonlocal_mean_vjp(*inputs.values(), dout, **some)
    if pairwise == "concatenation":
        inputs["weight"] = some.pop("weight")
    assert len(gradients) == len(inputs)
    step = 1e-30
    for (name, x), gradient in zip(inputs.items(), gradients, strict=True):
        assert gradient.shape == x.shape
        want = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            moved = {key: a.astype(complex) for key, a in inputs.items()}
            moved[name][index] += 1j * step
            want[index] = (dout * nonlocal_mean(**moved, **some)).sum().imag / step
        np.testing.assert_allclose(gradient, want, rtol=0, atol=4e-15 * max(1, abs(want).max()))


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_longdouble_stays_longdouble(pairwise: str) -> None:
    x = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.longdouble)
    some = options(pairwise)
    if "weight" in some:
        some["weight"] = some["weight"].astype(np.longdouble)
    assert nonlocal_mean(x, x, x, **some).dtype == np.longdouble
    assert all(g.dtype == np.longdouble for g in nonlocal_mean_vjp(x, x, x, x, **some))


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="gauss"):
        nonlocal_mean(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), pairwise="gauss")


def test_no_keys() -> None:
    none, one = np.zeros((0, 3)), np.ones((2, 3))
    for pairwise in PAIRWISE:
        np.testing.assert_array_equal(nonlocal_mean(one, none, none, **options(pairwise)), 0)
