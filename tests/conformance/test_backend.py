"""Backends: found by name, asked in one way, and passed over for what they cannot do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nlattn
from nlattn._types import JsonObject
from nlattn.conformance.backends.backend import (
    FunctionBackend,
    Unsupported,
    call,
    load,
    run,
    told,
)
from nlattn.conformance.backends.capabilities import unsupported
from nlattn.conformance.case import Case, dtype_of, named, native

FILE = """
import numpy as np

class Backend:
    name = "mine"
    def attention(self, q, k, v, *, causal=False):
        return np.zeros((len(q), v.shape[1]))

def my_attention(q, k, v):
    return q

nothing = 3
"""


def arrays() -> dict[str, Any]:
    return {"q": np.ones((2, 3)), "k": np.ones((4, 3)), "v": np.ones((4, 5))}


def case(**changes: Any) -> Case:
    fields: dict[str, Any] = {
        "name": "attention/forward/float64/x", "op": "attention", "kind": "forward",
        "dtype": "float64", "arrays": arrays(), "options": {},
    }  # fmt: skip
    return Case(**{**fields, **changes})


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "my_backend_file.py").write_text(FILE)
    return tmp_path / "my_backend_file.py"


def test_a_class_with_a_method_per_operator(mine: Path) -> None:
    backend = load(str(mine))
    assert backend.name == "mine"
    assert run(backend, "attention", arrays(), {"causal": True}).shape == (2, 5)
    with pytest.raises(Unsupported, match="takes no softcap"):
        run(backend, "attention", arrays(), {"softcap": 2.0})
    with pytest.raises(Unsupported, match="has no method favor_attention"):
        run(backend, "favor_attention", arrays(), {})


def test_arrays_go_by_name_where_parameters_have_theirs() -> None:
    pages, table, dout = np.ones((3, 2, 1, 4)), np.array([[2, 0]]), np.ones((1, 4, 1, 4))
    given = {"pages": pages, "table": table, "dout": dout}
    want = nlattn.gather_pages_vjp(pages, table, dout)

    def by_place(p: Any, d: Any, *, table: Any) -> Any:
        return nlattn.gather_pages_vjp(p, table, d)

    for function in (nlattn.gather_pages_vjp, by_place):
        np.testing.assert_array_equal(call(function, "gather_pages_vjp", given, {}), want)


def test_a_support_in_two_forms_is_read_in_either() -> None:
    lists = {"support.indptr": 1, "support.indices": 2, "support.shape": 3}
    given: JsonObject = {"q": 0, "k": 0, "v": 0, **lists, "support.index": 4}

    def table(q: Any, k: Any, v: Any, *, support_index: Any) -> Any:
        return q + k + v + support_index

    def plain(
        q: Any, k: Any, v: Any, *, support_indptr: Any, support_indices: Any, support_shape: Any
    ) -> Any:
        return q + k + v, support_indptr, support_indices, support_shape

    def every(*_: Any, **support: Any) -> Any:
        return len(support)

    assert call(table, "sparse_attention", given, {}) == 4
    assert call(plain, "sparse_attention", given, {}) == (0, 1, 2, 3)
    assert call(every, "sparse_attention", given, {}) == 4
    with pytest.raises(Unsupported, match="takes no scale"):
        call(table, "sparse_attention", given, {"scale": 2.0})
    del given["support.index"]
    with pytest.raises(Unsupported, match="takes no support_indptr"):
        call(table, "sparse_attention", given, {})


def test_none_stands_for_what_a_call_does_not_give() -> None:
    asked = case(op="qna", kind="vjp", arrays={"q": 0, "k": 0, "v": 0, "dout": 0})
    want = {"dq": 1, "dk": 2, "dv": 3}
    assert named(asked, (1, 2, 3, None, None)) == want
    assert named(asked, {**want, "dgate": None}) == want
    with pytest.raises(ValueError, match="5 results"):
        named(asked, (1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="2 results"):
        named(asked, (1, None, 2, None, None))
    assert named(asked, (1, 2, None))["dv"] is None  # a result that is missing stays so


def test_what_a_function_names_is_what_it_takes() -> None:
    def few(q: Any, k: Any, v: Any, *, softcap: Any = None, support_indptr: Any = None) -> None: ...
    def any_at_all(q: Any, k: Any, v: Any, **options: Any) -> None: ...

    assert {"softcap", "support"} <= {
        *told(FunctionBackend(few, "attention"))["options"]["attention"]
    }
    assert told(FunctionBackend(any_at_all, "attention"))["options"] == {}
    assert told(FunctionBackend(dict, "attention"))["options"] == {}


def test_a_function(mine: Path) -> None:
    backend = load(f"{mine}:my_attention", op="attention")
    assert backend.name == "my_attention"
    assert backend.capabilities() == {"operators": ["attention"], "gradients": False}
    np.testing.assert_array_equal(run(backend, "attention", arrays(), {}), np.ones((2, 3)))
    with pytest.raises(Unsupported, match="computes attention only"):
        run(backend, "attention_vjp", arrays(), {})


@pytest.mark.parametrize(
    ("spec", "op", "text"),
    [
        ("none.py", None, "none.py: no such file"),
        ("FILE:other", None, "FILE:other: my_backend_file holds no other"),
        ("FILE:nothing", None, "FILE:nothing has neither run() nor a method named after an op"),
        ("FILE:my_attention", None, "my_attention is a function: --op says which operator it"),
        ("FILE:my_attention", "fast", "--op fast: no such operator; nlattn list names them"),
        ("no_such_package:X", None, "no_such_package:X: no module no_such_package, expected an"),
        (".", None, ".: no module ., expected an adapter"),
        (".relative:X", None, ".relative:X: no module .relative, expected an adapter"),
        ("no/such/folder", None, "no/such/folder: no module no/such/folder, expected an adapter"),
    ],
)
def test_what_is_no_backend_is_said(mine: Path, spec: str, op: str | None, text: str) -> None:
    spec, text = (x.replace("FILE", str(mine)) for x in (spec, text))
    with pytest.raises(ValueError, match=re.escape(text)):
        load(spec, op)


def test_our_own_operators() -> None:
    backend = load("nlattn")
    got = run(backend, "attention", arrays(), {})
    np.testing.assert_array_equal(got, nlattn.attention(**arrays()))
    k = np.eye(3).repeat([1, 1, 4], 0)
    assert (
        run(backend, "universal_set", {"k": k}, {"eps": 0.5}).tolist() == [True] * 2 + [False] * 4
    )
    assert run(backend, "heavy_attention", {"q": k, "k": k}, {"eps": 0.3}).shape == (6, 6)
    assert run(backend, "lewis_weights", {"k": k}, {"p": 2.0}).shape == (6,)


def test_supports_and_fields_are_arrays_in_a_case() -> None:
    given = {"support.indptr": np.array([0, 1, 2]), "support.indices": np.array([0, 3]),
             "support.shape": np.array([2, 4])}  # fmt: skip
    made = native({**arrays(), **given})
    assert made["support"].shape == (2, 4)
    got = run(load("nlattn"), "sparse_attention", {**arrays(), **given}, {})
    np.testing.assert_array_equal(got, np.ones((2, 5)))
    grid = {"k": np.ones((3, 2, 1)), "field.index": np.array([[[5, -1]]])}
    field = native(grid)["field"]
    assert field.key_grid == (3, 2)
    assert field.score.tolist() == [[[0, -np.inf]]]


@pytest.mark.parametrize(
    ("capabilities", "changes", "why"),
    [
        ({}, {}, ""),
        ({"operators": ["favor_attention"]}, {}, "no attention"),
        ({"operators": ["attention_vjp"]}, {"kind": "vjp"}, ""),
        ({"gradients": False}, {"kind": "vjp"}, "no gradients"),
        ({"dtypes": ["float32"]}, {}, "no float64"),
        ({"options": {"attention": []}}, {"options": {"causal": True}}, "takes no causal"),
        ({"options": {"attention": ["causal"]}}, {"options": {"causal": True}}, ""),
        ({"options": {"attention": []}}, {"arrays": {**arrays(), "mask": 1}}, "takes no mask"),
        ({"largest_n": 4}, {}, "no n above 4"),
        ({"largest_n": 5}, {}, ""),
    ],
)
def test_a_case_that_is_not_asked(capabilities: Any, changes: Any, why: str) -> None:
    assert unsupported(capabilities, case(**changes)) == why


def test_a_case_knows_its_results() -> None:
    assert case().outputs == ("out",)
    assert case(options={"return_lse": True}).outputs == ("out", "lse")
    gradient = case(kind="vjp", arrays={**arrays(), "dout": 0, "bias": 0, "mask": 0})
    assert gradient.outputs == ("dq", "dk", "dv", "dbias")
    assert gradient.function == "attention_vjp"
    assert case(op="lp_sensitivity").outputs == ("lower", "upper")


def test_dtypes_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtype_of("float16") == np.float16
    assert dtype_of("bfloat16").itemsize == 2
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(LookupError, match="bfloat16 needs ml_dtypes"):
        dtype_of("bfloat16")
