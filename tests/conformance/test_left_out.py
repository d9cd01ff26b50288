"""A part of one stage that is left out has a name: the diagonal, or an end of an axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Array, Case
from nlattn.conformance.judge.by_formula import without_a_part
from nlattn.conformance.judge.diagnosis import SAME, diagnose
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

RNG = np.random.default_rng(5)


def case(op: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> Case:
    arrays = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    return Case("case", op, "vjp" if "dout" in arrays else "forward", "float64", arrays, options)


def softmax(s: Array, axis: int = -1) -> Array:
    powers = np.exp(s - s.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def efficient(dout: bool = False) -> tuple[Case, Array, Array, Array]:
    """A case of efficient attention, its queries and keys normalised, and what is no diagonal."""
    shapes = {"q": (7, 4), "k": (6, 4), "v": (6, 3)} | ({"dout": (7, 3)} if dout else {})
    c = case("efficient_attention", shapes)
    return c, softmax(c.arrays["q"]), softmax(c.arrays["k"], 0), 1.0 - np.eye(7, 6)


def test_a_diagonal_that_is_left_out_of_a_map_is_named() -> None:
    c, Q, K, off = efficient()
    said = diagnose(c, {"out": (Q @ K.T * off) @ c.arrays["v"]})
    assert said.startswith(f"{SAME}with `Q @ swapaxes(K, -1, -2)` of ")
    assert said.endswith("left out on the diagonal in efficient_attention")


@pytest.mark.parametrize("alone", [False, True])
def test_gradients_without_a_diagonal_are_named(alone: bool) -> None:
    c, Q, K, off = efficient(dout=True)
    dA = c.arrays["dout"] @ c.arrays["v"].T
    got = {"dv": (Q @ K.T * off).T @ c.arrays["dout"]}
    if not alone:
        dQ, dK = dA * off @ K, (dA * off).T @ Q
        got["dq"] = Q * (dQ - (Q * dQ).sum(-1, keepdims=True))
        got["dk"] = K * (dK - (K * dK).sum(0))
    names = tuple(n for n in exact(c) if n in got)
    with np.errstate(all="ignore"):
        fit = [
            name
            for name, measure in without_a_part(c, names)
            if "diagonal" in name and np.allclose(measure(None), measure(got), rtol=1e-9)
        ]
    where = "efficient_attention_vjp, in dv alone" if alone else "efficient_attention"
    assert any(name.endswith(f"left out on the diagonal in {where}") for name in fit)


@pytest.mark.parametrize(
    ("kept", "words"),
    [((2,), "but at the last along axis -5"), ((1, 2), "at the first along axis -5")],
)
def test_learned_queries_that_are_left_out_are_named(kept: tuple[int, ...], words: str) -> None:
    c = case("qna", {"q": (3, 4), "k": (5, 6, 4), "v": (5, 6, 2)}, window=[3, 3])
    q, k, v = (c.arrays[n] for n in "qkv")
    out = np.zeros_like(v)
    for t in kept:
        for i in range(5):
            for j in range(6):
                near = slice(max(i - 1, 0), i + 2), slice(max(j - 1, 0), j + 2)
                p = softmax((k[near] @ q[t] / 2).ravel())
                out[i, j] += p @ v[near].reshape(-1, 2)
    assert f"with `gated` left out {words} in qna" in diagnose(c, {"out": out})
