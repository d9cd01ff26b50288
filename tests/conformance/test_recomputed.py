"""Gradients that make their weights again from what was saved: what is wrong in them has a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.diagnosis import SAME, diagnose
from nlattn.conformance.truth.bounds import exact
from nlattn.oracle.dense import attention_stages

pytestmark = pytest.mark.plain

RNG = np.random.default_rng(4)
N, M, D, E = 9, 8, 5, 3
SAVED = "in the weights that the gradient makes from the saved lse"


def case(options: dict[str, Any], **more: Array) -> Case:
    shapes = {"q": (N, D), "k": (M, D), "v": (M, E), "dout": (N, E)}
    arrays = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    return Case("case", "attention", "vjp", "float64", {**arrays, **more}, options)


def gradients(
    c: Case,
    scores: dict[str, Any] | None = None,
    row_sums: dict[str, Any] | None = None,
    normalised: bool = False,
) -> dict[str, Array]:
    """As flash attention has them, scores or the outputs of row sums with other options."""
    q, k, v, dout = (c.arrays[n] for n in ("q", "k", "v", "dout"))
    rest = {n: c.arrays[n] for n in ("dropout_mask", "mask") if n in c.arrays}
    own = {**rest, **c.options}
    right = attention_stages(q, k, v, **own)
    wrong = attention_stages(q, k, v, **{**own, **(scores or {})})
    saved = attention_stages(q, k, v, **{**own, **(row_sums or {})}).out
    P = wrong.weights if normalised else np.exp(wrong.masked - right.lse[..., None])
    keep = c.arrays.get("dropout_mask", np.ones((N, M))) * c.options.get("dropout_scale", 1)
    dS = P * ((dout @ v.T) * keep - (dout * saved).sum(-1, keepdims=True))
    cap = {**own, **(scores or {})}.get("softcap")
    if cap is not None:
        dS = dS * (1 - np.tanh(wrong.raw / cap) ** 2)
    scale = own.get("scale", D**-0.5)
    return {"dq": scale * dS @ k, "dk": scale * dS.T @ q, "dv": (P * keep).T @ dout}


MASK = RNG.random((N, M)) < 0.8
KEPT = {"dropout_mask": RNG.random((N, M)) < 0.7}


@pytest.mark.parametrize(
    ("options", "arrays", "wrong", "said"),
    [
        ({"softcap": 0.7}, {}, {"softcap": None}, "soft"),
        ({"window": [2, 1]}, {}, {"window": (2, None)}, "window"),
        ({"window": [2, 1], "causal": True}, {}, {"window": None}, "window"),
        ({"causal": True}, {}, {"causal": False}, "causal"),
        ({"causal": True, "causal_offset": 2}, {}, {"causal_offset": 0}, "offset"),
        ({}, {"mask": MASK}, {"mask": None}, "mask"),
    ],
)
def test_scores_that_lack_an_option_beside_the_right_lse_are_named(
    options: dict[str, Any], arrays: dict[str, Array], wrong: dict[str, Any], said: str
) -> None:
    c = case(options, **arrays)
    assert_right(c, gradients(c))
    found = diagnose(c, gradients(c, scores=wrong))
    assert found.startswith(SAME), found
    assert SAVED in found
    assert said in found


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_row_sums_without_dropout_are_named(scale: float) -> None:
    c = case({"dropout_scale": scale, "causal": True}, **KEPT)
    assert_right(c, gradients(c))
    wrong = {"dropout_mask": None, "dropout_scale": 1.0}
    found = diagnose(c, gradients(c, row_sums=wrong))
    assert found.startswith(SAME), found
    assert "without dropout" in found
    assert "in the row sums of the gradient alone, in dq and dk alone" in found


def test_one_gradient_alone_may_make_its_weights_from_other_scores() -> None:
    c = case({"causal": True, "softcap": 0.5})
    want, wrong = exact(c), gradients(c, scores={"causal": False})
    found = diagnose(c, {**want, "dv": wrong["dv"]})
    assert SAVED in found, found
    assert "causal" in found
    assert found.endswith("in dv alone")


def assert_right(c: Case, got: dict[str, Array]) -> None:
    """That these gradients have no more than what is put into them."""
    for name, x in exact(c).items():
        np.testing.assert_allclose(got[name], x, atol=1e-12)


@pytest.mark.parametrize("make", [np.zeros_like, lambda x: x + RNG.standard_normal(x.shape)])
def test_other_errors_are_not_blamed_on_it(make: Callable[[Array], Array]) -> None:
    c = case({"causal": True, "softcap": 0.5, "window": [3, 2]})
    found = diagnose(c, {name: make(x) for name, x in exact(c).items()})
    assert not any(part in found for part in ("saved", "row sums", "makes its weights"))
