"""Numbers that a right implementation has not are found; and what is no such number is not."""

from __future__ import annotations

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.hidden import hidden
from nlattn.conformance.judge.measure import Effort, call_of
from nlattn.conformance.judge.variants.base import softmax
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

Array = np.ndarray


def case(name: str) -> Case:
    return next(cases("smoke", (name.split("/")[0],), (name.split("/")[2],), name))


def powers(c: Case) -> tuple[Array, Array]:
    """Scores of plain attention less their largest, and values."""
    q, k, v = (np.asarray(c.arrays[n], float) for n in "qkv")
    s = call_of(c).scale * q @ np.swapaxes(k, -1, -2)
    return s - s.max(-1, keepdims=True), v


@pytest.mark.parametrize("ridge", [3e-9, 2.5e-4, 0.7])
@pytest.mark.parametrize("name", ["primes", "square"])
def test_a_ridge_of_any_size_is_found(name: str, ridge: float) -> None:
    c = case(f"leverage_scores/forward/float64/{name}")
    k = np.asarray(c.arrays["k"], float)
    inverse = np.linalg.inv(np.swapaxes(k, -1, -2) @ k + ridge * np.eye(k.shape[-1]))
    said = diagnose(c, {"out": np.einsum("...jd,...de,...je->...j", k, inverse, k)})
    assert said == f"your output equals ours with a ridge of {ridge:.3g} added to the Gram matrix"


@pytest.mark.parametrize("name", ["rising", "falling", "sink"])
@pytest.mark.parametrize("least", [5.5, 8.0, 11.25])
def test_exponents_with_a_floor_are_no_less_precision(name: str, least: float) -> None:
    c = case(f"attention/forward/float64/{name}")
    z, v = powers(c)
    e = np.exp(np.maximum(z, -least))
    said = diagnose(c, {"out": e / e.sum(-1, keepdims=True) @ v})
    assert (
        said
        == f"your output equals ours with exponents no less than -{least:.3g} below the largest"
    )


def test_small_weights_that_are_left_out_have_a_name() -> None:
    c = case("attention/forward/float64/rising")
    z, v = powers(c)
    said = diagnose(c, {"out": softmax(np.where(z < -6, -np.inf, z)) @ v})
    assert said.startswith("your output equals ours with weights below exp(-")


def test_other_errors_are_no_such_number() -> None:
    for name in ("leverage_scores/forward/float64/primes", "attention/forward/float64/rising"):
        c = case(name)
        want, rng = exact(c), np.random.default_rng(3)
        noise = want["out"] * (1 + 1e-7 * rng.standard_normal(want["out"].shape))
        for got in (noise, 1.01 * want["out"], want["out"] + 1e-3):
            assert hidden(c, want, {"out": got}, Effort()) == []
        assert hidden(c, want, {"out": noise}, Effort(seconds=0)) == []
