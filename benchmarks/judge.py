"""How often the judge of growth is wrong: synthetic laws with noise, with a cliff and without.

Nine sizes from 32x32 to 512x512. Every law of five is claimed of every other; costs carry
log-normal noise and, in half of the trials, jump by 1.6 at a random place. "Wrong" is a verdict of
consistent on a law that is outgrown, or of inconsistent on one that is not.

    python benchmarks/judge.py [--trials 100] [--seed 0] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import numpy as np

from nlattn.scaling import judge
from nlattn.scaling.growth import FAMILY, growth

SIZES = np.array([round(32 * 2 ** (i / 2)) ** 2 for i in range(9)])
NOISE = (0.0, 0.01, 0.02, 0.05, 0.1)
CLIFF = 1.6


def trial(truth: str, claim: str, noise: float, cliff: bool, rng: Any) -> str:
    cost = growth(truth)(SIZES) * np.exp(noise * rng.standard_normal(len(SIZES)))
    if cliff:
        cost = cost * np.where(np.arange(len(SIZES)) > rng.integers(len(SIZES) - 1), CLIFF, 1)
    verdict = judge(SIZES, cost, claim).verdict
    right = "consistent" if FAMILY.index(truth) <= FAMILY.index(claim) else "inconsistent"
    return {right: "right", "undecided": "undecided"}.get(verdict, "wrong")


def measure(trials: int, seed: int) -> list[dict[str, Any]]:
    """Counts of each noise, with a cliff and without, and the worst pair of laws in them."""
    rng, rows = np.random.default_rng(seed), []
    for noise in NOISE:
        for cliff in (False, True):
            pairs = {
                f"{truth} claimed {claim}": Counter(
                    trial(truth, claim, noise, cliff, rng) for _ in range(trials)
                )
                for truth in FAMILY
                for claim in FAMILY
            }
            total = sum(pairs.values(), Counter())
            worst = max(pairs, key=lambda name: pairs[name]["wrong"])
            row = {"noise": noise, "cliff": cliff, **dict(total), "trials": total.total()}
            rows.append({**row, "worst": worst, "worst_wrong": pairs[worst]["wrong"] / trials})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100, help="of each pair of laws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = measure(options.trials, options.seed)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        shares = ", ".join(
            f"{100 * row.get(kind, 0) / row['trials']:.2f} % {kind}"
            for kind in ("wrong", "undecided", "right")
        )
        cliff = "with a cliff" if row["cliff"] else "no cliff"
        print(
            f"noise {row['noise']:4.0%}, {cliff:12s}: {shares}; worst pair {row['worst']}: "
            f"{row['worst_wrong']:.1%}"
        )
    wrong, trials = (sum(row.get(kind, 0) for row in rows) for kind in ("wrong", "trials"))
    print(f"{wrong} of {trials} verdicts are wrong: {wrong / trials:.3%}")


if __name__ == "__main__":
    main()
