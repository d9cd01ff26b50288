"""ONNX's own tests of its operator Attention, opsets 23 to 25: each read as a call of ours.

The cases and their expected outputs come from the installed package; they are the published
meaning of windows about an offset, caches, lengths, masks that are too short, and grouped heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import nlattn
from nlattn.oracle import dense

onnx = pytest.importorskip("onnx")
pytest.importorskip("ml_dtypes")
if onnx.defs.get_schema("Attention").since_version < 25:
    pytest.skip("this ONNX knows no windows of Attention", allow_module_level=True)

STAGES = ("raw", "capped", "masked", "weights")
"""What `qk_matmul_output` is, by its mode."""
TOLERANCE = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 4e-2}
"""ONNX computes in the dtype of its arrays, 16 bits too: some units in the last place of 1."""


class Published(NamedTuple):
    """One of ONNX's tests."""

    name: str
    options: dict[str, Any]
    inputs: dict[str, Any]
    outputs: dict[str, Any]


def onnx_cases() -> Any:
    """The class whose methods make them."""
    from onnx.backend.test.case.node.attention import Attention

    return Attention


def published() -> Iterator[Published]:
    """All that the installed package has; they draw from NumPy's global generator."""
    attention = inspect.getmodule(onnx_cases())
    found: list[Published] = []

    def expect(node: Any, inputs: list[Any], outputs: list[Any], name: str, **_: Any) -> None:
        options = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
        given = dict(zip([n for n in node.input if n], inputs, strict=True))
        wanted = dict(zip([n for n in node.output if n], outputs, strict=True))
        found.append(Published(name.removeprefix("test_attention_"), options, given, wanted))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "expect", expect)
        np.random.seed(0)  # noqa: NPY002
        for name, export in sorted(vars(onnx_cases()).items()):
            if name.startswith("export"):
                export.__func__()
    return iter(found)


CASES = list(published())


class Ours(NamedTuple):
    """A case as arguments of `attention`."""

    q: Any
    k: Any
    v: Any
    options: dict[str, Any]


def ours(case: Published) -> Ours:
    """Heads on an axis of their own, past keys before new ones, masks as long as the keys."""
    given, how = case.inputs, case.options
    q, k, v = (given[name] for name in "QKV")
    if q.ndim == 3:
        q = _heads(q, how["q_num_heads"])
        k, v = (_heads(x, how["kv_num_heads"]) for x in (k, v))
    offset: Any = 0
    if "past_key" in given:
        offset = given["past_key"].shape[-2]
        k = np.concatenate([given["past_key"], k], -2)
        v = np.concatenate([given["past_value"], v], -2)
    options: dict[str, Any] = {"gqa": True, "nonfinite": "propagate"}
    if "nonpad_kv_seqlen" in given:
        lengths = given["nonpad_kv_seqlen"][:, None]
        options["key_lengths"], offset = lengths, lengths - q.shape[-2]
    if how.get("is_causal"):
        options["causal"] = True
    sides = [how.get(f"{side}_window_size", -1) for side in ("left", "right")]
    if max(sides) >= 0:
        options["window"] = tuple(None if size < 0 else size for size in sides)
        options["window_about"] = "offset"
    if options.keys() & {"causal", "window"}:
        options["causal_offset"] = offset
    options |= {name: how[name] for name in ("scale", "softcap") if how.get(name)}
    if "attn_mask" in given:
        mask = given["attn_mask"]
        missing = k.shape[-2] - mask.shape[-1]
        absent = False if mask.dtype == bool else -np.inf
        sizes = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
        full = np.pad(mask, sizes, constant_values=absent)
        options["mask" if mask.dtype == bool else "bias"] = full
    return Ours(q, k, v, options)


def _heads(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _flat(out: Any, like: Any) -> Any:
    return out.swapaxes(1, 2).reshape(like.shape) if like.ndim == 3 else out


@pytest.mark.parametrize("function", [nlattn.attention, dense.attention], ids=["op", "oracle"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_expects_what_we_compute(case: Published, function: Callable[..., Any]) -> None:
    q, k, v, options = ours(case)
    tolerance = TOLERANCE[q.dtype.name]
    if function is dense.attention:
        q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
        options = {n: x for n, x in options.items() if n != "nonfinite"}
        if "bias" in options:
            options["bias"] = np.asarray(options["bias"], np.float64)
    want = case.outputs["Y"]
    got = _flat(function(q, k, v, **options), want)
    assert got.shape == want.shape
    np.testing.assert_allclose(
        got.astype(float), want.astype(float), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    "case", [c for c in CASES if len(c.outputs) > 1], ids=lambda case: case.name
)
def test_what_lies_between_is_as_onnx_has_it(case: Published) -> None:
    q, k, v, options = ours(case)
    tolerance = TOLERANCE[q.dtype.name]
    arrays = [np.asarray(x, np.float64) for x in (q, k, v)]
    options = {n: x for n, x in options.items() if n != "nonfinite"}
    stages = dense.attention_stages(*arrays, **options)
    mode = case.options.get("qk_matmul_output_mode", 0)
    got = {
        "present_key": k,
        "present_value": v,
        "qk_matmul_output": getattr(stages, STAGES[mode]),
    }
    for name, want in case.outputs.items():
        if name != "Y":
            mine = np.asarray(got[name], float)
            np.testing.assert_allclose(mine, want.astype(float), rtol=tolerance, atol=tolerance)


def test_none_is_left_out() -> None:
    """What is asked of cases is there in them: an import of fewer would pass unseen."""
    source = inspect.getsource(inspect.getmodule(onnx_cases()))  # type: ignore[arg-type]
    assert len({case.name for case in CASES}) == source.count('name="test_') >= 93
    assert {x for case in CASES for x in case.inputs} == {
        "Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen",
    }  # fmt: skip
