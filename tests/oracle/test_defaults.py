"""An oracle that is called as its operator is, with nothing stated, computes the same."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from nlattn.conformance.table import TABLE, OpSpec

OTHERWISE = {
    ("patchmatch", "iterations"): "None is 5 for random candidates",
    ("patchmatch", "jumps"): "None is (8, 4, 2, 1) for random candidates",
    ("psal", "iterations"): "None is 5 for random candidates",
    ("lewis_weights", "steps"): "plain steps, not damped ones",
}


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {x.name: x.default for x in parameters if x.default is not x.empty}


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_options_that_are_not_stated_are_the_same(spec: OpSpec) -> None:
    for kind in ("", "vjp"):
        if kind and not spec.has_vjp:
            continue
        of_op, of_oracle = (defaults(f) for f in (spec.function(kind), spec.oracle(kind)))
        for name in of_op.keys() & of_oracle.keys():
            if (spec.name, name) not in OTHERWISE:
                assert of_op[name] == of_oracle[name], (kind, name)
