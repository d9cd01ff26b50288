"""What the catalogue does not name is named by the oracle's formula, and by who sees whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.judge import structure
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.measure import call_of
from nlattn.conformance.judge.relations import relation
from nlattn.conformance.judge.sight import by_sight, seen
from nlattn.conformance.judge.variants import formulas
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import causes
from nlattn.conformance.truth.bounds import exact

pytestmark = pytest.mark.plain

RNG = np.random.default_rng(6)


def case(op: str, kind: str = "vjp", n: int = 7, m: int = 7, **options: Any) -> Case:
    shapes = {"q": (n, 5), "k": (m, 5), "v": (m, 3)} | ({"dout": (n, 3)} if kind == "vjp" else {})
    arrays = {name: RNG.standard_normal(shape) for name, shape in shapes.items()}
    return Case("case", op, kind, "float64", arrays, options)  # type: ignore[arg-type]


def test_a_term_that_one_gradient_lacks_is_quoted() -> None:
    c = case("efficient_attention")
    want = exact(c)
    q, k, v, dout = (c.arrays[name] for name in ("q", "k", "v", "dout"))
    Q, K = (np.exp(x) / np.exp(x).sum(axis, keepdims=True) for x, axis in ((q, -1), (k, -2)))
    wrong = K * ((dout @ v.T).T @ Q)  # without the mean over keys
    said = diagnose(c, want | {"dk": wrong})
    assert said == (
        "your output equals ours with `dK` in place of `dK - (K * dK).sum(-2, keepdims=True)` in "
        "efficient_attention_vjp, in dk alone"
    )
    assert "in dk alone" not in diagnose(c, want | {"dk": 2 * want["dk"] + 1})


@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_a_number_of_no_formula_is_not_named(kind: str) -> None:
    c = case("enla", kind)
    c = replace(c, arrays={**c.arrays, "projection": RNG.standard_normal((6, 5))})
    noise = {name: RNG.standard_normal(x.shape) for name, x in exact(c).items()}
    assert not diagnose(c, noise).startswith("your output equals")


def test_a_change_leaves_the_oracle_as_it_is() -> None:
    c = case("enla", "forward")
    c = replace(c, arrays={**c.arrays, "projection": RNG.standard_normal((6, 5))})
    call = call_of(c)
    before = call()
    made = [change for change in formulas.changes("enla") if "`-top`" not in change.name]
    assert len(made) > 20
    for change in made[:20]:
        try:
            change("enla", call)
        except (ArithmeticError, TypeError, ValueError):
            continue
    np.testing.assert_array_equal(call(), before)


def test_every_kind_of_change_has_words() -> None:
    names = {change.name for change in formulas.changes("enla_vjp")}
    assert "with `dA` in place of `dA - (A * dA).sum(-1, keepdims=True)` in enla_vjp" in names
    assert "with `length.real >= floor` in place of `length.real > floor` in amplify" in names
    assert "without `dx -= c * c * x * dt.sum(-1, keepdims=True)` in features_vjp" in names
    assert not any("while" in name for name in names)


def test_rows_that_see_nothing_are_told_and_no_others() -> None:
    c = case("attention", "forward", causal=True, causal_offset=-2)
    want = exact(c)
    sees = seen(c)
    assert sees is not None
    np.testing.assert_array_equal(sees, np.tri(7, 7, -2, bool))
    stale = want["out"].copy()
    stale[:2] = 5.0
    said = by_sight(c, want, {"out": stale})
    assert said.startswith("out is right but in queries that see no key, where it should be 0")
    stale[3] = 5.0
    assert by_sight(c, want, {"out": stale}) == ""
    assert by_sight(c, want, want) == ""


def test_queries_after_the_last_key_are_told() -> None:
    c = case("attention", "forward", n=9, m=5, causal=True)
    want = exact(c)
    cut = np.where(np.arange(9)[:, None] < 5, want["out"], 0)
    assert by_sight(c, want, {"out": cut}) == (
        "out is right but in queries after the last key, where it is 0"
    )


def test_an_empty_set_has_no_other_name() -> None:
    arrays = {"k": RNG.standard_normal((9, 3))}
    c = Case("case", "universal_set", "forward", "float64", arrays, {"eps": 0.4})
    assert diagnose(c, {"out": np.zeros(9, bool)}) == "your set is empty: nothing is selected"
    assert diagnose(c, {"out": np.ones(9, bool)}).endswith("everything is selected")
    some = exact(c)["out"].astype(bool)
    assert not structure.selection(c, {"out": np.roll(some, 1)})


def test_roundings_are_no_relation() -> None:
    want = RNG.standard_normal((5, 1))
    assert relation(want, want * (1 + 1e-9), 1e-7) == ""


def test_what_has_a_name_comes_first_and_a_chance_does_not() -> None:
    same, A = "your output equals ours ", "attention/vjp/float32/"
    described = [
        Verdict(f"{A}d{i}", "fail", 2.0, diagnosis="dk is wrong, not dq") for i in range(30)
    ]
    chance = [Verdict(f"{A}c", "fail", 9.0, diagnosis=same + "with keys in reverse order")]
    named = [Verdict(f"{A}n{i}", "fail", 1.0, diagnosis=same + "without the mask") for i in "ab"]
    found = causes([*described, *chance, *named])
    assert [cause.worst.case[len(A) :] for cause in found] == ["na", "d0", "c"]


def test_what_rows_without_keys_should_hold_is_told_of_lse_too() -> None:
    c = case("attention", "forward", causal=True, causal_offset=-2, return_lse=True)
    want = exact(c)
    lse = np.where(np.isneginf(want["lse"]), 0.0, want["lse"])
    assert by_sight(c, want, {**want, "lse": lse}) == (
        "out is right, lse is right but in queries that see no key, where it should be -inf and "
        "holds numbers: were they never written?"
    )


def test_sinks_that_count_twice_and_sinks_in_base_2_are_two_mistakes() -> None:
    c = case("attention", "forward", return_lse=True, lse_base="2")
    heads = {n: np.broadcast_to(x, (2, *x.shape)).copy() for n, x in c.arrays.items()}
    c = replace(c, arrays={**heads, "sinks": np.array([0.4, -0.7])})
    for sinks, words in (
        (c.arrays["sinks"] * np.log(2), "with sinks in base 2, as lse is"),
        (c.arrays["sinks"] + np.log(2), "with the sinks counted twice, once for each half"),
    ):
        out, lse = call_of(replace(c, arrays={**c.arrays, "sinks": sinks}))()
        assert diagnose(c, {"out": out, "lse": lse}).startswith(f"your output equals ours {words}")


def test_an_option_that_some_gradients_lack_is_named_in_large_cases() -> None:
    q, k, v, dout = (RNG.standard_normal((11, 14, e)) for e in (4, 4, 3, 3))
    arrays = {"q": q, "k": k, "v": v, "dout": dout}
    c = Case("case", "neighbourhood_attention", "vjp", "float64", arrays, {"window": [3, 5]})
    right, wrong = replace(c, options={**c.options, "dilation": [2, 1]}), exact(c)
    want = exact(right)
    said = diagnose(right, {**want, "dk": wrong["dk"]}, two=False)
    assert said.startswith("your output equals ours without the dilation, in dk alone")
    noise = {n: RNG.standard_normal(x.shape) for n, x in want.items()}
    assert "dilation" not in diagnose(right, {**want, "dk": noise["dk"]}, two=False)
