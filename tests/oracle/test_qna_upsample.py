"""The oracle of learned queries towards a finer grid: phase by phase, the complex step."""

from __future__ import annotations

import numpy as np

from nlattn.oracle.qna import qna
from nlattn.oracle.qna_upsample import qna_upsample, qna_upsample_vjp
from tests.oracle.test_qna import image, step_by_step


def test_phases_are_interleaved_row_by_row() -> None:
    rng = np.random.default_rng(3)
    q, k, v = image(rng)
    q = rng.standard_normal((4, 2, 3))
    out = qna_upsample(q, k, v, scale=2, window=3)
    assert out.shape == (8, 10, 2)
    for f in range(4):
        want = qna(q[f], k, v, window=3)
        np.testing.assert_array_equal(out[f // 2 :: 2, f % 2 :: 2], want)


def test_gradients_of_upsampling() -> None:
    rng = np.random.default_rng(4)
    _, k, v = image(rng, (2,))
    arrays = {"q": rng.standard_normal((4, 2, 3)), "k": k, "v": v}
    arrays["bias"], arrays["gate"] = rng.standard_normal((2, 4, 2, 3, 3))
    dout = rng.standard_normal((2, 8, 10, 2))
    options = {"scale": 2, "window": 3}
    rest = {name: arrays[name] for name in ("bias", "gate")}
    gradients = qna_upsample_vjp(arrays["q"], k, v, dout, **rest, **options)
    for name, gradient in zip(arrays, gradients, strict=True):
        assert gradient is not None
        step_by_step(
            lambda moved: (dout * qna_upsample(**moved, **options)).sum(), arrays, name, gradient
        )
