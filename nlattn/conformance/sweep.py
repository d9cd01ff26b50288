"""Cases drawn by Hypothesis, and the least one that fails: sizes, heads, values, layouts, options.

Options come from the recipes, all else is drawn: what no list of cases thought of. The same seed
draws the same cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from nlattn._types import Array
from nlattn.conformance.backends.capabilities import unsupported
from nlattn.conformance.case import DTYPES, Case, Kind, dtype_of
from nlattn.conformance.cases.arrays import layout_of
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.cases.suite import fits, make
from nlattn.conformance.judge.measure import Effort
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.runner import PATIENCE, Subject, attempt
from nlattn.conformance.table import JUDGED, OpSpec, find
from nlattn.conformance.table.recipe import Recipe
from nlattn.conformance.truth.arithmetic import precision
from nlattn.conformance.truth.bounds import allowed, exact, floating, wide

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

LARGEST = 20
"""Of every size that is drawn."""
SIDE = 9
"""The same of the sides of grids, whose cost grows by their product."""
LAYOUTS = ("C", "read-only", "strided", "reversed", "Fortran")
NEAR = 8
"""Inputs near those of a case that fails, of which the truth is asked."""
JUMP = 4.0
"""Bounds that the truth moves there at most where it does not jump: each input is moved by a
spacing, twice what bounds assume of it."""
FAR, FEW = 64.0, 8.0
"""Where the truth does not jump it moves so many times as far with inputs as much farther away, and
hardly less than so many times."""


def sweep(
    subject: Subject,
    examples: int,
    *,
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    pattern: str = "*",
    seed: int = 0,
    overrides: Mapping[str, float] | None = None,
) -> Iterator[Verdict]:
    """One verdict for every function and dtype, on as many drawn cases as `examples`.

    A failure is of the least case that was found to fail. `pattern` is of names such as
    ``attention/vjp/float32/sweep``. ModuleNotFoundError without Hypothesis.
    """
    import hypothesis  # noqa: F401  its absence is told before anything runs

    for spec in JUDGED if ops is None else map(find, ops):
        kinds: list[Kind] = ["forward", *["vjp"] * spec.has_vjp]  # type: ignore[list-item]
        if spec.has_jvp and subject.capabilities.asked("jvp", f"{spec.name}_jvp"):
            kinds.append("jvp")
        for kind in kinds if not spec.cases.search_only else []:
            for dtype in DTYPES if dtypes is None else [x for x in DTYPES if x in dtypes]:
                known = [
                    r
                    for r in recipes(spec)
                    if kind in r.kinds and fits(r, dtype) and "+" not in r.label
                ]
                if known and fnmatchcase(f"{spec.name}/{kind}/{dtype}/sweep", pattern):
                    yield _least(subject, spec, known, kind, dtype, examples, seed, overrides)


def _least(
    subject: Subject,
    spec: OpSpec,
    known: list[Recipe],
    kind: Kind,
    dtype: str,
    examples: int,
    seed: int,
    overrides: Mapping[str, float] | None,
) -> Verdict:
    """The verdict on the least case that fails, or on the closest of those that pass."""
    import hypothesis
    from hypothesis import HealthCheck, Phase

    name = f"{spec.name}/{kind}/{dtype}/sweep"
    why = unsupported(subject.capabilities, Case(name, spec.name, kind, dtype, {}))
    worst = Verdict(name, "unsupported", detail=why, seed=seed)
    if why:
        return worst

    def case(drawn: tuple[Recipe, int]) -> Case:
        recipe, number = drawn
        return make(spec, recipe, kind, dtype, number)

    def failing(drawn: tuple[Recipe, int]) -> bool:
        nonlocal worst
        verdict, _ = attempt(subject, case(drawn), overrides, effort=Effort(0))  # no names yet
        if verdict.failed:
            return not torn(case(drawn))
        if worst.status == "unsupported" or verdict.ratio > worst.ratio:
            worst = replace(verdict, case=name, seed=seed)
        return False

    shrunk = hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        drawn = drawn_recipes(spec, known)
        least = hypothesis.find(drawn, failing, settings=shrunk, random=Random(seed))
    except hypothesis.errors.NoSuchExample:
        return worst
    verdict, _ = attempt(subject, case(least), overrides, effort=Effort(PATIENCE))
    told = f"least case that fails: {described(case(least))}"
    told = "; ".join(filter(None, [verdict.detail, told]))
    return replace(verdict, case=name, seed=seed, detail=told)


def torn(case: Case) -> bool:
    """Whether the truth jumps within what rounding makes of inputs, as where chosen keys are tied.

    There no result is known. A jump is as large between inputs that are farther apart; what
    changes without one grows with their distance.
    """
    want, bounds = exact(case), allowed(case)
    near, far = ([*_beside(case, step)] for step in (1, FAR))
    for name, x in want.items():
        with np.errstate(invalid="ignore"):  # what is infinite has no distance
            moves, farther = ([abs(y[name] - x) for y in some] for some in (near, far))
        beyond = [move[move > JUMP * bounds[name]] for move in moves]
        jump = max((float(move.max(initial=0)) for move in beyond), default=0.0)
        if jump > 0 and FEW * jump > max(float(move.max(initial=0)) for move in farther):
            return True
    return False


def _beside(case: Case, step: float) -> Iterator[Mapping[str, Array]]:
    """The truth of inputs that are so many spacings of the case's dtype away."""
    unit = step * precision(dtype_of(case.dtype)).unit
    for number in range(NEAR):
        rng = np.random.default_rng(number)
        arrays = {
            name: x * (1 + unit * rng.choice((-1, 1), x.shape)) if floating(x) else x
            for name, x in wide(case.arrays).items()
        }
        yield exact(replace(case, dtype="float64", arrays=arrays))


def described(case: Case) -> str:
    """A case in words: shapes, how arrays lie in memory, options."""
    shapes = [f"{name} {x.shape}" for name, x in case.arrays.items()]
    layout = {layout_of(x) for x in case.arrays.values()} - {"C"}
    options = [f"{name}={x!r}" for name, x in case.options.items()]
    return ", ".join([*shapes, *sorted(layout), *options, f"numbers {case.seed}"])


def drawn_recipes(spec: OpSpec, known: list[Recipe]) -> SearchStrategy[tuple[Recipe, int]]:
    """A recipe like those known, and a seed for its numbers."""
    from hypothesis import strategies as st

    values = list(dict.fromkeys(r.values for r in known))
    leads = list(dict.fromkeys(r.lead for r in known if 0 not in r.lead))
    dimensions = set(" ".join([*spec.arrays.values(), *spec.extras.values()]).split())

    @st.composite
    def draw_one(draw: Any) -> tuple[Recipe, int]:
        base: Recipe = draw(st.sampled_from(known))
        lead, kind = draw(st.sampled_from(leads)), draw(st.sampled_from(values))
        if 0 in base.lead or any(name.startswith("groups") for name in base.extra):
            lead = base.lead
        layout, sizes = draw(st.sampled_from(LAYOUTS)), dict(base.sizes)
        for name in sorted(dimensions):
            low = max(spec.least.get(name, 1), 1 + (f"one-{name}" in spec.cases.without))
            most = spec.cases.most.get(name, SIDE if name[0] in "HW" else LARGEST)
            size = draw(st.integers(low, max(low, most)))
            sizes[name] = size if sizes.get(name, 1) else 0
        recipe = replace(base, label="sweep", lead=lead, values=kind, layout=layout, sizes=sizes)
        recipe = replace(recipe, sizes=_legal(spec, recipe, sizes))
        return recipe, draw(st.integers(0, 2**32 - 1))

    return draw_one()


def _legal(spec: OpSpec, recipe: Recipe, sizes: dict[str, int]) -> dict[str, int]:
    """Sizes that the operator and the values can have."""
    sizes = dict(sizes)
    if recipe.values in ("low rank", "tight"):
        sizes["d"] = max(2, sizes["d"])
    if spec.cases.causal_is_square and recipe.options.get("causal"):
        sizes["m"] = sizes["n"]
    sizes["f"] = 4
    if spec.cases.tall:
        sizes["m"] = max(sizes["m"], sizes["d"], 1 + int(recipe.options.get("i", 0)))
    return sizes
