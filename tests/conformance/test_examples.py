"""The picky kernel of docs/examples: judged on all that it claims, and rejected with each flaw."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from nlattn.conformance.backends.backend import load
from nlattn.conformance.backends.capabilities import unsupported
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.diagnosis import commonest
from nlattn.conformance.runner import Here, attempt

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
FILE = str(EXAMPLES / "blocked_attention.py")


@cache
def subject(name: str) -> Here:
    return Here(load(f"{FILE}:{name}"))


def suite(dtype: str) -> list[Case]:
    able = subject("Backend").capabilities
    found = cases("smoke", ("attention",), (dtype,), shapes=able.shapes)
    return [case for case in found if not unsupported(able, case)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_picky_kernel_is_judged_on_what_it_claims(dtype: str) -> None:
    claimed = suite(dtype)
    assert len(claimed) > 10
    verdicts = [attempt(subject("Backend"), case)[0] for case in claimed]
    assert [v for v in verdicts if v.status != "pass"] == []  # none is unsupported, either
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
    verdicts = [attempt(subject(name), case)[0] for case in suite(dtype)]
    failed = [v for v in verdicts if v.failed]
    assert failed
    assert NAMED[name] in commonest(v.diagnosis for v in failed)


def test_the_triton_kernel_is_python() -> None:
    """It runs where there is a GPU; here it is read."""
    tree = ast.parse((EXAMPLES / "triton_attention.py").read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    flawed = {"Tail", "Unscaled", "Diagonal", "Sentinel", "DiagonalSentinel", "NoDelta"}
    assert names == {"Backend", *flawed, "TF32", "ThreeTF32"}
