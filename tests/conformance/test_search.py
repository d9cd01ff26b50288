"""Searches: one as good as ours passes whatever it draws, one that does not search fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nlattn.cli import main
from nlattn.conformance.judge.search import ALARM, FEW, SEARCHES, SEEDS, most, searches, tail
from nlattn.conformance.runner import Here
from nlattn.conformance.truth.transcription import transcription

pytestmark = pytest.mark.plain


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
        (Blind, "fail", "regret is worse on 72 of 72 seeds"),
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
    for seeds in (FEW, *SEEDS.values()):
        assert 4 * tail(most(seeds) + 1, seeds) <= ALARM < 4 * tail(most(seeds), seeds)
    assert tail(0, FEW) == 1


class Exhaustive:
    """Looks at all keys, but for one mistake."""

    def __init__(self, mistake: str) -> None:
        self.name = self.mistake = mistake

    def patchmatch(
        self, q: Any, k: Any, *, iterations: int, seed: int, topk: int = 1, key_mask: Any = None
    ) -> Any:
        h, w = k.shape[:2]
        flat = k.reshape(-1, 4)
        if self.mistake == "strides":
            flat = flat if k.flags.c_contiguous else k.base.ravel()[: k.size].reshape(-1, 4)
        s = q.reshape(-1, 4) @ flat.T + 0 * (iterations + seed)
        if key_mask is not None and self.mistake != "hidden":
            s[:, ~key_mask.ravel()] = -np.inf
        grid = s.reshape(72, h, w)
        never = {"row": np.s_[:, -1], "column": np.s_[:, :, -1], "even": np.s_[:, ::2]}
        grid[never.get(self.mistake, np.s_[:0])] = -9
        index = np.argsort(-s, 1)[:, :topk]
        if self.mistake == "twice":
            index[:] = index[:, :1]
        if self.mistake == "width":
            index = index // 9 % h * w + index % 9 % w
        if self.mistake == "columns":
            index = index % w * h + index // w
        if self.mistake == "from 1":
            index = index + 1
        if self.mistake == "none":
            index[:1] = -1
        if self.mistake == "writes":
            k[...] = 0
        return index.reshape(8, 9, topk)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ("", ""),
        ("row", "keys of the last row are found by 0 of"),
        ("column", "keys of the last column are found by 0 of"),
        ("even", "regret is worse on"),
        ("hidden", "index holds keys that key_mask hides"),
        ("twice", "index holds a key twice"),
        ("none", "index holds -1, no match, where there are enough keys"),
        ("writes", "inputs: writes to k"),
        ("width", "whose picture is of the kind 'other grid'"),
        ("strides", "whose picture is of the kind 'strided'"),
    ],
)
def test_a_search_of_all_keys_is_blamed_for_its_mistakes(mistake: str, text: str) -> None:
    (verdict,) = searches(Here(Exhaustive(mistake)), ("patchmatch",), ("float64",))
    assert verdict.failed == bool(mistake)
    assert text in verdict.detail, verdict


class Unpatched(Exhaustive):
    """Looks at single pixels, whatever is asked."""

    def patchmatch(self, q: Any, k: Any, *, patch: int = 1, **options: Any) -> Any:
        assert patch in (1, 3)
        return super().patchmatch(q, k, **options)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (Exhaustive("columns"), "if keys are numbered column by column"),
        (Exhaustive("from 1"), "if keys are numbered from 1"),
        (Exhaustive("hidden"), "as if key_mask were not given"),
        (Unpatched(""), "as if patch were not given"),
        (Exhaustive("row"), ""),
        (Exhaustive("strides"), ""),
        (Blind(), ""),
        (Lazy(), ""),
    ],
)
def test_matches_that_are_good_if_they_are_read_otherwise_are_told(backend: Any, said: str) -> None:
    (verdict,) = searches(Here(backend), ("patchmatch",), ("float64",))
    assert verdict.failed
    assert verdict.diagnosis == (said and f"your matches are good {said}")


class Chosen:
    """Attention to keys of its own choice."""

    def __init__(self, by: str) -> None:
        self.name = self.by = by

    def lev_attention(self, q: Any, k: Any, v: Any, *, keys: int) -> Any:
        basis = np.linalg.qr(k)[0] if self.by == "leverage" else k
        chosen = np.sort(np.argsort(-(basis**2).sum(1))[:keys])
        return transcription("attention", {"q": q, "k": k[chosen], "v": v[chosen]}, {})


@pytest.mark.parametrize(("by", "status"), [("leverage", "pass"), ("norm", "fail")])
def test_keys_that_are_chosen_by_their_length_are_not_those_of_largest_leverage(
    by: str, status: str
) -> None:
    (verdict,) = searches(Here(Chosen(by)), ("lev_attention",), ("float32",))
    assert verdict.status == status, verdict


def test_who_does_not_search_is_not_asked() -> None:
    class Other(Search):
        def capabilities(self) -> dict[str, Any]:
            return {"operators": ["attention"]}

    assert not list(searches(Here(Other()), tuple(SEARCHES), None))


def test_only_the_search(capsys: Any) -> None:
    code = main(["validate", "numpy", "--operators", "patchmatch", "--dtypes", "float64"])
    assert code == 0
    assert "patchmatch  float64  1" in capsys.readouterr().out
