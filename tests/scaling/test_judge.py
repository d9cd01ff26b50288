"""The judge on laws that are known: it may be undecided, it may not be wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nlattn
from nlattn.scaling import judge
from nlattn.scaling.growth import FAMILY, growth

pytestmark = pytest.mark.plain

SIZES = np.array([round(32 * 2 ** (i / 2)) ** 2 for i in range(9)])


def synthetic(law: str, noise: float, cliff: bool, seed: int) -> np.ndarray:
    """Costs of a law with log-normal noise and a jump of 1.6 at a random place."""
    rng = np.random.default_rng(seed)
    cost = growth(law)(SIZES) * np.exp(noise * rng.standard_normal(len(SIZES)))
    if cliff:
        cost = cost * np.where(np.arange(len(SIZES)) > rng.integers(len(SIZES) - 1), 1.6, 1)
    return cost


@pytest.mark.parametrize("cliff", [False, True])
@pytest.mark.parametrize("noise", [0, 0.02, 0.05, 0.1])
def test_no_verdict_is_wrong(noise: float, cliff: bool) -> None:
    for i, truth in enumerate(FAMILY):
        for j, claim in enumerate(FAMILY):
            wrong = "inconsistent" if i <= j else "consistent"
            for seed in range(6 if noise or cliff else 1):
                found = judge(SIZES, synthetic(truth, noise, cliff, seed), claim)
                assert found.verdict != wrong, (truth, claim, seed, found)
                if noise <= 0.02 and not cliff:
                    assert found.verdict != "undecided", (truth, claim, seed, found)


def test_the_constant_holds_at_every_size() -> None:
    cost = 7 * SIZES * np.log2(SIZES) + 900 * SIZES
    found = judge(SIZES[::-1], cost[::-1], "n log n")
    assert found.verdict == "consistent"
    assert found.constant == pytest.approx((cost / (SIZES * np.log2(SIZES))).max())
    assert found.low <= found.excess <= found.high < found.faster


def test_a_cliff_is_found_and_its_factor() -> None:
    cost = 3.0 * SIZES * np.where(SIZES > 20_000, 1.6, 1)
    found = judge(SIZES, cost, "n")
    assert found.verdict == "consistent"
    ((before, after, factor),) = found.cliffs
    assert before < 20_000 < after
    assert factor == pytest.approx(1.6, rel=1e-3)
    assert judge(SIZES, 3.0 * SIZES, "n").cliffs == ()


def test_what_turns_in_the_upper_half_is_undecided() -> None:
    late = SIZES + np.where(SIZES > 40_000, SIZES * (SIZES / 40_000) ** 0.2 - SIZES, 0)
    assert judge(SIZES, late, "n").verdict != "consistent"


@pytest.mark.parametrize("share", [0.13, 0.25])
@pytest.mark.parametrize(("law", "faster"), [("n log n", "n^2"), ("n", "n^2"), ("n", "n^1.5")])
def test_a_part_that_outgrows_the_law_is_found_while_it_is_small(
    law: str, faster: str, share: float
) -> None:
    f, g = growth(law)(SIZES), growth(faster)(SIZES)
    cost = np.round(f + share / (1 - share) * f[-1] / g[-1] * g)
    found = judge(SIZES, cost, law, cliffs=False)
    assert found.verdict == "inconsistent"
    assert share * 0.9 <= found.part <= share * 1.5  # a law below takes some of its place
    assert f"% of the cost at n = {SIZES[-1]:,} grows as " in found.reason
    assert judge(SIZES, f, law, cliffs=False).verdict == "consistent"
    assert judge(SIZES, cost, faster, cliffs=False).verdict == "consistent"


def test_a_trace_of_what_outgrows_the_law_decides_nothing() -> None:
    cost = SIZES * np.log2(SIZES) + 0.05 * 18 / SIZES[-1] * SIZES.astype(float) ** 2
    assert judge(SIZES, cost, "n log n", cliffs=False).verdict == "undecided"


@pytest.mark.parametrize("law", FAMILY)
def test_what_is_slower_is_no_part(law: str) -> None:
    f = growth(law)(SIZES)
    for rest in (-f / SIZES / 2, 40 * f / SIZES, 3 * f / np.log2(SIZES)):
        assert judge(SIZES, np.round(f + rest), law, cliffs=False).part == 0


def test_exactly_four_octaves_decide() -> None:
    sizes = [6400, 12800, 25600, 51200, 102400]  # their logarithms are less than 4 apart
    assert judge(sizes, [float(n) for n in sizes], "n").verdict == "consistent"


def test_few_sizes_decide_nothing() -> None:
    found = judge([64, 128, 256], [1, 2, 4], "n")
    assert found.verdict == "undecided"
    assert found.reason == "3 sizes over 2.0 octaves decide nothing"
    assert found.constant == 1 / 64


@pytest.mark.parametrize(
    ("n", "cost", "text"),
    [
        ([2, 3], [1], r"judge: \(2,\) sizes and \(1,\) costs, expected as many"),
        ([1, 3], [1, 2], "judge: n holds 1, expected sizes from 2 up"),
        ([2, 3], [1, 0], "judge: cost holds what is not positive and finite"),
    ],
)
def test_what_cannot_be_judged_is_refused(n: list[int], cost: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        judge(n, cost, "n")


@pytest.mark.parametrize(
    ("law", "value"),
    [("1", None), ("n", 16), ("log n", 4), ("n log n", 64), ("O(n^2 log^2 n)", 4096), ("n^0.5", 4)],
)
def test_laws_are_read(law: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(ValueError, match="law='1', expected n\\^a log\\^b n such as"):
            growth(law)
    else:
        assert growth(law)(16) == pytest.approx(value)


def test_complexity_is_asserted_on_counts() -> None:
    found = nlattn.assert_complexity(lambda n: n * n.bit_length(), "n log n")
    assert found.verdict == "consistent"
    text = r"^work is inconsistent with n log n: .* \(64: 4096, .*4096: 16777216|1.67772e\+07\)$"
    with pytest.raises(AssertionError, match=text):
        nlattn.assert_complexity(lambda n: n * n, "n log n")

    def searched(n: int) -> nlattn.Field:
        x = np.random.default_rng(0).standard_normal((4, n // 4, 2))
        return nlattn.patchmatch(x, x, iterations=1)

    sizes = [16, 32, 64, 128, 256]
    assert nlattn.assert_complexity(searched, "n log n", sizes=sizes, unit="scores").constant < 50
    with pytest.raises(ValueError, match="unit='seconds', expected 'multiply_adds', 'scores' or"):
        nlattn.assert_complexity(searched, "n", sizes=sizes, unit="seconds")
    mixed = lambda n: n * math.log2(n) + n * n / 1024  # noqa: E731  a quarter of it is n^2 at the end
    with pytest.raises(
        AssertionError, match=r"^work is inconsistent with n log n: .* grows as n\^2"
    ):
        nlattn.assert_complexity(mixed, "n log n")
    with pytest.raises(TypeError, match="fn returned a NoneType, expected a count, a Work, or"):
        nlattn.assert_complexity(lambda _: None, "n")
