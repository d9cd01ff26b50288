"""Errors of one sign that no single case shows: pooled over the cases of an operator and dtype."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.perform import perform
from nlattn.conformance.cases.suite import cases, make
from nlattn.conformance.judge.bias import LEAST, Lean, pooled
from nlattn.conformance.judge.errors import errors, same_rows
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.runner import Here, run
from nlattn.conformance.table import find
from nlattn.conformance.table.recipe import Recipe
from tests.conformance.rightful import Rightful

pytestmark = pytest.mark.plain

ALONE = 1024
"""Numbers of an array from which on a case tells such a bias by itself."""


class Leaning:
    """Right but for a factor, in float32, rounded once."""

    name = "leaning"
    capabilities = {"operators": ["attention"], "gradients": False}  # noqa: RUF012

    def __init__(self, by: float):
        self.factor = np.float32(1 + by)

    def attention(self, q: Any, k: Any, v: Any) -> Any:
        wide = (x.astype(np.float32) for x in (q, np.swapaxes(k, -1, -2), v))
        q_, k_, v_ = wide
        s = q_ @ k_ / np.sqrt(np.float32(q.shape[-1]))
        p = np.exp(s - s.max(-1, keepdims=True, initial=-np.inf))
        return (self.factor * (p @ v_) / p.sum(-1, keepdims=True)).astype(q.dtype)


@pytest.mark.parametrize(("by", "told"), [(0.0, ""), (6e-4, "large"), (-6e-4, "small")])
def test_a_bias_of_a_sixth_of_a_unit_is_seen_in_all_cases_together(by: float, told: str) -> None:
    every = cases("smoke", ("attention",), ("bfloat16",), "*/forward/*")
    given = [c for c in every if {*c.arrays} == {*"qkv"} and not c.options]
    given = [c for c in given if all(c.sizes().values())]
    given = [c for c in given if max(x.size for x in c.arrays.values()) < ALONE]
    found = list(run(Here(Leaning(by)), given))
    wrong = [v for v in found if v.failed]
    assert [v.case for v in wrong] == ["attention/behaviour/bfloat16/bias"] * bool(told)
    for v in wrong:
        said = re.search(f"too {told} by ([0-9.e-]+) .* average out to ([0-9.e-]+)", v.detail)
        assert said
        assert abs(float(said[1]) - abs(by)) < 3 * float(said[2])


def test_biases_are_pooled_by_what_each_is_worth() -> None:
    weak = [Lean(1.0, 1.0, 0.0)] * (LEAST - 1)
    assert pooled(weak) == ""
    assert pooled([*weak, Lean(0.0, 1e-3, 0.0)]) == ""
    said = pooled([*weak, Lean(-0.01, 1e-3, 0.0)])
    assert said == (
        "results of 8 cases together are too small by 0.01 of themselves, where roundings average "
        "out to 0.001"
    )
    assert pooled([*weak, Lean(-0.01, 1e-3, 0.005)]) == ""  # constants may be off by so much


def test_errors_that_a_row_shares_count_once() -> None:
    rng = np.random.default_rng(0)
    want, each = np.ones((50, 20)), np.full((50, 20), 1e-3)
    want += 1e-2 * rng.random((50, 1))  # rows that are equal would share all errors
    alone = want + 1e-3 * rng.standard_normal((50, 20))
    shared = want + 1e-3 * rng.standard_normal((50, 1))
    doubts = []
    for got in (alone, shared):
        lean = Lean.of(got, want, each, errors(got, want, each), 0.0)
        assert lean is not None
        doubts.append(lean.doubt)
    assert 3 < doubts[1] / doubts[0] < 6  # the root of 20 is 4.5
    one = np.ones(1)
    assert Lean.of(one, one, one, errors(one, one, one), 0.0) is None


def test_equal_rows_count_once() -> None:
    rng = np.random.default_rng(0)
    want, each = np.repeat(rng.standard_normal((5, 1, 20)), 10, 1), np.full((5, 10, 20), 1e-3)
    got = want + np.repeat(1e-3 * rng.standard_normal((5, 1, 20)), 10, 1)
    found, alone = errors(got, want, each), errors(got[:, 0], want[:, 0], each[:, 0])
    np.testing.assert_allclose([found.bias, found.doubt], [alone.bias, alone.doubt], rtol=1e-12)
    lean = Lean.of(got, want, each, found, 0.0)
    assert lean is not None
    np.testing.assert_allclose(lean.doubt, alone.doubt, rtol=1e-12)
    assert [*same_rows(want[:, :2, :1])] == [*np.repeat(same_rows(want[:, 0, :1]), 2)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("equal", ["all rows", "some rows"])
def test_equal_weights_rounded_alike_are_no_bias(equal: str, dtype: str) -> None:
    """1/m in 16 bits is off by up to half a unit, in all rows and heads alike."""
    spec, leans = find("attention"), []
    for number, m in enumerate((7, 11, 13, 23, 27, 29, 37, 41, 43)):
        sizes = {"n": 20, "m": m, "d": 8, "e": 40}
        options = {"scale": 0.0} if equal == "all rows" else {}
        case = make(
            spec, Recipe(f"mean-{m}", options, sizes, lead=(2, 3)), "forward", dtype, number
        )
        case.arrays["q"][..., :8, :] = 0
        for name in ("divided first", "at once"):
            verdict = judge(case, perform(Rightful(name), case).outputs)
            assert verdict.status == "pass", verdict
            leans += [verdict.lean] if verdict.lean is not None else []
    assert pooled(leans) == ""


def test_a_lean_by_hand() -> None:
    """Rows off by 3 and by 1 units lean by 2, as two rows of one unit about it do; else unknown."""
    want, each = np.ones((2, 10)), np.ones((2, 10))
    want[1] = -1  # of equal rows errors are the same
    got = want * np.array([[4.0], [2.0]])
    got[0, 8] = want[0, 8] = np.nan
    each[0, 9], each[1, 8] = 0, np.inf
    got[1, 9] = want[1, 9] = np.inf
    found = errors(got, want, each)
    lean = Lean.of(got, want, each, found, 0.25)
    assert lean is not None
    assert lean.shared == 0.25
    np.testing.assert_allclose([lean.bias, lean.doubt], [2, np.sqrt(2 * 8.0**2) / 16])
    assert Lean.of(got, want, each, found._replace(doubt=0.0), 0.25) is None
    assert Lean.of(got, want, each, found._replace(doubt=np.inf), 0.25) is None
    assert Lean.of(got, want, each, found._replace(elements=8), 0.25) is not None
    assert Lean.of(got, want, each, found._replace(elements=7), 0.25) is None
    sure = Lean.of(got, want, each, found._replace(doubt=3.0), 0.25)
    assert sure is not None
    assert sure.doubt == 3


def test_six_standard_errors_are_allowed() -> None:
    most = 6 * 8**-0.5
    assert pooled([Lean(most, 1.0, 0.0)] * 8) == ""
    assert "too large" in pooled([Lean(np.nextafter(most, 9), 1.0, 0.0)] * 8)
    assert "too small" in pooled([Lean(-(most + 1.001), 1.0, 1.0)] * 8)
