"""The search by random candidates, as published; and when a search has come to rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from nlattn._types import Bools, Floats, Ints
from nlattn.kernels import patchmatch as kernels
from nlattn.kernels.matching import TILE, ListRound, Plan, Round

Progress: TypeAlias = Callable[[int, int], object] | None
Inputs: TypeAlias = tuple[Floats, Floats, Ints, Bools, Bools]
"""Features, slices, and masks of a search."""
_CALL = 1 << 22  # candidates of one kernel call: well under a second, so that Ctrl-C is heard


class Calm:
    """Whether a search has come to rest, and what it changed on the way."""

    def __init__(self, quiet: int | None, patience: int, changed: list[int]) -> None:
        self.quiet, self.patience, self.changed, self.rounds = quiet, patience, changed, 0

    def __call__(self, before: Ints, after: Ints) -> bool:
        """Compare the matches before and after a round."""
        self.changed.append(int((before != after).any(-1).sum()))
        still = self.quiet is not None and self.changed[-1] <= self.quiet
        self.rounds = self.rounds + 1 if still else 0
        return self.rounds == self.patience


def search(
    inputs: Inputs,
    plan: Plan,
    steps: Sequence[int],
    rounds: int,
    progress: Progress,
    calm: Calm,
    state: tuple[Ints, Floats, Ints],
) -> int:
    """Rounds of propagation and random search from side 0; returns the side of the result."""
    index, side = state[0], 0
    for iteration in range(1, rounds + 1):
        before = index[side].copy()
        for number, jump in enumerate(steps or [0]):
            last = number == max(len(steps) - 1, 0)
            step = Round(side, iteration, jump, 0, 0, int(last), 0, plan.Hq)
            renew(inputs, plan, step, state)
            side = 1 - side
            tell(progress, (iteration - 1) * len(steps) + number + 1, rounds * len(steps))
        if calm(before, index[side]):
            break
    return side


def renew(inputs: Inputs, plan: Plan, step: Round, state: tuple[Ints, Floats, Ints]) -> None:
    """One pass over the queries of some rows; the jump's length on the key grid is worked out."""
    rows, jump, topk = plan.rows or plan.Hq, step.jump, state[0].shape[3]
    down = (2 * jump * plan.Hk + rows) // (2 * rows)
    across = (2 * jump * plan.Wk + plan.Wq) // (2 * plan.Wq)
    step = (Round if topk == 1 else ListRound)(*step._replace(down=down, across=across))
    tiles = state[0].shape[1] * -(-(step.last - step.first) // TILE) * -(-plan.Wq // TILE)
    for some in calls(tiles, TILE**2 * 40 * topk):
        kernels.renew(some, *inputs, plan, step, *state)


def calls(units: int, cost: int) -> Iterator[range]:
    """Split units of some cost each into kernel calls."""
    step = max(1, _CALL // cost)
    return (range(first, min(first + step, units)) for first in range(0, units, step))


def tell(progress: Progress, done: int, total: int) -> None:
    """Tell a caller who listens how far the search is."""
    if progress is not None:
        progress(done, total)
