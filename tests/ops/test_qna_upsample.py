"""Learned queries towards a finer grid, against their oracle."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.oracle import qna_upsample as oracle


def case(scale: int, window: Any, lead: tuple[int, ...] = ()) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(scale)
    kh, kw = np.broadcast_to(window, 2)
    q = rng.standard_normal((scale**2, 2, 4))
    k, v = rng.standard_normal((*lead, 4, 5, 4)), rng.standard_normal((*lead, 4, 5, 3))
    bias, gate = rng.standard_normal((2, scale**2, 2, kh, kw))
    dout = rng.standard_normal((*lead, 4 * scale, 5 * scale, 3))
    return [q, k, v, dout], {"scale": scale, "window": window, "bias": bias, "gate": gate}


@pytest.mark.parametrize("lead", [(), (2,), (2, 1)])
@pytest.mark.parametrize(("scale", "window"), [(1, 3), (2, 3), (3, (1, 5))])
def test_it_is_its_oracle(scale: int, window: Any, lead: tuple[int, ...]) -> None:
    arrays, options = case(scale, window, lead)
    got = [nlattn.qna_upsample(*arrays[:3], **options)]
    got += nlattn.qna_upsample_vjp(*arrays, **options)
    want = [oracle.qna_upsample(*arrays[:3], **options)]
    want += oracle.qna_upsample_vjp(*arrays, **options)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13 * np.abs(b).max())


def test_equal_phases_repeat_pixels_and_scale_1_is_qna() -> None:
    (q, k, v, _), options = case(1, 3)
    small = nlattn.qna(q[0], k, v, window=3, bias=options["bias"][0], gate=options["gate"][0])
    np.testing.assert_array_equal(nlattn.qna_upsample(q, k, v, **options), small)
    fine = {name: np.repeat(options[name], 4, axis=0) for name in ("bias", "gate")}
    out = nlattn.qna_upsample(np.repeat(q, 4, axis=0), k, v, scale=2, window=3, **fine)
    np.testing.assert_array_equal(out, small.repeat(2, axis=0).repeat(2, axis=1))


def test_what_was_not_given_has_no_gradient() -> None:
    (q, k, v, dout), _ = case(2, 3)
    assert nlattn.qna_upsample_vjp(q, k, v, dout, scale=2, window=3)[3:] == (None, None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": 0}, "scale=0, expected at least 1"),
        ({"scale": 3}, "q has shape (4, 2, 4), expected (..., 9, t, d) from scale=3"),
        ({"window": 4}, "window=4 is even, expected an odd width so that its centre is a pixel"),
        ({"window": 5}, "bias has shape (4, 2, 3, 3), expected (..., t, 5, 5) from window"),
    ],
)
def test_bad_options_are_refused_in_words(options: dict[str, Any], text: str) -> None:
    arrays, given = case(2, 3)
    with pytest.raises(ValueError, match=f"^qna_upsample: {re.escape(text)}$"):
        nlattn.qna_upsample(*arrays[:3], **{**given, **options})


def test_a_cotangent_of_another_size_is_refused() -> None:
    (q, k, v, dout), options = case(2, 3)
    text = "dout has shape (7, 10, 3), expected (..., 8, 10, e) from scale=2"
    with pytest.raises(ValueError, match=f"^qna_upsample_vjp: {re.escape(text)}$"):
        nlattn.qna_upsample_vjp(q, k, v, dout[1:], **options)
