"""What stands beside operators, and forward mode: judged as operators are, if a backend says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn.conformance import runner
from nlattn.conformance.backends import backend
from nlattn.conformance.backends.capabilities import Capabilities, unsupported
from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.table import PARTS, TABLE, OpSpec, find, owner
from nlattn.conformance.truth.bounds import exact
from tests.conftest import NO_JIT

OURS = runner.Here(backend.load("nlattn"))


@pytest.mark.parametrize("spec", PARTS, ids=lambda spec: spec.name)
def test_ours_pass(spec: OpSpec) -> None:
    every = list(suite.cases("smoke", (spec.name,)))
    assert len({c.dtype for c in every}) == 4
    for case in every[::3]:
        verdict, _ = runner.attempt(OURS, case)
        unlikely = NO_JIT and verdict.status == "suspicious"  # last digits are others' there
        assert verdict.status == "pass" or unlikely, verdict


@pytest.mark.parametrize("spec", [s for s in TABLE if s.has_jvp], ids=lambda spec: spec.name)
def test_our_forward_mode_passes(spec: OpSpec) -> None:
    given = ("float32",) if spec.cases.costly else ("float64", "float16")
    every = [c for c in suite.cases("smoke", (spec.name,), given, "*/jvp/*") if c.kind == "jvp"]
    for case in every[:: len(every) // 6]:
        verdict, _ = runner.attempt(OURS, case)
        assert verdict.status == "pass", verdict


def test_forward_mode_is_asked_of_those_that_say_so() -> None:
    case = next(c for c in suite.cases("smoke", ("attention",)) if c.kind == "jvp")
    assert case.function == "attention_jvp"
    assert case.outputs == ("dout",)
    assert case.directions == ("dq", "dk", "dv")
    assert unsupported({}, case) == "no forward mode"
    assert not unsupported({"forward_mode": True}, case)
    assert not unsupported({"operators": ["attention_jvp"]}, case)
    assert not Capabilities.of({"operators": ["qna"]}).claims("attention")
    assert owner("attention_jvp") == owner("attention_vjp") == owner("attention") == "attention"


def test_a_change_is_named_like_a_result() -> None:
    lse = next(
        c for c in suite.cases("smoke", ("attention",)) if c.name.endswith("jvp/float64/lse")
    )
    assert lse.outputs == ("dout", "dlse")
    merge = next(c for c in suite.cases("smoke", ("merge_attention",)) if c.kind == "vjp")
    assert (merge.directions, merge.outputs) == (("dout", "dlse"), ("douts", "dlses"))
    loss = next(c for c in suite.cases("smoke", ("index_loss",)) if c.kind == "vjp")
    assert (loss.directions, loss.outputs) == (("dloss",), ("dscores",))


def test_methods_get_cotangents_and_changes_in_order() -> None:
    def attention_jvp(*arrays: Any, **rest: Any) -> Any:
        return {**rest, "v": arrays[2], "dq": arrays[3]}

    arrays = {n: np.full(1, i) for i, n in enumerate(("q", "k", "v", "dq", "dk", "dv", "dbias"))}
    found = backend.call(attention_jvp, "attention_jvp", arrays, {"scale": 2.0})
    assert (found["dq"], found["v"], found["dbias"], found["scale"]) == (3, 2, 6, 2.0)

    def index_loss_vjp(*arrays: Any) -> Any:
        return arrays

    given = {"weights": 1, "scores": 2, "dloss": 3}
    assert backend.call(index_loss_vjp, "index_loss_vjp", given, {}) == (2, 1, 3)  # type: ignore[arg-type]


def table() -> Case:
    scores = np.array([[3.0, 1.0, 3.0, 2.0], [-np.inf, 5.0, -np.inf, -np.inf]])
    return Case("t", "topk_keys", "forward", "float64", {"scores": scores}, {"t": 3})


@pytest.mark.parametrize(
    ("out", "status", "detail"),
    [
        ([[0, 2, 3], [1, -1, -1]], "pass", ""),
        ([[2, 0, 3], [1, -1, -1]], "suspicious", "holds other keys of the same score"),
        ([[0, 3, 2], [1, -1, -1]], "fail", "has key 2 too late"),
        ([[0, 2, 1], [1, -1, -1]], "fail", "keeps key 1 and leaves out key 3"),
        ([[0, 2, 3], [1, 0, -1]], "fail", "has 2 different keys, expected 1"),
        ([[0, 2, 3], [-1, 1, -1]], "fail", "-1 stands before keys"),
        ([[0, 2, 3.5], [1, -1, -1]], "fail", "has 0 different keys, expected 3"),
    ],
)
def test_tables_are_judged_by_the_scores(out: Any, status: str, detail: str) -> None:
    verdict = judge(table(), {"out": np.array(out)})
    assert verdict.status == status
    assert detail in verdict.detail


def test_the_truth_of_a_table_is_exact() -> None:
    case = table()
    np.testing.assert_array_equal(exact(case)["out"], [[0, 2, 3], [1, -1, -1]])
    assert judge(replace(case, arrays={"scores": case.arrays["scores"][:, :1]}), exact(case)).failed
    assert find("topk_keys").cases.result == "index"


@pytest.mark.parametrize("label", ["table", "table-beyond", "table-named-twice"])
def test_a_table_of_keys_says_the_same_as_its_support(label: str) -> None:
    case = next(suite.cases("smoke", ("sparse_attention",), pattern=f"*/forward/float32/{label}"))
    table, shape = case.arrays["support.index"], tuple(case.arrays["support.shape"].tolist())
    read = nlattn.support_from_index(table, shape[-1], beyond="empty")
    assert read.shape == shape
    assert read.indptr.tolist() == case.arrays["support.indptr"].tolist()
    assert read.indices.tolist() == case.arrays["support.indices"].tolist()
    assert (table < 0).any()
    assert (table >= shape[-1]).any() == (label == "table-beyond")
    rows = [row[(row >= 0) & (row < shape[-1])] for row in table.reshape(-1, table.shape[-1])]
    assert any(len(np.unique(row)) < len(row) for row in rows) == (label == "table-named-twice")
