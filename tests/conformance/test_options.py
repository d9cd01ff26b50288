"""Every option of every operator is asked for by a case at smoke, or its row says why none does."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from nlattn.conformance.cases import suite
from nlattn.conformance.judge.search import KINDS, SEARCHES, picture
from nlattn.conformance.table import JUDGED, OpSpec

pytestmark = pytest.mark.plain

PAGE = (Path(__file__).parents[2] / "docs/conformance.md").read_text()
OF_CALLS = {"nonfinite", "max_bytes", "progress", "query_grid", "key_grid"}
"""How a call is made, not what it computes."""
OF_SEARCHES = {"candidates", "iterations", "seed"}
"""How a search goes: its outcome is judged."""


def taken(spec: OpSpec) -> set[str]:
    """Keyword options of the forward pass, its gradient and its forward mode."""
    module = importlib.import_module(f"nlattn.ops.{spec.stem}")
    functions = [getattr(module, spec.name + end, None) for end in ("", "_vjp", "_jvp")]
    return {
        name
        for function in functions
        if function is not None
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY
    } - OF_CALLS


def asked(spec: OpSpec) -> set[str]:
    """Options and arrays of the cases at smoke, and of pictures to search in."""
    cases = list(suite.cases("smoke", (spec.name,), ("float32", "float64")))
    if spec.name in SEARCHES:
        cases += [picture(SEARCHES[spec.name], i, "float32") for i in range(4 * len(KINDS))]
    return {n for c in cases for n in (*c.options, *(x.partition(".")[0] for x in c.arrays))}


@pytest.mark.parametrize("spec", JUDGED, ids=lambda spec: spec.name)
def test_every_option_is_asked_for_or_it_is_said_why_not(spec: OpSpec) -> None:
    missing = taken(spec) - asked(spec)
    assert missing - OF_SEARCHES == set(spec.cases.unasked)
    assert all(spec.cases.unasked.values())


def test_the_page_names_what_is_not_asked() -> None:
    names = {name for spec in JUDGED for name in spec.cases.unasked}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
