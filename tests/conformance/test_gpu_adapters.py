"""Adapters of libraries that need a GPU, with stand-ins of those libraries on the CPU."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.backend import load
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import coverage
from nlattn.conformance.runner import Here, attempt

pytestmark = pytest.mark.plain

torch = pytest.importorskip("torch")


def plain(q: Any, k: Any, v: Any, added: Any, scale: float | None, softcap: float = 0.0) -> Any:
    """Output and lse of arrays (batch, n, heads, d); what is `added` to scores may be -inf."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).float() for x in (k, v))
    s = q.float() @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    s = softcap * torch.tanh(s / softcap) if softcap else s
    s = s if added is None else s + added
    lse = torch.logsumexp(s, -1).detach()
    p = torch.softmax(s.masked_fill(lse.isinf()[..., None], 0.0), -1) * ~lse.isinf()[..., None]
    return (p.to(q.dtype).float() @ v).to(q.dtype).transpose(1, 2), lse


def flash_attn_func(
    q: Any, k: Any, v: Any, dropout_p: float = 0.0, softmax_scale: Any = None,
    causal: bool = False, window_size: Any = (-1, -1), softcap: float = 0.0,
    return_attn_probs: bool = False,
) -> Any:  # fmt: skip
    """As flash-attn's: the last query sees the last key."""
    assert dropout_p == 0
    assert q.shape[-1] % 8 == 0
    assert q.shape[-1] == v.shape[-1]
    n, m = q.shape[1], k.shape[1]
    step = torch.arange(m) - torch.arange(n)[:, None] - (m - n)
    left, right = (m + n if side < 0 else side for side in window_size)
    seen = (step >= -left) & (step <= (0 if causal else right))
    added = torch.zeros(n, m).masked_fill(~seen, -np.inf)
    out, lse = plain(q, k, v, added, softmax_scale, softcap)
    return (out, lse, None) if return_attn_probs else out


class LowerTriangularMask:
    """As xFormers': the first query sees the first key."""


def memory_efficient_attention_forward_requires_grad(
    q: Any, k: Any, v: Any, attn_bias: Any = None, scale: Any = None
) -> Any:
    """As xFormers'."""
    if isinstance(attn_bias, LowerTriangularMask):
        n, m = q.shape[1], k.shape[1]
        attn_bias = torch.zeros(n, m).masked_fill(~torch.ones(n, m).tril().bool(), -np.inf)
    elif attn_bias is not None:
        assert all(step % 8 == 0 for step in attn_bias.stride()[:-1])
        assert attn_bias.dtype == q.dtype
    out, lse = plain(q, k, v, attn_bias, scale)
    return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32))


def memory_efficient_attention(*args: Any, **options: Any) -> Any:
    """The output alone."""
    return memory_efficient_attention_forward_requires_grad(*args, **options)[0]


@pytest.fixture
def subject(request: Any, monkeypatch: pytest.MonkeyPatch) -> Here:
    library, ops = ModuleType(request.param), ModuleType("ops")
    library.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    library.ops = ops  # type: ignore[attr-defined]
    ops.LowerTriangularMask = LowerTriangularMask  # type: ignore[attr-defined]
    for function in (
        memory_efficient_attention, memory_efficient_attention_forward_requires_grad
    ):  # fmt: skip
        setattr(ops, function.__name__, function)
    monkeypatch.setitem(sys.modules, request.param, library)
    monkeypatch.setitem(sys.modules, f"{request.param}.ops", ops)
    return Here(load(f"{request.param}:cpu"))


def judged(subject: Here, dtype: str = "float16") -> list[tuple[Case, Verdict]]:
    suite = cases("smoke", ("attention",), (dtype,), shapes=subject.capabilities.shapes)
    return [(case, attempt(subject, case)[0]) for case in suite]


@pytest.mark.parametrize(
    ("subject", "named"),
    [
        ("flash_attn", {"softcap", "causal", "window", "gqa", "return_lse", "scale"}),
        ("xformers", {"bias", "mask", "causal", "window", "return_lse", "scale"}),
    ],
    indirect=["subject"],
)
def test_a_library_is_asked_for_all_that_it_does(subject: Here, named: set[str]) -> None:
    found = judged(subject)
    assert [v for _, v in found if v.failed] == []
    done = [case for case, v in found if v.status == "pass"]
    assert len(done) > 40, len(done)
    assert named <= {name for case in done for name in (*case.options, *case.arrays)}
    assert {case.kind for case in done} == {"forward", "vjp"}


def test_torch_says_which_kernel_it_took_and_a_kernel_gives_its_lse() -> None:
    subject = Here(load("torch:-cpu"))
    suite = list(cases("smoke", ("attention",), ("float32",), "attention/[fv]*/float32/primes"))
    found = [attempt(subject, case) for case in suite]
    assert {reply.ran for _, reply in found} <= {"math", "flash"}
    verdicts = [verdict.__class__(**{**vars(verdict), "ran": r.ran}) for verdict, r in found]
    (line,) = coverage(suite, verdicts)
    assert f"; by {found[0][1].ran} (" in line
    (case,) = cases("smoke", ("attention",), ("float32",), "attention/forward/*/lse")
    assert attempt(Here(load("torch:flash-cpu")), case)[0].status == "pass"
    verdict, _ = attempt(Here(load("torch:math-cpu")), case)
    assert (verdict.status, verdict.detail) == ("unsupported", "has no lse")
