"""Behaviour: a backend that is right and rude is told so, one rule at a time."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nlattn.conformance import runner
from nlattn.conformance.backends.perform import guarded, perform
from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.runner import Here, run
from nlattn.conformance.truth.transcription import transcription

pytestmark = pytest.mark.plain

CASES = [
    case
    for case in suite.cases("smoke", ("attention", "sparse_attention", "qna"), ("float32",))
    if case.name.endswith(("/primes", "/heads")) and case.kind == "forward"
]
RULES = {"repeatable", "dtype", "keys", "linear", "refusal", "heads", "inputs", "aliasing"}


@pytest.fixture(autouse=True)
def unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails beside the rules is not explained: that takes long, and is not asked here."""
    monkeypatch.setattr(runner, "PATIENCE", 0.0)


class Polite:
    name = "polite"

    def __init__(self) -> None:
        self.calls = 0

    def capabilities(self) -> dict[str, Any]:
        return {}

    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        self.calls += 1
        return self.spoil(transcription(op, arrays, options), arrays)

    def spoil(self, out: Any, _: dict[str, Any]) -> Any:
        return out


class Random(Polite):
    def capabilities(self) -> dict[str, Any]:
        return {"deterministic": False}


class Restless(Polite):
    def spoil(self, out: Any, _: dict[str, Any]) -> Any:
        return out * np.float32(1 + 1e-7 * (self.calls % 2))


class Writing(Polite):
    def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
        arrays["q"][...] = 0
        return out


class Overrun(Polite):
    def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
        arrays["k"].base[0] = 7
        return out


class Lending(Polite):
    def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
        if out.size > arrays["q"].size:
            return out
        own = arrays["q"].reshape(-1)[: out.size].reshape(out.shape)
        own[...] = out
        return own


class Keeping(Polite):
    """One buffer for all results of a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: dict[Any, Any] = {}

    def spoil(self, out: Any, _: dict[str, Any]) -> Any:
        own = self.buffers.setdefault((out.shape, out.dtype), np.empty_like(out))
        own[...] = out
        return own


class Trusting(Polite):
    def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
        d = arrays["q"].shape[-1]
        arrays = {n: x[..., :d] if n == "k" else x for n, x in arrays.items()}
        return super().run(op, arrays, options)


class Placed(Polite):
    """Adds a little to the first key's value."""

    def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
        return out + np.float32(1e-2) * arrays["v"].reshape(-1)[0]


class Bent(Polite):
    def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
        return out + np.float32(1e-4) * (abs(arrays["v"]).max() > 3)


def failed(backend: Any) -> set[str]:
    """Rules that a backend breaks, of attention."""
    verdicts = [v for v in run(Here(backend), CASES) if "/behaviour/" in v.case]
    return {v.case.rsplit("/", 1)[-1] for v in verdicts if v.failed and "attention" in v.case}


def test_a_polite_backend_passes_every_rule() -> None:
    verdicts = list(run(Here(Polite()), CASES))
    assert [v for v in verdicts if v.status != "pass"] == []
    assert {v.case.rsplit("/", 1)[-1] for v in verdicts} == {*RULES, "primes"}


def test_floating_point_flags_are_no_flaw() -> None:
    class Flagging(Polite):
        def spoil(self, out: Any, _: dict[str, Any]) -> Any:
            np.subtract(np.inf, np.inf)
            return out

    assert {v.status for v in run(Here(Flagging()), CASES)} == {"pass"}


def test_who_says_so_need_not_repeat_itself() -> None:
    verdicts = {v.case: v for v in run(Here(Random()), CASES)}
    verdict = verdicts["attention/behaviour/float32/repeatable"]
    assert (verdict.status, verdict.detail) == ("unsupported", "not deterministic, it says")


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        (Restless, {"repeatable"}),
        (Writing, {"inputs"}),
        (Overrun, {"inputs"}),
        (Lending, {"inputs", "aliasing"}),
        (Keeping, {"repeatable"}),
        (Trusting, {"refusal"}),
    ],
)
def test_rudeness_is_found(kind: Any, rules: set[str]) -> None:
    assert rules <= failed(kind())


def test_what_differs_is_shown() -> None:
    verdicts = {v.case: v for v in run(Here(Restless()), CASES)}
    detail = verdicts["attention/behaviour/float32/repeatable"].detail
    assert re.search(r": \d+ places, first \((\d+, )+\d+\): [-\d.]+, [-\d.]+$", detail)


@pytest.mark.parametrize(("kind", "rule"), [(Placed, "keys"), (Bent, "linear")])
def test_results_that_do_not_go_together_are_found(kind: Any, rule: str) -> None:
    assert rule in failed(kind())


def case() -> Case:
    return next(c for c in CASES if c.name == "attention/forward/float32/primes")


def test_arrays_lie_between_guards() -> None:
    for layout in ("C", "read-only"):
        whole, inner = guarded(np.ones((2, 3)), layout)
        assert np.isnan(whole).sum() == 128
        assert inner.tolist() == [[1, 1, 1]] * 2
        assert inner.flags.writeable == (layout == "C")
    whole, inner = guarded(np.ones((2, 3)), "reversed")
    assert inner.strides == (-24, -8)
    assert np.shares_memory(whole, inner)


def test_what_is_not_written_is_nan() -> None:
    class Lazy(Polite):
        def spoil(self, out: Any, arrays: dict[str, Any]) -> Any:
            fresh = np.empty(arrays["k"].size, arrays["k"].dtype)
            self.nan = np.isnan(fresh).any()
            return out

    lazy = Lazy()
    perform(lazy, case())
    assert lazy.nan


def test_a_call_that_fails_is_told() -> None:
    class Failing(Polite):
        def run(self, op: str, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
            if op == "attention":
                raise NotImplementedError
            return arrays["q"], arrays["k"], options

    assert perform(Failing(), case()).unsupported == "not implemented"
    several = next(c for c in CASES if c.op == "sparse_attention")
    told = perform(Failing(), several).raised
    assert told.startswith("WrongResult: gave out, 3 results, expected out")


class Racing(Polite):
    def spoil(self, out: Any, _: dict[str, Any]) -> Any:
        out = np.array(out)
        out[..., -1, :] *= np.float32(1 + 1e-3 * (self.calls % 2))
        return out


def test_results_that_change_from_call_to_call_are_told_so() -> None:
    case = next(c for c in CASES if c.name == "attention/forward/float32/primes")
    racing, steady = (next(iter(run(Here(b), [case]))) for b in (Racing(), Polite()))
    assert racing.status == "fail"
    assert racing.diagnosis.startswith(
        "the same call gives another out the next time, first at [16,"
    )
    assert steady.status == "pass"
