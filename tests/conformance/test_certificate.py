"""The float64 truth is certified by 50 digits, and the bounds hold what lower precision does."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from nlattn.conformance.case import DTYPES
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.table import TABLE
from nlattn.conformance.truth.bounds import allowed, exact, ratios, transcribed
from nlattn.conformance.truth.high_precision import share

pytestmark = pytest.mark.plain


def digits50(q: Any, k: Any, v: Any, yes: Any, softcap: float | None) -> Any:
    """Softmax attention of one head, every operation in 50 digits."""
    out = np.zeros((len(q), v.shape[1]))
    with mpmath.workdps(50):
        scale = 1 / mpmath.sqrt(q.shape[1])
        for i in range(len(q)):
            keys = [j for j in range(len(k)) if yes[i, j]]
            s = [scale * mpmath.fdot(map(mpmath.mpf, q[i]), map(mpmath.mpf, k[j])) for j in keys]
            if softcap is not None:
                s = [softcap * mpmath.tanh(x / softcap) for x in s]
            p = [mpmath.exp(x) for x in s]
            for c in range(v.shape[1]):
                terms = [x * mpmath.mpf(v[j, c]) for x, j in zip(p, keys, strict=True)]
                out[i, c] = mpmath.fsum(terms) / mpmath.fsum(p) if keys else 0
    return out


@pytest.mark.parametrize("label", ["primes", "causal", "mask", "softcap", "large", "integers"])
def test_attention_is_certified(label: str) -> None:
    (case,) = cases("smoke", ("attention",), ("float64",), f"*/forward/*/{label}")
    q, k, v = (case.arrays[name] for name in "qkv")
    yes = case.arrays.get("mask", np.ones((len(q), len(k)), bool))
    if case.options.get("causal"):
        yes = np.tri(len(q), len(k), dtype=bool)
    want = digits50(q, k, v, yes, case.options.get("softcap"))
    assert ratios(exact(case)["out"], want, allowed(case)["out"]).max() < 1


EXACT = [spec.name for spec in TABLE if spec.name != "patchmatch"]


@pytest.mark.parametrize("op", EXACT)
def test_every_truth_is_certified_by_the_same_formula(op: str) -> None:
    for case in cases("smoke", (op,), ("float64",), "*/primes"):
        assert share(case) < 0.5, case.name


def test_a_wrong_truth_is_not_certified(monkeypatch: Any) -> None:
    (case,) = cases("smoke", ("attention",), ("float64",), "*/forward/*/primes")
    wrong = {"out": exact(case)["out"] * (1 + 1e-13)}
    monkeypatch.setattr("nlattn.conformance.truth.bounds.exact", lambda _: wrong)
    assert share(case) > 1
    wrong["out"][0, 0] = np.nan
    assert share(case) == np.inf


@pytest.mark.parametrize("op", EXACT)
def test_the_plain_transcription_stays_within_the_bound_and_zeros_do_not(op: str) -> None:
    for case in cases("smoke", (op,), ("float32",), "*/primes"):
        assert judge(case, transcribed(case)).status == "pass", case.name
        zeros = {name: np.zeros_like(x) for name, x in exact(case).items()}
        assert judge(case, zeros).failed, case.name


def test_the_suite_is_the_same_each_time() -> None:
    some = [list(cases("smoke", ("qna", "sparse_attention"))) for _ in range(2)]
    assert len({c.name for c in some[0]}) == len(some[0]) > 50
    assert {c.dtype for c in some[0]} == set(DTYPES)
    for a, b in zip(*some, strict=True):
        assert a.name == b.name
        assert all(a.arrays[n].tobytes() == b.arrays[n].tobytes() for n in a.arrays)


def test_the_logarithm_of_a_count_is_rounded() -> None:
    (case,) = cases("smoke", ("sparse_attention",), ("float32",), "*/forward/*/dot+scale+lse")
    assert judge(case, transcribed(case)).status == "pass"
    off = {**transcribed(case), "lse": transcribed(case)["lse"] * (1 + 1e-6)}
    assert judge(case, off).failed
