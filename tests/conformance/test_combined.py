"""Two mistakes at once, mistakes of one part, options a little off: each has its words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.judge import variants
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.measure import call_of, results
from nlattn.conformance.judge.relations import relation
from nlattn.conformance.judge.variants.base import Variant, both
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

RNG = np.random.default_rng(4)
BY_NAME = {variant.name: variant for variant in variants.of("attention")}
CAUSAL = "causal by one key too few"
PAIRS = [
    ("with a scale of 1", CAUSAL),
    ("without the mask", "with powers of 2 in place of e"),
    ("with the bias subtracted", "without the last key"),
    (CAUSAL, "with the scale squared"),
]


def case(heads: int = 0, n: int = 11, m: int = 13) -> Case:
    lead = (heads,) if heads else ()
    shapes = {"q": (*lead, n, 5), "k": (*lead, m, 5), "v": (*lead, m, 3), "bias": (*lead, n, m)}
    arrays = {name: RNG.standard_normal(x).astype(np.float32) for name, x in shapes.items()}
    arrays["mask"] = RNG.random((*lead, n, m)) < 0.7
    options = {"causal": True, "scale": 0.3, "causal_offset": 2}
    return Case("case", "attention", "forward", "float32", arrays, options)


def made(c: Case, variant: Variant) -> dict[str, np.ndarray]:
    found = results(c, variant, call_of(c))
    assert found is not None
    return {name: x.astype(np.float32) for name, x in found.items()}


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_mistakes_at_once_have_both_their_names(one: str, other: str) -> None:
    c = case()
    got = made(c, both(BY_NAME[one], BY_NAME[other]))
    said = f"your output equals ours {', and '.join(sorted((one, other)))}"
    assert diagnose(c, got) == said
    assert diagnose(c, got, two=False) == ""


def test_a_mistake_of_the_last_head_alone_says_so() -> None:
    c = case(heads=3)
    got = exact(c)["out"].copy()
    got[-1] = made(c, BY_NAME["with the scale squared"])["out"][-1]
    assert diagnose(c, {"out": got}) == (
        "your output equals ours with the scale squared, from head 2 on alone"
    )


def test_an_option_that_is_a_little_off_is_told_with_its_number() -> None:
    c = case(n=40)
    call = call_of(c)
    got = np.asarray(call.given(scale=0.3 * (1 + 1e-3))()).astype(np.float32)
    said = diagnose(c, {"out": got})
    assert said.startswith("your output equals ours with scale = ")
    assert float(said.split(" = ")[1].split()[0]) == pytest.approx(0.3003, rel=1e-5)


def test_the_default_of_an_option_may_be_a_little_off() -> None:
    c = replace(case(n=40), options={"causal": True})
    got = np.asarray(call_of(c).given(scale=5**-0.5 * (1 + 1e-3))()).astype(np.float32)
    said = diagnose(c, {"out": got})
    assert said.startswith("your output equals ours with scale = ")
    assert float(said.split(" = ")[1].split()[0]) == pytest.approx(5**-0.5 * 1.001, rel=1e-5)


WANT = RNG.standard_normal((5, 4))


@pytest.mark.parametrize(
    ("got", "said"),
    [
        (WANT**2, "the square of ours"),
        (abs(WANT), "ours without its sign"),
        (WANT + 0.25, "ours plus 0.25"),
        (WANT * np.arange(1, 6)[:, None], "ours, each row times a factor of its own, 1 to 5"),
        (WANT * np.arange(1, 5), "ours, each channel times a factor of its own, 1 to 4"),
        (WANT[::-1], "ours with its rows in reverse order"),
        (np.roll(WANT, -1, -2), "ours, each of its rows from the next"),
        (WANT[[0, 2, 1, 3, 4]], "made of our rows, 2 of them at another place: row 1 is our 2"),
        (np.where(WANT[1, 2] == WANT, np.nan, WANT), "right but NaN in 1 of 20 places"),
        (RNG.standard_normal((5, 4)), ""),
    ],
)
def test_how_a_result_relates_to_ours(got: np.ndarray, said: str) -> None:
    assert relation(WANT, got, 1e-9).startswith(said)
    if not said:
        assert relation(WANT, got, 1e-9) == ""


def test_numbers_where_ours_are_nan_are_told() -> None:
    want = np.where(WANT[1, 2] == WANT, np.nan, WANT)
    said = relation(want, np.nan_to_num(want), 1e-9)
    assert said == "right but 0 where ours is NaN, in 1 places, first at [1, 2]"
