"""Inputs of eight bits: codes by hand, scales, bounds, and the kernel of docs/examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nlattn.conformance.backends.backend import load
from nlattn.conformance.backends.capabilities import Capabilities, unsupported
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.eight_bit import decode, dequantised, encode, expanded, largest, quantised
from nlattn.conformance.runner import Here, attempt
from nlattn.conformance.truth.arithmetic import Arithmetic
from nlattn.conformance.truth.bounds import allowed
from tests.faults import commonest

pytestmark = pytest.mark.plain

FILE = str(Path(__file__).parents[2] / "docs/examples/eight_bit_attention.py")


def test_codes_by_hand() -> None:
    """Ties go to the even code, what is too large is the largest, half of the least is 0."""
    x = [1.0, 1.0625, 1.1875, 448, 1e9, -np.inf, 2.0**-9, 2.0**-10, -0.0, np.nan]
    want = [1.0, 1.0, 1.25, 448, 448, -448, 2.0**-9, 0, -0.0, np.nan]
    np.testing.assert_array_equal(decode(encode(x, "e4m3"), "e4m3"), want)
    assert encode(np.array([-0.0]), "e4m3")[0] == 128
    x, want = [1.125, 1.375, 57344, 1e9, 2.0**-17], [1.0, 1.5, 57344, 57344, 0]
    np.testing.assert_array_equal(decode(encode(x, "e5m2"), "e5m2"), want)
    np.testing.assert_array_equal(encode([0.5, 1.5, -300, np.nan], "int8"), [0, 2, -127, 0])
    assert [largest(name) for name in ("e4m3", "e5m2", "int8")] == [448, 57344, 127]


@pytest.mark.parametrize(("name", "other"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_codes_are_those_of_ml_dtypes(name: str, other: str) -> None:
    dtype = getattr(pytest.importorskip("ml_dtypes"), other)
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(decode(codes, name), codes.view(dtype).astype(float))
    x = np.concatenate([np.random.default_rng(0).standard_normal(4000) * 30, decode(codes, name)])
    steps = np.unique(x[np.isfinite(x) & (abs(x) <= largest(name))])
    x = np.concatenate([steps, (steps[1:] + steps[:-1]) / 2])
    np.testing.assert_array_equal(decode(encode(x, name), name), x.astype(dtype).astype(float))


@pytest.mark.parametrize(
    ("share", "shape"),
    [("tensor", ()), ("head", (2, 1, 1)), ("row", (2, 70, 1)), ("block", (2, 2, 1))],
)
@pytest.mark.parametrize("dtype", ["e4m3", "int8", "int8-float16"])
def test_scales_bring_the_largest_number_to_the_formats(
    share: str, shape: tuple[int, ...], dtype: str
) -> None:
    q = np.random.default_rng(0).standard_normal((2, 70, 8))
    made = quantised({"q": q, "v": q, "bias": q}, ("q", "v"), dtype, share)
    assert made["q_scale"].shape == shape
    assert made["bias"].dtype == np.float32
    assert ("v_scale" in made) == (dtype != "int8-float16")
    form = dtype[:4]
    assert abs(decode(made["q"], form)).max() == largest(form)
    scale = expanded(made["q_scale"], q.shape, share)
    off = abs(scale * decode(made["q"], form) - q)
    assert (off <= 1.0001 * (scale / 2 if form == "int8" else abs(q) / 16 + scale / 1024)).all()
    case = next(cases("smoke", ("attention",), (dtype,), "*/heads", scales=share))
    plain = dequantised(case)
    assert (case.dtype, plain.dtype) == (dtype, "bfloat16")
    codes, scales = case.arrays["q"], case.arrays["q_scale"]
    want = expanded(scales, codes.shape, share) * decode(codes, form)
    np.testing.assert_array_equal(plain.arrays["q"], want)


def test_they_are_asked_of_backends_that_name_them() -> None:
    assert not any(c.results_in for c in cases("smoke", ("index_scores",)))
    found = list(cases("smoke", ("index_scores",), ("e4m3",)))
    assert found
    assert found[0].arrays["w"].dtype == np.float32
    assert unsupported({"dtypes": ["float32"]}, found[0]) == "no e4m3"
    assert not unsupported({"dtypes": ["e4m3"]}, found[0])
    with pytest.raises(ValueError, match="scales name 'column'; expected some of tensor, head"):
        Capabilities.of({"scales": "column"})


def test_bounds_follow_the_formats() -> None:
    case = next(cases("smoke", ("attention",), ("e4m3",), "*/primes"))
    of = Arithmetic.of_codes
    sizes = [
        float(allowed(case, how)["out"].mean())
        for how in (
            of("float32", "float32"),
            of("float32", "bfloat16"),
            of("bfloat16", "bfloat16"),
            of("e4m3", "bfloat16"),
            of("e4m3", "bfloat16", "14bits"),
        )
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < 1e-5 < 1e-4 < sizes[1] < 0.5 * sizes[3]


NAMED = {
    "NoScaleOfKeys": "without the scale of k",
    "NoScaleOfValues": "without the scale of v",
    "FirstHead": "with the scales of q and k of the first head",
    "OtherFormat": "with e4m3 read as e5m2, infinities as numbers",
    "FiveBits": "with e5m2 read as e4m3",
    "Bias": "with e4m3 of bias 8 (e4m3fnuz)",
    "Clipped": "with numbers beyond 240 cut off",
    "NotRescaled": "with outputs not rescaled when a later block of 64 keys has a larger score",
}
SHOWN = ("primes", "heads", "rising-long")


@pytest.mark.parametrize("name", ["Backend", *NAMED])
def test_the_kernel_of_the_page(name: str) -> None:
    subject = Here(load(f"{FILE}:{name}"))
    able = subject.capabilities
    every = cases("smoke", ("attention",), able.dtypes, "*", able.shapes, able.scales, able.results)
    given = [c for c in every if name == "Backend" or c.name.split("/")[-1] in SHOWN]
    found = [attempt(subject, c)[0] for c in given if not unsupported(able, c)]
    wrong = [v for v in found if v.failed]
    if name == "Backend":
        assert len(found) >= 39
        assert wrong == []
        assert 0.3 < max(v.ratio for v in found) < 0.9
    else:
        assert (
            commonest(v.diagnosis for v in wrong).removeprefix("your output equals ours ")
            == (NAMED[name])
        )
