"""Every two options that may be asked at once are, in few cases."""

from __future__ import annotations

from itertools import combinations

import pytest

from nlattn.conformance.cases.covering import pairs
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.table import JUDGED
from nlattn.conformance.table.recipe import Recipe
from nlattn.conformance.table.row import OpSpec

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


@pytest.mark.parametrize("spec", [s for s in JUDGED if s.cases.together], ids=lambda s: s.name)
def test_rare_options_meet_at_smoke(spec: OpSpec) -> None:
    labels = [{*r.label.split("+")} for r in recipes(spec) if r.tier == "smoke"]
    for f, g in combinations(spec.cases.together, 2):
        for x in f:
            for y in g:
                excluded = y.label in spec.cases.apart.get(x.label, ())
                excluded |= x.label in spec.cases.apart.get(y.label, ())
                assert excluded or any({x.label, y.label} <= some for some in labels)
