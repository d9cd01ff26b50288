"""Backends that compile anew for every shape: how one is recognised.

It is spared programs, not kinds of cases: `suite.cases` of `sparing`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from nlattn.conformance.backends.perform import Reply
from nlattn.conformance.backends.process import Died
from nlattn.conformance.case import Case

SHAPES = ("primes", "even", "square")
"""Cases that are asked twice: the first of them warms up, of the others both calls are timed."""
SLOWER, SECONDS = 5.0, 0.1
"""A first call that takes so many times a second one, and so much longer, compiles."""


class Compiling(NamedTuple):
    """Seconds of the first call of a shape, and of the next."""

    first: float
    second: float

    def __str__(self) -> str:
        return (
            f"compiles for every shape: a first call takes {self.first:.2g} s, the next "
            f"{self.second:.2g} s; so each option, pair, size and layout is judged in one dtype, "
            "these in turn"
        )


def compiling(
    ask: Callable[[Case], Reply],
    cases: Iterable[Case],
    clock: Callable[[], float] = time.perf_counter,
) -> Compiling | None:
    """Whether every first call of a shape is much slower than the next; None if not, or unknown."""
    named = {case.name.rsplit("/", 1)[-1]: case for case in cases if case.kind == "forward"}
    if not {*SHAPES} <= {*named}:
        return None
    times = []
    for label in SHAPES:
        for _ in range(2):
            start = clock()
            try:
                reply = ask(named[label])
            except Died:
                return None
            if reply.raised or reply.unsupported:
                return None
            times.append(clock() - start)
    firsts, seconds = times[2::2], times[3::2]
    if all(a > SLOWER * b and a > b + SECONDS for a, b in zip(firsts, seconds, strict=True)):
        return Compiling(sum(firsts) / 2, sum(seconds) / 2)
    return None
