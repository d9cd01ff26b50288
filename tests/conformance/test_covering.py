"""Every two options that may be asked at once are, in few cases."""

from __future__ import annotations

from itertools import combinations

import pytest

from nlattn.conformance.backends.capabilities import Capabilities, unsupported
from nlattn.conformance.cases.covering import in_turn, pairs
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.cases.suite import cases, make
from nlattn.conformance.table import JUDGED
from nlattn.conformance.table.recipe import Recipe
from nlattn.conformance.table.row import OpSpec

pytestmark = pytest.mark.plain

FACTORS = [
    [Recipe(f"{name}{i}") for i in range(n)] for name, n in {"a": 3, "b": 2, "c": 2, "d": 1}.items()
]


def test_all_pairs_meet_but_those_that_exclude_each_other() -> None:
    apart = {"a0": ("b1", "d0"), "c1": ("a2",)}
    made = [{*recipe.label.split("+")} for recipe in pairs(FACTORS, apart)]
    met = {frozenset(two) for labels in made for two in combinations(sorted(labels), 2)}
    never = {frozenset((one, other)) for one, others in apart.items() for other in others}
    every = {
        frozenset((x.label, y.label))
        for f, g in combinations(FACTORS, 2) for x in f for y in g
    }  # fmt: skip
    assert met == every - never
    assert len(made) <= 12


def test_levels_meet_nearly_all_dtypes() -> None:
    made = list(in_turn(pairs(FACTORS), ("float16", "bfloat16", "float64")))
    assert {len(recipe.also) for recipe in made} == {1}
    met = {(label, recipe.also[0]) for recipe in made for label in recipe.label.split("+")}
    assert len(met) >= 3 * sum(map(len, FACTORS)) - 1


@pytest.mark.parametrize("spec", [s for s in JUDGED if s.cases.together], ids=lambda s: s.name)
def test_rare_options_meet_others_in_16_bits(spec: OpSpec) -> None:
    short = {"float16", "bfloat16"}
    some = [r for r in recipes(spec) if r.tier == "smoke" and short & {*r.also}]
    met = {label for r in some for label in r.label.split("+")}
    assert {r.label for factor in spec.cases.together for r in factor} <= met
    one = some[0]
    made = {c.name for c in cases("smoke", (spec.name,), None, f"*/{one.label}")}
    asked = {kind for kind in one.kinds if f"{spec.name}/{kind}/{one.also[0]}/{one.label}" in made}
    assert asked == {*one.kinds} - {"jvp"}


@pytest.mark.parametrize("spec", [s for s in JUDGED if s.cases.together], ids=lambda s: s.name)
def test_rare_options_meet_at_smoke(spec: OpSpec) -> None:
    labels = [{*r.label.split("+")} for r in recipes(spec) if r.tier == "smoke"]
    for f, g in combinations(spec.cases.together, 2):
        for x in f:
            for y in g:
                excluded = y.label in spec.cases.apart.get(x.label, ())
                excluded |= x.label in spec.cases.apart.get(y.label, ())
                assert excluded or any({x.label, y.label} <= some for some in labels)


@pytest.mark.parametrize(
    ("taken", "pair"),
    [
        ({"softcap", "bias"}, {"softcap", "bias"}),
        ({"causal", "mask"}, {"causal", "mask"}),
        ({"causal", "cu_seqlens_q", "cu_seqlens_k"}, {"causal", "packed"}),
        ({"sinks", "qk_norm"}, {"sinks", "qk-norm"}),
    ],
)
def test_who_takes_two_options_alone_is_asked_for_both(taken: set[str], pair: set[str]) -> None:
    able = Capabilities.of({"operators": ["attention"], "options": {"attention": [*taken]}})
    asked = [
        case.name.rpartition("/")[2].split("+")
        for case in cases("smoke", ("attention",), pattern="attention/*/*+*", takes=able.narrow)
        if not unsupported(able, case)
    ]
    assert any(pair <= {*labels} for labels in asked)


def test_who_takes_all_options_is_asked_for_no_more() -> None:
    def count(**words: object) -> int:
        pattern = "attention/forward/float32/*+*"
        return sum(1 for _ in cases("smoke", ("attention",), pattern=pattern, **words))  # type: ignore[arg-type]

    assert count() == count(takes=lambda _: True) > 100


@pytest.mark.parametrize(
    "spec", [x for x in JUDGED if x.cases.together], ids=lambda spec: spec.name
)
def test_what_a_backend_takes_is_found_of_every_operator(spec: OpSpec) -> None:
    def takes(recipe: Recipe) -> bool:  # each option is asked for alone, with arrays of its own
        return bool(make(spec, recipe, "forward", "float32").arrays)

    assert recipes(spec, takes) == recipes(spec)
