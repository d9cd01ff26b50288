"""The wrappers that docs/backends.md shows are right, where their libraries are installed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.backends.backend import load
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.runner import Here, attempt

PAGE = Path(__file__).parents[2] / "docs/backends.md"
BLOCKS = re.findall(r"^((?: {4}.*\n|\n)+)", PAGE.read_text(), re.M)
WRAPPERS = {
    library: next(block for block in BLOCKS if f"import {library}" in block)
    for library in ("torch", "jax", "onnxruntime")
}


@pytest.mark.parametrize("library", WRAPPERS)
def test_a_wrapper_computes_attention(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    file = tmp_path / f"wraps_{library}.py"
    file.write_text(re.sub("^ {4}", "", WRAPPERS[library], flags=re.M))
    if library == "onnxruntime":
        onnx = pytest.importorskip("onnx")
        onnx.save(model(onnx), tmp_path / "attention.onnx")
    monkeypatch.chdir(tmp_path)
    subject = Here(load(str(file)))
    which = "*/primes" if library == "onnxruntime" else "*"  # whose model is of one size
    every = cases("smoke", ("attention", "qna", "efficient_attention"), pattern=which)
    found = [attempt(subject, case)[0] for case in every]
    judged = {verdict.case: verdict.status for verdict in found if verdict.status != "unsupported"}
    assert judged["attention/forward/float32/primes"] == "pass"
    assert ("attention/vjp/float32/primes" in judged) == (library == "torch")
    assert set(judged.values()) == {"pass"}


def model(onnx: Any) -> Any:
    """Softmax attention of one head, from plain operators."""
    make, numbers = onnx.helper, onnx.TensorProto.FLOAT
    root = make.make_tensor("root", numbers, [], [float(np.sqrt(5))])
    nodes = [
        make.make_node("Transpose", ["K"], ["KT"], perm=[1, 0]),
        make.make_node("MatMul", ["Q", "KT"], ["products"]),
        make.make_node("Div", ["products", "root"], ["scores"]),
        make.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        make.make_node("MatMul", ["weights", "V"], ["out"]),
    ]
    shapes = {"Q": "nd", "K": "md", "V": "me", "out": "ne"}
    infos = {n: make.make_tensor_value_info(n, numbers, list(s)) for n, s in shapes.items()}
    graph = make.make_graph(nodes, "attention", [infos[n] for n in "QKV"], [infos["out"]], [root])
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
