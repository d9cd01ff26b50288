"""Adapters of other libraries: their attention is ours, where they say that they do it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nlattn.conformance.backends.adapters import allowed_pairs
from nlattn.conformance.backends.backend import Unsupported, load
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.search import searches
from nlattn.conformance.runner import Here, attempt
from nlattn.oracle import dense, efficient, enla, favor, nonlocal_mean, refined

RNG = np.random.default_rng(3)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "causal": {"causal": True},
    "offset": {"causal": True, "causal_offset": 2},
    "window": {"window": [2, 1]},
    "half a window": {"window": [None, 1], "causal": True},
    "mask": {"mask": RNG.random((5, 7)) < 0.7},
    "bias": {"bias": RNG.standard_normal((5, 7))},
    "bias and mask": {"bias": RNG.standard_normal((5, 7)), "mask": RNG.random((5, 7)) < 0.8},
}


def arrays(lead: tuple[int, ...] = (), shared: int | None = None) -> dict[str, Any]:
    heads = lead if shared is None else (*lead[:-1], shared)
    shapes = {"q": (*lead, 5, 4), "k": (*heads, 7, 4), "v": (*heads, 7, 3)}
    return {name: RNG.standard_normal(shape) for name, shape in shapes.items()}


def narrow(backend: Any) -> float:
    """ONNX Runtime and JAX compute float64 in float32 here and there: some hundred units of it."""
    return 1e-5 if backend.name in ("onnxruntime", "jax") else 1e-12


def agree(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    assert got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=tolerance, atol=tolerance)


def split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    given = {name: x for name, x in options.items() if isinstance(x, np.ndarray)}
    return given, {name: x for name, x in options.items() if name not in given}


@pytest.fixture(scope="module", params=["torch:math", "torch:flash-cpu", "jax", "onnxruntime"])
def backend(request: Any) -> Any:
    pytest.importorskip(request.param.partition(":")[0])
    return load(request.param)


@pytest.mark.parametrize("name", OPTIONS)
def test_attention_is_ours(backend: Any, name: str) -> None:
    given, options = split(OPTIONS[name])
    x = arrays() | given
    got = backend.run("attention", x, options)
    agree(got, dense.attention(**x, **options), narrow(backend))


@pytest.mark.parametrize(("lead", "shared"), [((2,), None), ((2, 3), None), ((2, 4), 2), ((4,), 1)])
def test_heads_are_ours(backend: Any, lead: tuple[int, ...], shared: int | None) -> None:
    x = arrays(lead, shared)
    options = {} if shared is None else {"gqa": True}
    got = backend.run("attention", x, options)
    agree(got, dense.attention(**x, **options), narrow(backend))


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_are_ours(backend: Any, name: str) -> None:
    if not backend.capabilities()["gradients"]:
        pytest.skip("has no gradients")
    given, options = split(OPTIONS[name])
    x = arrays((2,)) | given | {"dout": RNG.standard_normal((2, 5, 3))}
    if backend.name == "torch:flash-cpu" and "bias" in given:
        with pytest.raises(Unsupported, match="the kernel does not do this"):
            backend.run("attention_vjp", x, options)
        return
    got = backend.run("attention_vjp", x, options)
    want = dense.attention_vjp(**x, **options)
    for gradient, exact in zip(got.values(), want, strict=True):
        agree(gradient, exact, narrow(backend))


def test_every_dtype_stays_what_it_is(backend: Any) -> None:
    for dtype in backend.capabilities().get("dtypes", ["float32", "float16", "bfloat16"]):
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        x = {name: array.astype(kind) for name, array in arrays((2,)).items()}
        got = backend.run("attention", x, {})
        assert got.dtype.name == dtype
        want = dense.attention(**{name: array.astype(float) for name, array in x.items()})
        agree(got, want, 0.05 if "16" in dtype else 1e-5)


def test_what_a_library_does_not_do_is_said(backend: Any) -> None:
    with pytest.raises(Unsupported, match="takes no masked_rows"):
        backend.run("attention", arrays(), {"masked_rows": "nan"})


LINEAR: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "efficient": (efficient, "efficient_attention", {}),
    "efficient mask": (efficient, "efficient_attention", {"mask": np.arange(7) % 3 > 0}),
    "scaling": (efficient, "efficient_attention", {"normalization": "scaling"}),
    "scaling mask": (
        efficient,
        "efficient_attention",
        {"normalization": "scaling", "mask": np.arange(7) % 3 > 0},
    ),
    "refined": (refined, "refined_self_attention", {}),
    "favor": (favor, "favor_attention", {"projection": RNG.standard_normal((6, 4))}),
    "relu": (
        favor,
        "favor_attention",
        {"projection": RNG.standard_normal((6, 4)), "kernel": "relu"},
    ),
    "enla": (enla, "enla", {"projection": RNG.standard_normal((6, 4))}),
    "bare enla": (
        enla,
        "enla",
        {"projection": RNG.standard_normal((6, 4)), "amplification": None},
    ),
    "nonlocal": (nonlocal_mean, "nonlocal_mean", {}),
    "dot product": (nonlocal_mean, "nonlocal_mean", {"pairwise": "dot_product"}),
    "concatenation": (
        nonlocal_mean,
        "nonlocal_mean",
        {"pairwise": "concatenation", "weight": RNG.standard_normal(8)},
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_of_torch_is_ours(name: str) -> None:
    pytest.importorskip("torch")
    module, op, rest = LINEAR[name]
    given, options = split(rest)
    x, backend = arrays((2,)) | given, load("torch")
    agree(backend.run(op, x, options), getattr(module, op)(**x, **options))
    x |= {"dout": RNG.standard_normal((2, 5, 3))}
    want = getattr(module, f"{op}_vjp")(**x, **options)
    for gradient, exact in zip(backend.run(f"{op}_vjp", x, options).values(), want, strict=True):
        agree(gradient, exact, 1e-11)


def test_a_kernel_that_does_not_do_a_call_says_so() -> None:
    pytest.importorskip("torch")
    backend = load("torch:cudnn-cpu")
    with pytest.raises(Unsupported, match="the kernel does not do this"):
        backend.run("attention", arrays(), {})
    with pytest.raises(ValueError, match="torch:fast: no such kernel, expected math, flash"):
        load("torch:fast")


def test_pairs_are_those_of_the_oracle() -> None:
    assert allowed_pairs(3, 4, False, 0, None) is None
    for causal, offset, window in ((True, 1, None), (False, 0, [1, None]), (True, -1, [None, 2])):
        want = dense.allowed(5, 7, causal, offset, tuple(window) if window else None)
        np.testing.assert_array_equal(allowed_pairs(5, 7, causal, offset, window), want)


def test_faiss_finds_the_best_keys_and_flex_attends() -> None:
    """The best of all is as good as ours; every option of flex_attention is a score's."""
    pytest.importorskip("faiss")
    (verdict,) = searches(Here(load("faiss")), ("patchmatch",), ("float32",))
    assert verdict.status == "pass", verdict
    pytest.importorskip("torch")
    subject = Here(load("torch:flex-cpu"))
    for label in ("everything", "lse"):
        (case,) = cases("smoke", ("attention",), ("float32",), f"attention/forward/*/{label}")
        assert attempt(subject, case)[0].status == "pass", label
