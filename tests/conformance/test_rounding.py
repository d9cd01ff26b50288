"""Every rule of the error analysis: it holds the worst that can happen, and little more.

Operands are moved to the ends of their errors, all combinations of them, in longdouble: the largest
change of the result must stay below the rule's error, and above two thirds of it. So a rule that
loses a term, or takes half of it, fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from nlattn.conformance.truth.analysis import Analysis
from nlattn.conformance.truth.arithmetic import Arithmetic
from nlattn.conformance.truth.heads import together
from nlattn.conformance.truth.rounding import Rounded, factor

pytestmark = pytest.mark.plain

X = np.array([0.5, 1.25, 3.0, 0.75])
Y = np.array([2.0, -1.5, 0.625, -4.0])
E, F = 2.0**-6 * np.array([1.0, 2.0, 0.5, 3.0]), 2.0**-6 * np.array([0.5, 4.0, 1.0, 2.0])
HALF = replace(Arithmetic.of("float16", accumulate="own"))
SINGLE, DOUBLE = Arithmetic.of("float32"), Arithmetic.of("float64")


@contextmanager
def now(arithmetic: Arithmetic) -> Iterator[Any]:
    with patch.object(Rounded, "now", arithmetic), np.errstate(all="ignore"):
        yield Analysis()


RULES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "x + y": lambda _, x, y: x + y,
    "x - y": lambda _, x, y: x - y,
    "3 - y": lambda _, __, y: 3 - y,
    "x + array": lambda _, x, __: Y + x,
    "x y": lambda _, x, y: x * y,
    "2 x": lambda _, x, __: 2 * x,
    "x / y": lambda _, x, y: x / y,
    "x / 2": lambda _, x, __: x / 2,
    "2 / y": lambda _, __, y: 2 / y,
    "x^2": lambda _, x, __: x**2,
    "x^3": lambda _, x, __: x**3,
    "y^4": lambda _, __, y: y**4,
    "x^0.5": lambda _, x, __: x**0.5,
    "x^1.5": lambda _, x, __: x**1.5,
    "-x": lambda _, x, __: -x,
    "|y|": lambda _, __, y: abs(y),
    "exp x": lambda f, x, _: f.exp(x),
    "exp y": lambda f, _, y: f.exp(y),
    "log x": lambda f, x, _: f.log(x),
    "sqrt x": lambda f, x, _: f.sqrt(x),
    "tanh x": lambda f, x, _: f.tanh(x),
    "sum": lambda _, x, __: x.sum(),
    "mean": lambda _, x, __: x.mean(),
    "means": lambda _, x, __: x.reshape(2, 2).mean(1),
    "x . y": lambda _, x, y: x @ y,
    "array . y": lambda _, __, y: X @ y,
    "einsum": lambda f, x, y: f.einsum("i,i->", x, y),
    "outer": lambda f, x, y: f.einsum("i,j->ij", x, y),
    "append": lambda f, x, y: f.append(x, y),
    "stack": lambda f, x, y: f.stack([x, y]),
    "where": lambda f, x, y: f.where(np.array([True, False, True, False]), x, y),
}


def corners(rule: Callable[..., Any]) -> Any:
    """The largest change of a result over all ends of both operands."""
    x, y, e, f = (a.astype(np.longdouble) for a in (X, Y, E, F))
    base, worst = rule(np, x, y), 0.0
    for signs in product((-1, 1), repeat=8):
        moved = rule(np, x + e * signs[:4], y + f * signs[4:])
        worst = np.maximum(worst, abs(moved - base))
    return worst


@pytest.mark.parametrize("name", RULES)
def test_a_rule_holds_what_errors_of_operands_do_and_little_more(name: str) -> None:
    with now(DOUBLE) as functions:
        got = RULES[name](functions, Rounded(X, E), Rounded(Y, F))
    worst = corners(RULES[name])
    np.testing.assert_allclose(got.value, RULES[name](np, X, Y), rtol=1e-15)
    assert (got.error >= worst * (1 - 1e-12)).all()
    assert (got.error <= 1.5 * worst + 1e-14).all()


def test_what_is_0_for_certain_has_no_error() -> None:
    x, y = np.array([[0.0, 0], [0.5, 0]]), np.array([0.0, 2.0])
    with now(HALF):
        got = Rounded(x) @ Rounded(y)
    assert got.error.tolist() == [0, 0]
    with now(HALF):
        assert (Rounded(np.array([0.5, 0])) @ Rounded(np.array([0.25, 0]))).error > 0


def test_comparisons_are_of_values() -> None:
    x = Rounded(X, E)
    assert (x == Rounded(X, F)).all()
    assert not (x == Y).any()
    assert (x != Y).all()
    assert not (x != X).any()


def test_factors_are_rounded_once() -> None:
    """A rounding to n bits errs by a unit at most, by its root third on average."""
    half = Arithmetic.of("float16")
    assert half.factors is not None
    for typical, share in ((False, 1.0), (True, 3**-0.5)):
        with now(replace(half, typical=typical)):
            got = factor(Rounded(np.array([1 / 3, 0.5]), np.array([1e-9, 0])))
        assert got.error[0] == pytest.approx(share * half.factors.unit / 3, rel=1e-2)
        assert got.error[1] == 0  # it is held exactly
    assert Rounded.backward is False


ROUNDINGS = {
    "x + y": 1, "x - y": 1, "x y": 1, "x / y": 1, "x^2": 1, "x^3": 2, "exp x": 1, "log x": 1,
    "sqrt x": 1, "tanh x": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_rule_adds_its_own_rounding(name: str) -> None:
    """At least what one rounding of the result is, and at most a few."""
    with now(HALF) as functions:
        got = RULES[name](functions, Rounded(X), Rounded(Y))
    own = HALF.sums.unit * abs(got.value)
    assert (got.error >= ROUNDINGS[name] * own).all()
    assert (got.error <= (18 if name == "x^3" else 12) * own + 1e-3 * (name == "log x")).all()


def test_exponentials_add_what_their_argument_is_rounded_by() -> None:
    with now(HALF) as functions:
        got = functions.exp(Rounded([8.0]))
    assert got.error[0] >= np.exp(8) * (np.expm1(8 * 2**-11) + 2**-11)
    assert got.error[0] <= np.exp(8) * (np.expm1(8 * 2**-11) + 6 * 2**-11)


def test_sums_and_products_grow_with_their_length() -> None:
    """``u min(n + 1, 2 sqrt(n + 1))``, and a whole sum where it stagnates."""
    with now(HALF):
        grown = [(2, 3), (15, 8 * (1 + 30 * 2**-11)), (99, 20 * (1 + 198 * 2**-11))]
        for n, units in [(1, 2), *grown]:
            got = Rounded(np.ones(n)) @ np.ones(n)
            assert got.error == pytest.approx(units * 2**-11 * n, rel=1e-3)
        for n, units in grown:
            assert Rounded(np.ones(n)).sum().error == pytest.approx(units * 2**-11 * n, rel=1e-3)
        assert Rounded(np.ones(1)).sum().error < 1e-6  # nothing is added to it
    with now(SINGLE):
        assert (Rounded(np.ones(10**6)) @ np.ones(10**6)).error < 2e3 * 2**-24 * 1.2e6


def test_infinite_errors_stay_infinite() -> None:
    """What may overflow is unknown, unless it is multiplied by an exact 0."""
    inf = np.inf
    with now(SINGLE):
        got = Rounded([0.0, 0.0, 1.0], [0.1, 0.0, 0.0]) * Rounded([2.0] * 3, [inf] * 3)
        assert got.error.tolist() == [inf, 0, inf]
        got = Rounded([[0.0, 1.0]], [[0.1, 0.0]]) @ Rounded([[2.0], [1.0]], [[inf], [0.0]])
        assert got.error.tolist() == [[inf]]
        got = Rounded([[0.0, 1.0]]) @ Rounded([[2.0], [1.0]], [[inf], [0.0]])
        assert np.isfinite(got.error).all()
        assert (Rounded([1.0]) / Rounded([0.5], [0.6])).error == [inf]
        assert (Rounded([0.0]) / Rounded([0.5], [0.6])).error == [0]
        assert (Rounded([1.0], [inf]) - 1).error == [inf]
        assert (Rounded([3e38]) + Rounded([3e38])).error == [inf]
        assert Rounded([2e38], [2e38]).sum().error < inf  # of one: it is copied
        assert Rounded([2e38, 0], [2e38, 0]).sum().error == inf
        assert Analysis().exp(Rounded([87.0, -200.0], [3.0, 0.0])).error.tolist()[0] == inf


def test_a_result_that_is_not_finite_has_no_error() -> None:
    with now(SINGLE):
        assert (Rounded([np.inf, np.nan], [1.0, 1.0]) + 1).error.tolist() == [0, 0]


def test_products_that_underflow_may_be_lost() -> None:
    with now(SINGLE):
        assert (Rounded([1e-30]) * Rounded([1e-12])).error[0] >= 1e-42
        assert (Rounded([1e-30] * 3) @ Rounded([1e-12] * 3)).error >= 3e-42


def test_what_rounding_could_turn_counts_on_both_sides() -> None:
    with now(SINGLE) as functions:
        x = Rounded([1.0, 1.001, 2.0], [0.01, 0.01, 0.01])
        got = functions.where(x > 1.005, Rounded([5.0] * 3, [0.1] * 3), Rounded([7.0] * 3))
        assert got.error.tolist() == pytest.approx([2.1, 2.1, 0.1])
        got = functions.where(x < 1.005, Rounded([5.0] * 3), Rounded([7.0] * 3, [0.1] * 3))
        assert got.error.tolist() == pytest.approx([2.1, 2.1, 0.1])


def test_scattered_sums_hold_the_errors_of_their_terms() -> None:
    with now(HALF) as functions:
        x = Rounded(np.zeros(2))
        functions.add.at(x, np.array([0, 0, 1]), Rounded([1.0, 2.0, 4.0], [0.1, 0.2, 0.3]))
        assert x.value.tolist() == [3, 4]
        assert (x.error >= [0.3 + 3 * 2**-11, 0.3 + 4 * 2**-11]).all()
        assert (x.error <= [0.3 + 15 * 2**-11, 0.3 + 20 * 2**-11]).all()


def test_16_bits_are_multiplied_as_tensor_cores_do() -> None:
    """Inputs enter products as they are, what was computed is rounded to 16 bits; sums are wide."""
    with now(Arithmetic.of("float16")):
        ones = np.ones((4, 4))
        exact = Rounded(ones) @ Rounded(ones)
        assert (exact.error < 40 * 2**-24).all()
        weights = Rounded(ones, 1e-9 * ones) @ Rounded(ones)
        assert (weights.error > 4 * 2**-11).all()
        assert (weights.error < 4.1 * 2**-11).all()
        weighed = Rounded(ones, 1e-9 * ones) * Rounded(ones)  # summed later
        assert (weighed.error > 2**-11).all()
        assert (factor(Rounded([1 / 3])).error > 2**-13).all()  # no number of 16 bits
        assert factor(Rounded([0.75])).error == 0


def test_tf32_and_three_of_it() -> None:
    third = np.full((4, 4), 1 / 3, np.float32).astype(float)
    errors = {}
    for products in ("own", "tf32", "3xtf32"):
        with now(Arithmetic.of("float32", products=products)):
            errors[products] = (Rounded(third) @ Rounded(third)).error[0, 0] / (4 / 9)
    assert errors["own"] < 6 * 2**-24
    assert 2 * 2**-10 < errors["tf32"] < 2.1 * 2**-10
    assert 2 * 2**-21 < errors["3xtf32"] < 4 * 2**-21


RANDOM = [name for name in RULES if name not in ("x^4", "y^4")]


@pytest.mark.parametrize("name", RANDOM)
def test_typical_errors_are_those_of_independent_ones(name: str) -> None:
    rng, small = np.random.default_rng(1), 1e-3
    with now(replace(DOUBLE, typical=True)) as functions:
        got = RULES[name](functions, Rounded(X, small * E), Rounded(Y, small * F))
    moves = small * rng.standard_normal((2000, 2, 4))
    draws = [RULES[name](np, X + E * a, Y + F * b) for a, b in moves]
    assert got.error == pytest.approx(np.std(draws, axis=0), rel=0.2, abs=1e-15)


def test_typical_roundings_of_a_sum_in_order() -> None:
    """Half precision in order, over many random sums: as large as is typical, or less."""
    rng = np.random.default_rng(2)
    terms = rng.random((500, 64)).astype(np.float16)
    total = np.zeros(500, np.float16)
    for i in range(64):
        total = total + terms[:, i]
    with now(replace(HALF, typical=True)):
        got = Rounded(terms.astype(float)).sum(-1)
    ratio = np.sqrt((((total - got.value) / got.error) ** 2).mean())
    assert 0.4 < ratio < 1.1


@pytest.mark.parametrize(("shape", "heads"), [((2,), 3), ((3, 1), 2), ((1, 2), 3), ((1, 1), 6)])
def test_heads_that_share_an_array_may_round_each_gradient(
    shape: tuple[int, ...], heads: int
) -> None:
    """Each to half a spacing of 16 bits; the sum of these comes in float32."""
    how = Arithmetic.of("float16")
    each = np.full((3, 2), 1 + 2.0**-11)  # halfway between two numbers of float16
    with now(how):
        got = together(Rounded(each), shape)
    rounded = each.astype(np.float16).astype(float)
    worst = abs(rounded - each).max() * heads
    assert got.shape == shape
    assert (got.error >= worst).all()
    assert (got.error <= 1.01 * worst + 1e-5).all()


def test_weights_of_a_backward_pass_may_lie_in_16_bits() -> None:
    """As they do when they enter a product: ``P (dP - delta)`` takes what ``P.T dout`` took."""
    weights, rest = np.full((2, 2), 0.3), np.full((2, 2), 0.7)
    moved = abs(weights.astype(np.float16).astype(float) - weights) * rest
    errors = []
    for backward in (False, True):
        with now(Arithmetic.of("float16")), patch.object(Rounded, "backward", backward):
            errors.append((Rounded(weights, 1e-9) * Rounded(rest, 1e-9)).error)
    assert (errors[0] < moved).all()
    assert (errors[1] > moved).all()
    assert (errors[1] < 2.1 * 2**-11 * weights * rest).all()


def test_sums_of_fourteen_bits_are_cut_off_at_each_step() -> None:
    """All errors are of one sign: a product of n terms may lose n + 1 units, not their root."""
    short = Arithmetic.of_codes("e4m3", "bfloat16", "14bits")
    n, x = 64, Rounded(np.ones((1, 64)))
    with now(short):
        inside, outside = (x @ np.ones((64, 1))).error[0, 0], x.sum(-1).error[0]
    assert inside == pytest.approx((n + 1) * 2.0**-13 * n, rel=1e-6)
    assert outside < 1e-3 * inside  # other sums are in float32
    with now(replace(short, typical=True)):
        assert (x @ np.ones((64, 1))).error[0, 0] == pytest.approx(
            65**0.5 / 3 * 2**-13 * n, rel=1e-6
        )
    assert short.common == 2.0**-10
    assert Arithmetic.of_codes("e4m3", "bfloat16").common == 2.0**-24


@pytest.mark.parametrize(
    ("weights", "error"),
    [("e4m3", 0.3 / 16 + 2.0**-10), ("e5m2", 0.3 / 8 + 2.0**-17), ("int8", 1 / 254)],
)
def test_weights_of_eight_bits_are_rounded_and_inputs_are_not(weights: str, error: float) -> None:
    how = Arithmetic.of_codes(weights, "bfloat16")
    with now(how):
        given = factor(Rounded(np.array([0.3, 0.0])))
        made = factor(Rounded(np.array([0.3, 0.0]), np.array([1e-9, 0.0])))
    assert not given.error.any()
    assert made.error[0] == pytest.approx(1e-9 + error, rel=1e-9)
    assert made.error[1] == 0
    with now(Arithmetic.of_codes("bfloat16", "float32")):  # inputs may be brought to 16 bits
        assert factor(Rounded(np.array([0.3]))).error[0] == pytest.approx(0.3 / 256, rel=1e-6)
    with now(Arithmetic.of_codes("float32", "float32")):
        assert factor(Rounded(np.array([0.3]))).error[0] == 0
