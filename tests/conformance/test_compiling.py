"""Backends that compile for every shape are recognised, and spared programs, not kinds of cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.compiling import Compiling, compiling
from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases

pytestmark = pytest.mark.plain


class Watch:
    """A clock that calls move on: by `first` for a shape that has not been seen, else by `next`."""

    def __init__(self, first: float, later: float, warming: float = 0.0):
        self.now, self.first, self.later, self.warming = 0.0, first, later, warming
        self.seen = set[Any]()

    def ask(self, case: Case) -> Reply:
        shapes = tuple(np.shape(x) for x in case.arrays.values())
        self.now += self.later if shapes in self.seen else self.first
        self.now += 0.0 if self.seen else self.warming
        self.seen.add(shapes)
        return Reply({})


SMOKE = list(cases("smoke", ("attention",), ("float32",), "*/forward/*"))


def seen(watch: Watch) -> Compiling | None:
    return compiling(watch.ask, SMOKE, lambda: watch.now)


@pytest.mark.parametrize(
    ("watch", "compiles"),
    [
        (Watch(0.6, 0.01), True),
        (Watch(0.01, 0.01, warming=9.0), False),  # imports, or compiles once
        (Watch(0.6, 0.5), False),  # is slow
        (Watch(0.02, 0.001), False),  # too short to matter
    ],
)
def test_a_first_call_of_each_shape_that_is_slow_compiles(watch: Watch, compiles: bool) -> None:
    found = seen(watch)
    assert (found is not None) == compiles
    if found:
        assert str(found).startswith("compiles for every shape: a first call takes 0.6 s, the next")
        assert len(watch.seen) == 3


@pytest.mark.parametrize("answer", [Reply({}, raised="no"), Reply({}, unsupported="no"), None])
def test_what_does_not_answer_is_not_known(answer: Reply | None) -> None:
    def ask(_: Case) -> Reply:
        if answer is None:
            raise Died("crash", "gone")
        return answer

    assert compiling(ask, SMOKE) is None
    assert compiling(Watch(1, 0).ask, SMOKE[:2]) is None


def programs(found: list[Case], alike: Callable[[Case], Any]) -> int:
    return len({alike(case) for case in found})


def test_fewer_programs_and_all_kinds_of_cases() -> None:
    def program(c: Case) -> Any:
        shapes = tuple((n, np.shape(x)) for n, x in c.arrays.items())
        return c.function, c.dtype, shapes, tuple((n, str(x)) for n, x in c.options.items())

    plain = [c for c in cases("smoke", ("attention",)) if c.kind != "jvp"]
    spared = [c for c in cases("smoke", ("attention",), sparing=True) if c.kind != "jvp"]
    # one dtype of each, where most have two
    assert programs(spared, program) < 0.6 * programs(plain, program)
    names = {c.name for c in plain}
    assert {c.name for c in spared} < names
    for kind in ("forward", "vjp"):
        labels = [{c.name.split("/")[3] for c in x if c.kind == kind} for x in (plain, spared)]
        assert labels[0] == labels[1]
        assert {c.dtype for c in spared if c.kind == kind} == {c.dtype for c in plain}
    values = [c.name for c in plain if c.name.endswith(("/rising", "/primes", "/negative"))]
    assert {*values} <= {c.name for c in spared}
