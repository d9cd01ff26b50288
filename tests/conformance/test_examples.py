"""The picky kernel of docs/examples: judged on all that it claims, and rejected with each flaw."""

from __future__ import annotations

import ast
import shutil
from functools import cache
from math import inf
from pathlib import Path

import pytest

from nlattn.conformance.backends.backend import load
from nlattn.conformance.backends.capabilities import unsupported
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.measure import Effort
from nlattn.conformance.runner import Here, attempt
from tests.faults import commonest

pytestmark = pytest.mark.plain

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
FILE = str(EXAMPLES / "blocked_attention.py")


CUDA = str(EXAMPLES / "cuda_attention.py")


@cache
def subject(name: str, file: str = FILE) -> Here:
    return Here(load(f"{file}:{name}"))


def suite(dtype: str, file: str = FILE) -> list[Case]:
    able = subject("Backend", file).capabilities
    found = cases("smoke", ("attention",), (dtype,), shapes=able.shapes)
    return [case for case in found if not unsupported(able, case)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_picky_kernel_is_judged_on_what_it_claims(dtype: str) -> None:
    claimed = suite(dtype)
    assert len(claimed) > 10
    verdicts = [attempt(subject("Backend"), case)[0] for case in claimed]
    assert [v for v in verdicts if v.status not in ("pass", "unsupported")] == []
    assert sum(v.status == "pass" for v in verdicts) >= 0.9 * len(claimed)
    assert max(case.sizes()["m"] for case in claimed) > 64  # a block meets another


NAMED = {
    "Tail": "with keys padded by zeros to a multiple of 64",
    "Unscaled": "with outputs not rescaled when a later block of 64 keys has a larger score",
    "Diagonal": "causal by one key too few",
    "Sentinel": "with the mean of all values, and of zeros up to a multiple of 64, where a query",
    "FewBits": "",
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_each_flaw_is_rejected_and_named_in_each_dtype(name: str, dtype: str) -> None:
    effort = Effort(inf if NAMED[name] else 0)  # where no name is asked, none is looked for
    verdicts = [attempt(subject(name), case, effort=effort)[0] for case in suite(dtype)]
    failed = [v for v in verdicts if v.failed]
    assert failed
    assert NAMED[name] in commonest(v.diagnosis for v in failed)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_cuda_kernel_on_the_cpu(dtype: str) -> None:
    """Right, and rejected and named with the flaw that hides best."""
    claimed = suite(dtype, CUDA)
    verdicts = [attempt(subject("Backend", CUDA), case)[0] for case in claimed]
    assert len(claimed) > 10
    assert [v for v in verdicts if v.status not in ("pass", "unsupported")] == []
    assert sum(v.status == "pass" for v in verdicts) >= 0.9 * len(claimed)
    failed = [v for c in claimed if (v := attempt(subject("Unscaled", CUDA), c)[0]).failed]
    assert commonest(v.diagnosis for v in failed).endswith(NAMED["Unscaled"])
    assert any(attempt(subject("Short", CUDA), c)[0].failed for c in claimed) == ("16" in dtype)


def test_the_triton_kernel_is_python() -> None:
    """It runs where there is a GPU; here it is read."""
    tree = ast.parse((EXAMPLES / "triton_attention.py").read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    flawed = {"Tail", "Unscaled", "Diagonal", "Sentinel", "DiagonalSentinel", "NoDelta"}
    assert names == {"Backend", *flawed, "TF32", "ThreeTF32"}
