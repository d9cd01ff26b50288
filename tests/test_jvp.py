"""Forward mode of every operator that has one: ``<Jx, y> = <x, J'y>``, oracle and complex step."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

import nlattn
from nlattn.conformance.case import Case, native
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.table import TABLE, OpSpec

ROWS = [spec for spec in TABLE if spec.has_jvp]
NAMED = pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
STEP = 1e-30


EVERY = 8 if numba.config.DISABLE_JIT else 1
"""Of so many cases one is tried."""
HARD = {"large", "large-mask", "deep", "deep-mask", "faint", "mask-poison"}
HARD |= {"rising", "falling", "last", "sink", "channel", "negative", "offset"}
"""Values whose scores are so large that the rounding of a score changes its weight much."""


def calls(spec: OpSpec, dtype: str = "float64") -> list[Case]:
    """Gradient cases of the kit, of finite arrays: these, their options and cotangents."""
    found = [c for c in cases("smoke", (spec.name,), (dtype,)) if c.kind == "vjp"]
    found = [c for c in found if not HARD & {*c.name.split("/")[-1].split("+")}]
    return [c for c in found if all(np.isfinite(c.arrays[n]).all() for n in "qkv")][::EVERY]


def moved(case: Case, rng: Any) -> dict[str, Any]:
    """A random direction for each array that has a gradient; what is infinite stays."""
    names = [name.removeprefix("d") for name in case.outputs]
    directions = {}
    for name in names:
        x = case.arrays[name]
        directions[f"d{name}"] = np.where(np.isfinite(x), rng.standard_normal(x.shape), 0.0)
    return directions


def forward(case: Case) -> dict[str, Any]:
    """Arguments of the forward call."""
    return {n: x for n, x in native(case.arrays).items() if n not in ("dout", "dlse")}


@NAMED
def test_it_is_the_transpose_of_the_gradient(spec: OpSpec) -> None:
    rng, tried = np.random.default_rng(4), 0
    jvp, vjp = (getattr(nlattn, f"{spec.name}_{kind}") for kind in ("jvp", "vjp"))
    for case in calls(spec):
        directions, options = moved(case, rng), dict(case.options)
        change, lse = jvp(**forward(case), **directions, **options, return_lse=True)
        gradients = vjp(**native(case.arrays), **options)
        left = (change * case.arrays["dout"]).sum()
        size = abs(change * case.arrays["dout"]).sum()
        if "dlse" in case.arrays:
            left += (lse * case.arrays["dlse"]).sum()
            size += abs(lse * case.arrays["dlse"]).sum()
        pairs = list(zip(directions.values(), gradients, strict=True))
        right = sum((x * g).sum() for x, g in pairs)
        size += sum(abs(x * g).sum() for x, g in pairs)
        assert abs(left - right) <= 1e-13 * size + 1e-300, case.name
        tried += 1
    assert tried > 20 // EVERY


@NAMED
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_it_is_the_oracle(spec: OpSpec, dtype: str) -> None:
    """Sums of some hundred terms."""
    rng = np.random.default_rng(5)
    jvp, oracle = getattr(nlattn, f"{spec.name}_jvp"), spec.oracle("jvp")
    tolerance = 64 * np.finfo(dtype).eps
    for case in calls(spec, dtype):
        directions = {n: x.astype(dtype) for n, x in moved(case, rng).items()}
        options = dict(case.options)
        got = jvp(**forward(case), **directions, **options, return_lse=True)
        wide = {
            n: x.astype(float) if getattr(x, "dtype", None) == np.float32 else x
            for n, x in {**forward(case), **directions}.items()
        }
        want = oracle(**wide, **options, return_lse=True)
        atol = tolerance * terms(case, directions)
        for mine, truth in zip(got, want, strict=True):
            assert mine.shape == truth.shape
            np.testing.assert_allclose(mine, truth, rtol=0, atol=atol, err_msg=case.name)


def terms(case: Case, directions: dict[str, Any]) -> float:
    """The size of what a change is summed from: arrays times directions."""
    changes = sum(abs(x).max(initial=0) for x in directions.values())
    return float(changes * max(1, *(abs(case.arrays[n]).max(initial=0) for n in "qkv")))


@NAMED
def test_the_oracle_is_the_complex_step(spec: OpSpec) -> None:
    rng = np.random.default_rng(6)
    for case in calls(spec)[:60]:
        directions, options = moved(case, rng), dict(case.options)
        given = forward(case)
        along = {n: given[n] + 1j * STEP * directions[f"d{n}"] for n in map(_name, directions)}
        result = spec.oracle()(**{**given, **along}, **options, return_lse=True)
        change = spec.oracle("jvp")(**given, **directions, **options, return_lse=True)
        atol = 64 * np.finfo(float).eps * terms(case, directions)
        for mine, moving in zip(change, result, strict=True):
            want = np.imag(moving) / STEP
            np.testing.assert_allclose(mine, want, rtol=0, atol=atol, err_msg=case.name)


def _name(direction: str) -> str:
    return direction.removeprefix("d")


def test_a_change_of_what_is_not_there_is_refused() -> None:
    x = np.ones((2, 3))
    text = r"^attention_jvp: dbias has shape \(2, 2\), expected nothing as bias has$"
    with pytest.raises(ValueError, match=text):
        nlattn.attention_jvp(x, x, x, x, x, x, dbias=np.ones((2, 2)))
