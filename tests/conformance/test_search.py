"""Searches: one as good as ours passes whatever it draws, one that does not search fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.conformance.judge.search import ALARM, MOST, SEARCHES, SEEDS, searches, tail
from nlattn.conformance.runner import Here
from nlattn.conformance.truth.transcription import transcription


class Search:
    name = "search"
    drawn = 1000
    kept = slice(None)

    def patchmatch(self, q: Any, k: Any, *, iterations: int, seed: int) -> Any:
        options = {"iterations": iterations, "seed": seed + self.drawn}
        return transcription("patchmatch", {"q": q, "k": k}, options)


class Blind(Search):
    def patchmatch(self, q: Any, k: Any, *, iterations: int, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        rng.random(iterations)
        return rng.integers(0, k.shape[0] * k.shape[1], (*q.shape[:-1], 1))


class Lazy(Search):
    def patchmatch(self, q: Any, k: Any, *, iterations: int, seed: int) -> Any:
        return super().patchmatch(q, k, iterations=iterations // 9, seed=seed)


class Outside(Search):
    def patchmatch(self, q: Any, k: Any, *, iterations: int, seed: int) -> Any:
        return (
            super().patchmatch(q, k, iterations=iterations // 9, seed=seed)
            + k.shape[0] * k.shape[1]
        )


class Flat(Search):
    def patchmatch(self, q: Any, k: Any, *, iterations: int, seed: int) -> Any:
        return super().patchmatch(q, k, iterations=iterations // 9, seed=seed).ravel()


class Unable(Search):
    def patchmatch(self, q: Any, k: Any) -> Any:
        return q, k


class Failing(Search):
    def patchmatch(self, q: Any, k: Any, **_: Any) -> Any:
        raise ValueError(f"no {q.ndim + k.ndim}")


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        (Search, "pass", ""),
        (Blind, "fail", "regret is worse on 20 of 20 seeds"),
        (Lazy, "fail", "an equal search has a chance below 0.001 of that"),
        (Outside, "fail", "index holds what is no key: expected integers from 0 to 71"),
        (Flat, "fail", "index has shape (72,), not (8, 9, 1)"),
        (Unable, "unsupported", "takes no iterations, seed"),
        (Failing, "unsupported", "raised ValueError: no 6"),
    ],
)
def test_a_search_is_judged_by_what_it_finds(kind: Any, status: str, text: str) -> None:
    (verdict,) = searches(Here(kind()), ("patchmatch",), ("float32",))
    assert verdict.status == status, verdict
    assert text in verdict.detail


class Attention:
    """Searches for itself, with other seeds than the kit's and fewer iterations if `lazy`."""

    name = "attention"

    def __init__(self, lazy: bool) -> None:
        self.lazy = lazy

    def run(self, op: str, arrays: Any, options: Any) -> Any:
        how = {**options, "seed": options["seed"] + 1000}
        if self.lazy:
            return transcription(op, arrays, {**how, "iterations": 0})
        return transcription(op, arrays, how)


@pytest.mark.parametrize("op", ["scram", "psal"])
def test_attention_that_searches_is_judged_by_its_output(op: str) -> None:
    (good,) = searches(Here(Attention(False)), (op,), ("float32",))
    assert good.status == "pass", good
    (bad,) = searches(Here(Attention(True)), (op,), ("float32",))
    assert bad.status == "fail"
    assert "the output's error is worse on" in bad.detail


def test_the_chance_of_a_false_alarm_is_exact() -> None:
    assert 2 * tail(MOST + 1, SEEDS) <= ALARM < 2 * tail(MOST, SEEDS)
    assert tail(0, SEEDS) == 1


def test_who_does_not_search_is_not_asked() -> None:
    class Other(Search):
        def capabilities(self) -> dict[str, Any]:
            return {"operators": ["attention"]}

    assert not list(searches(Here(Other()), tuple(SEARCHES), None))


def test_only_the_search(capsys: Any) -> None:
    code = main(["validate", "numpy", "--operators", "patchmatch", "--dtypes", "float64"])
    assert code == 0
    assert "patchmatch  float64  1" in capsys.readouterr().out
