"""The oracle of learned queries in windows: by hand, invariants, the complex step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.oracle import dense
from nlattn.oracle.qna import qna, qna_vjp

LOG3 = np.log(3.0)


def test_three_pixels_by_hand() -> None:
    """Weights 1/4, 3/4 at the border, where one tap is outside; 1/5, 3/5, 1/5 in the middle."""
    q, k = np.array([[1.0]]), np.array([[[0.0], [LOG3], [0.0]]])
    v = np.array([[[20.0], [40.0], [60.0]]])
    out, lse = qna(q, k, v, window=(1, 3), return_lse=True)
    np.testing.assert_allclose(out[0, :, 0], [35, 40, 45])
    np.testing.assert_allclose(lse[0, 0], np.log([4, 5, 4]))


def test_bias_before_gate_after_the_softmax() -> None:
    q, k, v = np.zeros((1, 1)), np.zeros((1, 2, 1)), np.array([[[4.0], [8.0]]])
    bias, gate = np.array([[[0.0, LOG3]]]), np.array([[[10.0, -1.0]]])
    out = qna(q, k, v, window=(1, 2), padding=0, bias=bias, gate=gate)
    np.testing.assert_allclose(out, [[[10 * 4 / 4 - 8 * 3 / 4]]])


def image(rng: Any, lead: tuple[int, ...] = (), t: int = 2, H: int = 4, W: int = 5) -> Any:
    shapes = (*lead, t, 3), (*lead, H, W, 3), (*lead, H, W, 2)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def test_a_large_window_is_dense_attention() -> None:
    q, k, v = image(np.random.default_rng(0))
    got = qna(q, k, v, window=(8, 10), padding=(4, 5))
    want = dense.attention(q, k.reshape(20, 3), v.reshape(20, 2)).sum(0)
    np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), atol=1e-14)


@pytest.mark.parametrize(
    ("window", "stride", "padding", "size"),
    [
        (3, 1, None, (4, 5)),
        (2, 1, None, (3, 4)),
        (4, 1, None, (3, 4)),
        ((2, 3), (2, 1), (1, 0), (3, 3)),
        (3, 3, 0, (1, 1)),
        (1, 4, 3, (3, 3)),
        (31, 1, None, (4, 5)),
    ],
)
def test_against_a_dense_mask(window: Any, stride: Any, padding: Any, size: Any) -> None:
    """A window is a mask of dense attention; outside taps leave numerator and denominator."""
    q, k, v = image(np.random.default_rng(1))
    got = qna(q, k, v, window=window, stride=stride, padding=padding)
    assert got.shape == (*size, 2)
    (kh, kw), (sh, sw) = np.broadcast_to(window, 2), np.broadcast_to(stride, 2)
    ph, pw = ((kh - 1) // 2, (kw - 1) // 2) if padding is None else np.broadcast_to(padding, 2)
    for I, J in np.ndindex(size):
        y, x = np.mgrid[:4, :5] - np.array([I * sh - ph, J * sw - pw])[:, None, None]
        mask = (y >= 0) & (y < kh) & (x >= 0) & (x < kw)
        want = dense.attention(q, k.reshape(20, 3), v.reshape(20, 2), mask=mask.ravel()).sum(0)
        np.testing.assert_allclose(got[I, J], want, atol=1e-14)


CASES: list[dict[str, Any]] = [
    {"window": 3},
    {"window": (2, 3), "stride": (2, 1), "padding": (1, 0)},
    {"window": 7},
    {"window": 2, "stride": 3, "padding": 3},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("some", ["", "bias", "gate", "bias gate"])
def test_gradients_agree_with_the_complex_step(options: dict[str, Any], some: str) -> None:
    rng = np.random.default_rng(2)
    q, k, v = image(rng, (2,))
    window = np.broadcast_to(options["window"], 2)
    arrays = {"q": q, "k": k[:1], "v": v}
    for name, lead in (("bias", ()), ("gate", (2,))):
        if name in some:
            arrays[name] = rng.standard_normal((*lead, 2, *window))
    dout = rng.standard_normal(qna(**arrays, **options).shape)
    rest = {name: x for name, x in arrays.items() if name in some}
    gradients = qna_vjp(q, k[:1], v, dout, **rest, **options)
    for (name, x), gradient in zip(
        arrays.items(), [g for g in gradients if g is not None], strict=True
    ):
        step_by_step(lambda moved: (dout * qna(**moved, **options)).sum(), arrays, name, gradient)
        assert gradient.shape == x.shape


def step_by_step(loss: Any, arrays: Any, name: str, gradient: Any) -> None:
    want = np.zeros_like(arrays[name])
    for index in np.ndindex(want.shape):
        moved = {key: x.astype(complex) for key, x in arrays.items()}
        moved[name][index] += 1e-30j
        want[index] = loss(moved).imag / 1e-30
    np.testing.assert_allclose(gradient, want, rtol=0, atol=1e-14 * max(1, abs(want).max()))


def test_longdouble_stays_longdouble() -> None:
    q, k, v = (x.astype(np.longdouble) for x in image(np.random.default_rng(0)))
    assert qna(q, k, v, window=3).dtype == np.longdouble
    gradients = qna_vjp(q, k, v, v, window=3)
    assert all(g is None or g.dtype == np.longdouble for g in gradients)
