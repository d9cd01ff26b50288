"""Of results that are not determined, what is promised is judged: neither more nor less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.verdict import judge
from nlattn.oracle.certified import scores, weights
from nlattn.oracle.lewis import lewis_weights, lp_sensitivity

pytestmark = pytest.mark.plain

Results = dict[str, Any]


def case(op: str, label: str) -> Case:
    (found,) = suite.cases("smoke", (op,), ("float64",), f"{op}/forward/*/{label}")
    return found


def certified(
    c: Case, drop: Callable[[Any, float], Any], said: Callable[[Any], Any] = lambda x: x
) -> Results:
    """What leaves out the weights that `drop` says, and reports `said` of their share."""
    options = {
        n: c.options[n] for n in ("weight", "scale", "bandwidth", "causal") if n in c.options
    }
    P, lse = weights(scores(c.arrays["q"], c.arrays["k"], mask=c.arrays.get("mask"), **options))
    gone = drop(P, c.options["tolerance"])
    left = np.where(gone, 0, P)
    part = np.where(gone, P, 0).sum(-1)
    total = left.sum(-1)
    out = (left / np.where(total == 0, 1, total)[..., None]) @ c.arrays["v"]
    found = {"out": out}
    if "return_lse" in c.options:
        found |= {"lse": lse + np.log(np.where(total == 0, 1, total))}
        found |= {"missed": said(part)}
    return found


def each_small(P: Any, tolerance: float) -> Any:
    return tolerance / 4 > P


def together_small(P: Any, tolerance: float) -> Any:
    """The least weights, as many as the tolerance has room for."""
    order = np.argsort(P, -1)
    sums = np.cumsum(np.take_along_axis(P, order, -1), -1)
    gone = np.zeros(P.shape, bool)
    np.put_along_axis(gone, order, sums <= 0.9 * tolerance, -1)
    return gone


SHARES = ("shares-1e-06", "shares-0.001", "shares-0.1")
MISSED = ("missed-1e-06", "missed-0.001", "missed-0.1", "missed-masked", "missed-gaussian")


@pytest.mark.parametrize("label", [*MISSED, *SHARES, "within-1e-06", "within-0.001", "within-0.1"])
def test_what_keeps_to_the_tolerance_passes(label: str) -> None:
    c = case("certified_attention", label)
    verdict = judge(c, certified(c, together_small))
    assert (verdict.status, verdict.detail) == ("pass", "")


@pytest.mark.parametrize("label", MISSED)
def test_shares_that_are_too_large_or_unsaid_fail(label: str) -> None:
    c = case("certified_attention", label)
    assert judge(c, certified(c, each_small)).failed
    verdict = judge(c, certified(c, together_small, lambda x: x / 2))
    assert verdict.failed
    assert "misplaces" in verdict.detail
    assert judge(c, certified(c, together_small, lambda x: x * 0 - 1e-3)).failed


@pytest.mark.parametrize("label", SHARES)
def test_shares_are_seen_without_the_normaliser(label: str) -> None:
    c = case("certified_attention", label)
    verdict = judge(c, certified(c, lambda P, tolerance: together_small(P, 4 * tolerance)))
    assert verdict.failed
    assert "misplaces" in verdict.detail


def test_no_result_is_called_right_that_is_judged_by_a_promise() -> None:
    c = case("certified_attention", "missed-0.1")
    P, lse = weights(scores(c.arrays["q"], c.arrays["k"]))
    kept = np.where(P > 0.001, P, 0)
    out = kept / kept.sum(-1, keepdims=True) @ c.arrays["v"]
    got = {"out": out, "lse": lse, "missed": np.zeros(lse.shape)}
    assert "where missed says 0" in judge(c, got).detail
    assert "not lse" not in diagnose(c, got)


def test_a_share_above_the_tolerance_fails() -> None:
    c = case("certified_attention", "missed-0.001")
    verdict = judge(c, certified(c, together_small, lambda x: 0 * x + 2e-3))
    assert verdict.failed
    assert verdict.output == "missed"


@pytest.mark.parametrize("label", ["no-step", "one-step", "two-steps"])
def test_ends_hold_after_any_number_of_steps(label: str) -> None:
    c = case("lp_sensitivity", label)
    rest = {n: c.options[n] for n in ("i", "p", "steps")}
    low, high = lp_sensitivity(c.arrays["k"], **rest)
    assert judge(c, {"lower": low, "upper": high}).status == "pass"
    verdict = judge(c, {"lower": low, "upper": low})
    assert verdict.failed
    assert "upper is below the sensitivity" in verdict.detail
    assert judge(c, {"lower": high, "upper": high}).failed
    assert judge(c, {"lower": np.nan, "upper": high}).failed


def test_ends_are_as_near_as_tol_says() -> None:
    c = case("lp_sensitivity", "tol")
    assert judge(c, {"lower": np.float64(0), "upper": np.float64(1)}).failed


def test_weights_are_as_near_as_tol_says() -> None:
    c = case("lewis_weights", "tol")
    for steps, status in ((0, "fail"), (1, "fail"), (100, "pass")):
        w, _ = lewis_weights(c.arrays["k"], c.options["p"], steps=steps)
        assert judge(c, {"out": w}).status == status
    assert judge(c, {"out": -w}).failed


def test_a_weight_of_exactly_eps_is_in() -> None:
    c = case("universal_set", "at-eps")
    assert judge(c, {"out": np.arange(13) == 1}).status == "pass"
    assert judge(c, {"out": np.zeros(13, bool)}).failed
