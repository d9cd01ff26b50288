"""Results that were rounded once more at the end are told by their bits; what was not is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.narrow import narrowed
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

NARROWER = [
    ("float64", "float32", "float32"), ("float64", "float16", "float16 (or TF32)"),
    ("float64", "bfloat16", "bfloat16"), ("float32", "float16", "float16 (or TF32)"),
    ("float32", "bfloat16", "bfloat16"), ("float16", "bfloat16", "bfloat16"),
]  # fmt: skip


def case(dtype: str = "float32", kind: str = "forward", n: int = 3, size: float = 1.0) -> Case:
    rng = np.random.default_rng(0)
    shapes = {"q": (n, 5), "k": (13, 5), "v": (13, 4)} | ({"dout": (n, 4)} if kind == "vjp" else {})
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["v"] *= size
    given = {name: x.astype(dtype) for name, x in arrays.items()}
    return Case("case", "attention", kind, dtype, given)  # type: ignore[arg-type]


def stored(x: Any, name: str) -> Any:
    """As a dtype holds it."""
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(np.float32).astype(dtype).astype(float)


@pytest.mark.parametrize(("own", "narrow", "words"), NARROWER)
def test_a_result_that_is_rounded_at_the_end_is_named(own: str, narrow: str, words: str) -> None:
    c = case(own)
    said = diagnose(c, {"out": stored(exact(c)["out"], narrow)})
    assert said == f"your output equals ours with the result rounded to {words} at the end"


def test_few_numbers_are_enough() -> None:
    c = case(n=1)
    assert "at the end" in diagnose(c, {"out": stored(exact(c)["out"], "float16")})


@pytest.mark.parametrize(
    ("some", "words"), [("dq", "dq"), ("dq dk", "dq and dk"), ("dq dk dv", "all results")]
)
def test_results_that_are_rounded_are_told(some: str, words: str) -> None:
    c = case(kind="vjp")
    got = {n: stored(x, "bfloat16") if n in some.split() else x for n, x in exact(c).items()}
    assert (
        diagnose(c, got) == f"your output equals ours with {words} rounded to bfloat16 at the end"
    )


def test_numbers_that_are_cut_off_at_the_end_are_named() -> None:
    c = case()
    bits = exact(c)["out"].astype(np.float32).view(np.uint32) & 0xFFFF0000
    said = diagnose(c, {"out": bits.view(np.float32)})
    assert said == "your output equals ours with the result cut off to bfloat16 at the end"


@pytest.mark.parametrize("size", [1e5, 1e-6])
def test_numbers_that_float16_cannot_hold_are_infinite_or_few(size: float) -> None:
    c = case(size=size)
    short = stored(exact(c)["out"], "float16")
    assert np.isinf(short).any() or size < 1
    said = diagnose(c, {"out": short})
    assert said == "your output equals ours with the result rounded to float16 at the end"


def test_what_is_computed_in_less_precision_is_not_rounded_at_the_end() -> None:
    c = case("float64")
    q, k, v = (x.astype(np.float16) for x in c.arrays.values())
    p = np.exp(q @ k.T * np.float16(5**-0.5))
    got = {"out": (p / p.sum(-1, keepdims=True) @ v).astype(float)}
    assert narrowed(c, ("out",), exact(c), got) == []


@pytest.mark.parametrize("size", [2.0**-12, 2.0**-9])
def test_errors_of_that_size_that_are_no_roundings_have_no_name(size: float) -> None:
    c = case()
    want = exact(c)
    noise = 1 + size * np.random.default_rng(1).uniform(-1, 1, want["out"].shape)
    assert narrowed(c, ("out",), want, {"out": want["out"] * noise}) == []


def test_whole_numbers_tell_nothing() -> None:
    c = next(cases("smoke", ("topk_keys",), ("float32",)))
    want = exact(c)
    assert narrowed(c, ("out",), want, {"out": want["out"] + 1}) == []
    c = case()
    whole = {"out": np.ones((3, 4))}
    assert narrowed(c, ("out",), whole, whole) == []
