"""One stage of less precision has a name; what is no rounding of one stage has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.measure import Effort, call_of
from nlattn.conformance.judge.roundings import less_precise
from nlattn.conformance.judge.variants.base import Call
from nlattn.conformance.judge.variants.formats import FORMATS, NarrowFormat, rounded
from nlattn.conformance.judge.variants.roundings import (
    Rounding,
    stages,
)
from nlattn.conformance.table import JUDGED, find
from nlattn.conformance.truth.bounds import exact, wide
from nlattn.conformance.truth.transcription import transcription

pytestmark = pytest.mark.plain

SAME = "your output equals ours "
Rounds = Callable[[str, Any], Any]


def case(kind: str = "forward", dtype: str = "float32", n: int = 17, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    shapes = {"q": (n, 5), "k": (13, 5), "v": (13, 3)} | ({"dout": (n, 3)} if kind == "vjp" else {})
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return Case("case", "attention", kind, dtype, arrays)  # type: ignore[arg-type]


def rounds(stage: str, dtype: Any) -> Rounds:
    """What rounds one stage of the kernels below."""
    return lambda name, x: x.astype(dtype).astype(x.dtype) if name == stage else x


def kernel(q: Any, k: Any, v: Any, at: Rounds) -> Any:
    """Attention, which shares no code with the oracle."""
    s = at("scores", q @ k.T * at("scale", q.dtype.type(q.shape[-1] ** -0.5)))
    p = at("powers", np.exp(at("shifted", s - s.max(-1, keepdims=True))))
    return at("out", at("weights", p / at("total", p.sum(-1, keepdims=True))) @ v)


def gradient(q: Any, k: Any, v: Any, dout: Any, at: Rounds) -> dict[str, Any]:
    scale = at("scale", q.dtype.type(q.shape[-1] ** -0.5))
    s = q @ k.T * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    P = p / p.sum(-1, keepdims=True)
    dP = at("dP", dout @ v.T)
    dS = P * (dP - at("mean", (P * dP).sum(-1, keepdims=True)))
    dv = at("P of values", P).T @ dout
    return {"dq": scale * at("dS of queries", dS) @ k, "dk": scale * dS.T @ q, "dv": dv}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("stage", "words"),
    [("scores", "raw"), ("weights", "weights"), ("powers", "powers")],
)
def test_a_stage_of_16_bits_is_named(stage: str, words: str, dtype: str) -> None:
    kind = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    c = case()
    said = diagnose(c, {"out": kernel(**c.arrays, at=rounds(stage, kind))}, two=True)
    form = next(form.name for form in FORMATS if form.name.startswith(dtype))
    assert said.startswith(f"{SAME}with `{words}` rounded to {form} in attention_stages")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_a_scale_of_16_bits_is_named(kind: str, dtype: str) -> None:
    narrow = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    c, at = case(kind), rounds("scale", narrow)
    got = {"out": kernel(**c.arrays, at=at)} if kind == "forward" else gradient(**c.arrays, at=at)
    form = next(form.name for form in FORMATS if form.name.startswith(dtype))
    assert f"with `scale` rounded to {form} in attention_stages" in diagnose(c, got, two=False)


@pytest.mark.parametrize(
    ("op", "option", "number"),
    [("attention", "softcap", 1.7), ("nl_means", "h", 0.3), ("psal", "temperature", 0.7)],
)
def test_an_option_of_16_bits_is_named(op: str, option: str, number: float) -> None:
    some = cases("smoke", (op,), ("float32",), f"{op}/forward/*")
    c = next(x for x in some if option in x.options)
    c = replace(c, options={**c.options, option: number})
    narrow = {**c.options, option: float(np.float16(number))}
    got = transcription(op, wide(c.arrays), narrow)
    said = diagnose(c, {"out": got[0] if isinstance(got, tuple) else got}, two=False)
    assert said == f"{SAME}with {option} rounded to float16 (or TF32)"


@pytest.mark.parametrize("stage", ["scores", "shifted", "powers", "total"])
def test_a_stage_of_float32_in_float64_is_named(stage: str) -> None:
    c = case(dtype="float64")
    said = diagnose(c, {"out": kernel(**c.arrays, at=rounds(stage, np.float32))})
    words = "raw" if stage == "scores" else stage
    assert said.startswith(f"{SAME}with `{words}` rounded to float32 in attention_stages")


def test_exponentials_of_float32_in_float64_are_named() -> None:
    c = case(dtype="float64")

    def at(name: str, x: Any) -> Any:
        return np.log(np.exp(x.astype(np.float32)).astype(float)) if name == "shifted" else x

    said = diagnose(c, {"out": kernel(**c.arrays, at=at)})
    assert said.startswith(f"{SAME}with `powers` computed in float32 in attention_stages")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("stage", "words"), [("scores", "raw` rounded"), ("total", "total` rounded")]
)
def test_a_stage_of_16_bits_between_results_of_16_bits_is_named(
    stage: str, words: str, dtype: str
) -> None:
    kind: Any = np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    c = case(dtype=dtype)
    for name in ("q", "v"):
        c.arrays[name][...] *= kind(3)
    wide = {name: x.astype(np.float32) for name, x in c.arrays.items()}
    got = kernel(**wide, at=lambda _, x: x).astype(kind)
    form = next(form.name for form in FORMATS if form.name.startswith(dtype))
    assert not less_precise(c, ("out",), exact(c), {"out": got}, Effort(), new=True)
    got = kernel(**wide, at=rounds(stage, kind)).astype(kind)
    said = less_precise(c, ("out",), exact(c), {"out": got.astype(float)}, Effort(), new=True)
    assert f"with `{words} to {form} in attention_stages" in said


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize(("stage", "words"), [("total", "total"), ("out", "weights @ x")])
def test_a_sum_that_is_added_up_in_16_bits_is_named(stage: str, words: str, step: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {"q": (17, 5), "k": (90, 5), "v": (90, 3)}
    c = Case(
        "case",
        "attention",
        "forward",
        "float16",
        {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()},
    )
    q, k, v = (x.astype(np.float32) for x in c.arrays.values())
    s = q @ k.T * np.float32(5**-0.5)
    p = np.exp(s - s.max(-1, keepdims=True))
    total, out = np.zeros((17, 1), np.float16), np.zeros((17, 3), np.float16)
    P = p / p.sum(-1, keepdims=True)
    for i in range(0, 90, step):
        total = (total + p[:, i : i + step].sum(-1, keepdims=True)).astype(np.float16)
        out = (out + P[:, i : i + step] @ v[i : i + step]).astype(np.float16)
    got = out if stage == "out" else (p @ v / total).astype(np.float16)
    said = less_precise(c, ("out",), exact(c), {"out": got.astype(float)}, Effort(), new=True)
    where = "attention_stages" if stage == "total" else "product"
    assert said == [f"with `{words}` added up in float16 (or TF32) in steps of {step} in {where}"]


@pytest.mark.parametrize("kind", ["forward", "vjp"])
def test_products_of_tf32_are_named(kind: str) -> None:
    c = case(kind)

    def times(x: Any, y: Any) -> Any:
        x, y = (np.ascontiguousarray(z).view(np.uint32) & 0xFFFFE000 for z in (x, y))
        return x.view(np.float32) @ y.view(np.float32)

    q, k, v = (c.arrays[name] for name in "qkv")
    scale = np.float32(5**-0.5)
    s = times(q, k.T) * scale
    p = np.exp(s - s.max(-1, keepdims=True))
    P = p / p.sum(-1, keepdims=True)
    if kind == "forward":
        got = {"out": times(P, v)}
    else:
        dP = times(c.arrays["dout"], v.T)
        dS = scale * P * (dP - (P * dP).sum(-1, keepdims=True))
        got = {"dq": times(dS, k), "dk": times(dS.T, q), "dv": times(P.T, c.arrays["dout"])}
    said = diagnose(c, got, two=True)
    assert said == f"{SAME}with the factors of all matrix products cut off to float16 (or TF32)"


CONTEXTS = f"{SAME}with contexts `K.T v` "


def softmax(x: Any, axis: int) -> Any:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_context_of_16_bits_is_named(dtype: str) -> None:
    c = replace(case(dtype=dtype, n=60), op="efficient_attention")
    q, k, v = (x.astype(np.float32) for x in c.arrays.values())
    context = (softmax(k, 0).T @ v).astype(np.float16).astype(np.float32)
    got = (softmax(q, 1) @ context).astype(dtype)
    said = diagnose(c, {"out": got})
    assert said == f"{CONTEXTS}rounded to float16 (or TF32)"


def test_contexts_of_16_bits_in_a_gradient_are_named() -> None:
    c = replace(case("vjp"), op="efficient_attention")
    q, k, v, dout = c.arrays.values()
    Q, K = softmax(q, 1), softmax(k, 0)
    G, dG = ((x.T @ y).astype(np.float16).astype(np.float32) for x, y in ((K, v), (Q, dout)))
    dQ, dK = dout @ G.T, v @ dG.T
    got = {"dq": Q * (dQ - (Q * dQ).sum(1, keepdims=True)), "dk": K * (dK - (K * dK).sum(0))}
    said = diagnose(c, {**got, "dv": K @ dG})
    assert said == f"{CONTEXTS}rounded to float16 (or TF32)"


@pytest.mark.parametrize("sums", [False, True])
def test_a_running_state_of_16_bits_is_named(sums: bool) -> None:
    c = replace(case(), op="favor_attention", options={"kernel": "none", "causal": True})
    q, k, v = c.arrays.values()
    Q, K, out = softmax(q, 1), np.exp(k), np.zeros((17, 3), np.float32)
    state, total = np.zeros((5, 3), np.float32), np.zeros(5, np.float32)
    for i in range(17):
        if i < len(k):
            state = (state + K[i, :, None] * v[i]).astype(np.float16).astype(np.float32)
            total = total + K[i]
            total = total.astype(np.float16).astype(np.float32) if sums else total
        out[i] = Q[i] @ state / (Q[i] @ (total + np.float32(1e-6)))
    said = diagnose(c, {"out": out})
    also = " and row sums" if sums else ""
    words = f"with contexts `K.T v`{also} added up in float16 (or TF32)"
    assert said == f"{SAME}{words} in steps of 1"


def test_contexts_that_are_right_have_no_name() -> None:
    c = replace(case(dtype="float16", n=60), op="efficient_attention")
    q, k, v = (x.astype(np.float32) for x in c.arrays.values())
    got = (softmax(q, 1) @ (softmax(k, 0).T @ v)).astype(np.float16).astype(float)
    assert not less_precise(c, ("out",), exact(c), {"out": got}, Effort(), new=True)


def test_numbers_that_are_cut_off_are_named() -> None:
    c = case()

    def at(name: str, x: Any) -> Any:
        return (x.view(np.uint32) & 0xFFFF0000).view(np.float32) if name == "weights" else x

    said = diagnose(c, {"out": kernel(**c.arrays, at=at)})
    assert said.startswith(f"{SAME}with `weights` cut off to bfloat16 in attention_stages")


@pytest.mark.parametrize(
    ("stage", "words", "alone"),
    [
        ("dP", "dP", "dq and dk"),
        ("mean", "mean", "dq and dk"),
        ("P of values", "kept", "dv"),
        ("dS of queries", "dS", "dq"),
    ],
)
def test_a_stage_of_a_gradient_is_named(stage: str, words: str, alone: str) -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16
    c = case("vjp")
    said = diagnose(c, gradient(**c.arrays, at=rounds(stage, kind)))
    assert said.startswith(f"{SAME}with `{words}`"), said
    assert f"rounded to bfloat16 in attention_vjp, in {alone} alone" in said


def test_stages_of_two_gradients_are_named_one_by_one() -> None:
    kind = pytest.importorskip("ml_dtypes").bfloat16
    c = case("vjp")

    def at(name: str, x: Any) -> Any:
        some = ("P of values", "mean")
        return x.astype(kind).astype(x.dtype) if name in some else x

    said = diagnose(c, gradient(**c.arrays, at=at))
    assert said.startswith(f"{SAME}with `mean` rounded to bfloat16 in attention_vjp, in dq alone")
    assert "in dk alone and with " in said
    assert said.endswith("in dv alone")


@pytest.mark.parametrize(("m", "said"), [(70, "blocks of 32"), (13, "blocks of 16 or ")])
@pytest.mark.parametrize("stage", ["acc", "powers"])
def test_a_stage_of_a_kernel_over_blocks_is_named(stage: str, m: int, said: str) -> None:
    rng, block = np.random.default_rng(0), 32
    shapes = {"q": (17, 5), "k": (m, 5), "v": (m, 3)}
    arrays: Any = {n: rng.standard_normal(x).astype(np.float32) for n, x in shapes.items()}
    c = Case("case", "attention", "forward", "float32", arrays)
    at = rounds(stage, np.float16)
    s = arrays["q"] @ arrays["k"].T * np.float32(5**-0.5)
    top, total, acc = np.full((17, 1), -np.inf, np.float32), 0.0, np.zeros((17, 3), np.float32)
    for b in range(0, m, block):
        part, own = s[:, b : b + block], arrays["v"][b : b + block]
        new = np.maximum(top, part.max(-1, keepdims=True))
        p, shrink = at("powers", np.exp(part - new)), np.exp(top - new)
        top, total = new, total * shrink + p.sum(-1, keepdims=True)
        acc = at("acc", acc * shrink + p @ own)
    found = diagnose(c, {"out": acc / total})
    if stage == "powers" and m < block:  # the oracle has this stage, too
        said = "rounded to float16 (or TF32) in attention_stages"
    assert found.startswith(f"{SAME}with `{stage}")
    assert said in found


def test_errors_of_the_same_size_that_no_stage_makes_have_no_name() -> None:
    for seed in range(3):
        c = case(seed=seed)
        want, rng = exact(c), np.random.default_rng([1, seed])
        for size in (2.0**-12, 2.0**-9):
            noise = want["out"] * (1 + size * rng.standard_normal(want["out"].shape))
            rows = want["out"] * (1 + size * rng.standard_normal((17, 1)))
            for got in (noise, rows):
                assert not less_precise(c, ("out",), want, {"out": got}, Effort(), new=True)


@pytest.mark.parametrize("form", FORMATS[1:], ids=["float16", "bfloat16"])
def test_errors_of_16_bits_that_no_stage_makes_have_no_name(form: NarrowFormat) -> None:
    for seed in range(6):
        c = case(dtype=form.name.split()[0], seed=seed)
        want, rng = exact(c), np.random.default_rng([2, seed])
        for size in (2.0**-form.bits, 2.0 ** (3 - form.bits)):
            noise = want["out"] * (1 + size * rng.standard_normal(want["out"].shape))
            got = {"out": rounded(noise, form)}
            assert not less_precise(c, ("out",), want, got, Effort(), new=True)


def test_what_is_of_less_precision_everywhere_is_no_stage() -> None:
    c = case(dtype="float64")
    narrow = {name: x.astype(np.float32) for name, x in c.arrays.items()}
    for factor in (1.0, 40.0):  # where scores are large, their errors are most of all
        c.arrays["q"][...] *= factor
        narrow["q"] *= np.float32(factor)
        exact.cache_clear()
        said = diagnose(c, {"out": kernel(**narrow, at=lambda _, x: x)})
        assert said == "your output is as far from ours as one computed in float32"


def test_few_rows_tell_nothing() -> None:
    c = case(n=5)
    got = {"out": kernel(**c.arrays, at=rounds("out", np.float16))}
    assert not less_precise(c, ("out",), exact(c), got, Effort(), new=True)


def test_names_of_earlier_failures_are_enough() -> None:
    c, effort = case(), Effort()
    got = {"out": kernel(**c.arrays, at=rounds("weights", np.float16))}
    assert not less_precise(c, ("out",), exact(c), got, effort, new=False)
    effort.names.add("with `weights` rounded to float16 (or TF32) in attention_stages")
    assert less_precise(c, ("out",), exact(c), got, effort, new=False)


def test_hooks_change_nothing() -> None:
    c = case("vjp")
    call = call_of(c)
    found = list(stages("attention_vjp", call))
    assert {"`dP`", "`mean`", "`raw`"} <= {stage.words for stage, _ in found}
    fine = NarrowFormat("as fine as float64", 53)
    want = exact(c)
    for stage, use in found:
        got = Rounding(stage, "kept", fine, use=use)("attention_vjp", call)
        for x, y in zip(got, want.values(), strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("op", [spec.name for spec in JUDGED if not spec.cases.search_only])
def test_every_operator_has_stages(op: str) -> None:
    kinds = [""] + ["_vjp"] * find(op).has_vjp + ["_jvp"] * find(op).has_jvp
    for end in kinds:
        kind = end.strip("_") or "forward"
        c = next(cases("smoke", (op,), ("float32",), f"{op}/{kind}/*"))
        call = Call(c.op, wide(c.arrays), dict(c.options), c.dtype)
        found = [stage for stage, _ in stages(c.function, call)]
        computes = op != "topk_keys"  # which sorts
        assert any(stage.whole for stage in found) == computes


def test_formats_are_those_of_numpy() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).standard_normal(1000)
    dtypes: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16)
    for form, dtype in zip(FORMATS, dtypes, strict=True):
        near = x.astype(np.float32) if form.bits < 24 else x
        np.testing.assert_array_equal(rounded(near, form), near.astype(dtype).astype(float))
        cut = rounded(near, form._replace(cut=True))
        assert (abs(cut) <= abs(near)).all()
        assert (abs(near - cut) < 2.0 ** (1 - form.bits) * abs(near)).all()
    np.testing.assert_array_equal(rounded(np.array([np.inf, np.nan]), FORMATS[0]), [np.inf, np.nan])
