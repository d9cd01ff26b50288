"""Linear attention, products without a softmax, and random features gone wrong."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import (
    Call,
    Run,
    Variant,
    after,
    needs,
    option,
    softmax,
    step,
    unit,
)
from nlattn.conformance.table import find
from nlattn.oracle.dense import attention

_EFFICIENT = ("two softmaxes",)
_FAVOR, _ENLA, _LOSS = ("positive features",), ("amplified features",), ("ranks",)
_FEATURES = (*_FAVOR, *_ENLA)
_DIVIDED = ("linear products",)
_PLAIN = ("pairwise",)


def _factors(wrong: Function) -> Run:
    """``wrong(q, k, Q, K)`` in place of the factors Q, K of the map."""

    def instead(_: Call, factors: Any, q: Array, k: Array, **options: object) -> Result:
        return wrong(q, k, *factors(q, k, **options))

    return step("factors", instead)


def _softmaxed(wrong: Callable[[Array, Array, Array, Array], Result]) -> Run:
    def run(c: Call) -> Result:
        if c.get("normalization", "softmax") != "softmax":
            raise ValueError
        return _factors(wrong)(c)

    return run


def _times(factor: Callable[[Call], float]) -> Run:
    return after(lambda c, out: out * factor(c))


def _n(c: Call) -> int:
    return int(c["q"].shape[-2])


def _m(c: Call) -> int:
    return int(c["k"].shape[-2])


def _d(c: Call) -> int:
    return int(c["q"].shape[-1])


def _counted(factor: Callable[[Call], float]) -> Run:
    """A factor where the operator divides by a count."""

    def run(c: Call) -> Result:
        softmax = (c.get("normalization"), c.get("pairwise")) == (None, None) and any(
            name in inspect.signature(find(c.op).oracle()).parameters
            for name in ("normalization", "pairwise")
        )
        if softmax or c.get("pairwise", "").endswith("gaussian"):
            raise ValueError
        return _times(factor)(c)

    return run


def _kept(c: Call) -> Result:
    """Keys that count: all, or those of the mask."""
    mask = c.get("mask")
    return _m(c) if mask is None else np.asarray(mask.sum(-1))[..., None, None]


def _phi(wrong: Function) -> Run:
    """``wrong(positive_features, x, projection, **options)`` in place of positive features."""
    return step("positive_features", lambda _, f, *args, **options: wrong(f, *args, **options))


def _outside(f: Function, x: Array, projection: Array, **options: object) -> Array:
    eps = options.pop("eps", 1e-4)
    return np.asarray(f(x, projection, **options, eps=1e-300) + eps)


def _without_square(f: Function, x: Array, projection: Array, **options: object) -> Array:
    """Features of x beside a last channel in which no projection lies, its square taken out."""
    c = options.get("scale")
    c = x.shape[-1] ** -0.25 if c is None else c
    half = (c * x * (c * x)).sum(-1, keepdims=True) / 2
    eps = options.pop("eps", 1e-4)
    phi = f(x, projection, **options, eps=1e-300)
    return np.asarray(phi * np.exp(half) + eps / np.sqrt(len(projection)))


def _twice_square(f: Function, x: Array, projection: Array, **options: object) -> Array:
    c = options.get("scale")
    c = x.shape[-1] ** -0.25 if c is None else c
    half = (c * x * (c * x)).sum(-1, keepdims=True) / 2
    eps = options.pop("eps", 1e-4)
    phi = f(x, projection, **options, eps=1e-300)
    return np.asarray(phi * np.exp(-half) + eps / np.sqrt(len(projection)))


def _strict(_: Call, __: object, q: Array, k: Array, causal: bool, eps: float) -> Result:
    """Weights of keys before the query alone."""
    A = np.where(np.tri(q.shape[-2], k.shape[-2], -int(causal)) > 0, q @ np.swapaxes(k, -1, -2), 0)
    D = A.sum(-1, keepdims=True) + eps * q.sum(-1, keepdims=True)
    return A / D, D


def _as_they_are(c: Call) -> Result:
    return step("amplify", lambda _, __, x, *___: x)(c)


def _scaled_features(change: Callable[[Array, float], Result]) -> Run:
    """Another factor on the rows that are projected, whatever the scale that is given."""

    def wrong(f: Function, x: Array, projection: Array, **options: Any) -> Result:
        scale = options.pop("scale", None)
        now = x.shape[-1] ** -0.25 if scale is None else scale
        return f(x, projection, **options, scale=change(x.shape[-1], now))

    return _phi(wrong)


def _normaliser(wrong: Callable[[Array, Array], Result]) -> Run:
    """``wrong(A, D)`` in place of a map A and the sums D that its rows are over."""

    def linear(_: Call, __: object, phi_q: Array, phi_k: Array, v: Array) -> Result:
        A = phi_q @ np.swapaxes(phi_k, -1, -2)
        D = A.sum(-1, keepdims=True)
        return wrong(A / D, D)[0] @ v

    def run(c: Call) -> Result:
        if not hasattr(importlib.import_module(f"nlattn.oracle.{find(c.op).stem}"), "_weights"):
            return step("linear_attention", linear)(c)
        return step("_weights", lambda _, f, *args: wrong(*f(*args)))(c)

    return run


def _undivided(A: Array, D: Array) -> tuple[Array, Array]:
    return A * D, D


def _over_columns(A: Array, D: Array) -> tuple[Array, Array]:
    return A * D / (A * D).sum(-2, keepdims=True), D


def _amplified(side: str) -> Run:
    """Only queries or only keys amplified; the other are unit vectors."""

    def wrong(
        c: Call, f: Function, x: Array, amplification: Any = 6.0, floor: float = 5e-5
    ) -> Result:
        own = np.array_equal(np.asarray(x.real), np.asarray(c[side].real))
        return f(x, amplification if own else 1.0, floor)

    return step("amplify", wrong)


def _floor_under_the_root(
    _: Call, __: Function, x: Array, amplification: Any = 6.0, floor: float = 5e-5
) -> Any:
    if amplification is None:
        raise ValueError
    return amplification**0.5 * x / np.sqrt((x * x).sum(-1, keepdims=True) + floor)


def _amplification(c: Call) -> float:
    return float(c.get("amplification", 6.0))


def _linear_scores(c: Call) -> Result:
    """Dense softmax attention in place of a linear one."""
    mask = c.get("mask")
    return attention(c["q"], c["k"], c["v"], mask=None if mask is None else mask[..., None, :])


VARIANTS = (
    Variant(
        "with scores of 0 for masked keys in the normaliser",
        _EFFICIENT,
        needs(
            "mask",
            _softmaxed(
                lambda q, k, Q, K: (
                    Q,
                    softmax(np.where((K == 0).all(-1, keepdims=True), 0, k), -2) * (K != 0),
                )
            ),
        ),
    ),
    Variant(
        "with the softmax of queries over positions",
        _EFFICIENT,
        _softmaxed(lambda q, k, Q, K: (softmax(q, -2), K)),
    ),
    Variant(
        "with the softmax of keys over channels",
        _EFFICIENT,
        _softmaxed(lambda q, k, Q, K: (Q, softmax(k, -1))),
    ),
    Variant(
        "with both softmaxes along the other axis",
        _EFFICIENT,
        _softmaxed(lambda q, k, Q, K: (softmax(q, -2), softmax(k, -1))),
    ),
    Variant("without the softmax of queries", _EFFICIENT, _softmaxed(lambda q, k, Q, K: (q, K))),
    Variant("without the softmax of keys", _EFFICIENT, _softmaxed(lambda q, k, Q, K: (Q, k))),
    Variant(
        "with the softmax of keys over positions and channels together",
        _EFFICIENT,
        _softmaxed(lambda q, k, Q, K: (Q, softmax(k.reshape(*k.shape[:-2], -1)).reshape(k.shape))),
    ),
    Variant(
        "with one more scale of 1/sqrt(d)",
        (*_EFFICIENT, *_DIVIDED),
        _times(lambda c: _d(c) ** -0.5),
    ),
    Variant(
        "with queries and keys scaled by d^-1/4 before their softmaxes",
        _EFFICIENT,
        lambda c: c.given(q=c["q"] * _d(c) ** -0.25, k=c["k"] * _d(c) ** -0.25)(),
    ),
    Variant(
        "with the mask applied after the softmax of keys",
        _EFFICIENT,
        needs("mask", _softmaxed(lambda q, k, Q, K: (Q, np.where(K == 0, 0, softmax(k, -2))))),
    ),
    Variant(
        "without the mask", (*_EFFICIENT, "nearest"), lambda c: c.given(mask=c["mask"] | True)()
    ),
    Variant("with the mask inverted", _EFFICIENT, lambda c: c.given(mask=~c["mask"])()),
    Variant(
        "with softmax attention in its place", (*_EFFICIENT, *_DIVIDED, *_FEATURES), _linear_scores
    ),
    Variant(
        "not divided by the number of keys", (*_EFFICIENT, *_DIVIDED, *_PLAIN), _counted(_kept)
    ),
    Variant(
        "divided by the number of queries, not of keys",
        (*_EFFICIENT, *_DIVIDED, *_PLAIN),
        _counted(lambda c: _kept(c) / _n(c)),
    ),
    Variant(
        "divided by all keys, masked ones too",
        _EFFICIENT,
        needs("mask", _counted(lambda c: _kept(c) / _m(c))),
    ),
    Variant(
        "divided by the channels, not by the keys",
        (*_EFFICIENT, *_DIVIDED, *_PLAIN),
        _counted(lambda c: _kept(c) / _d(c)),
    ),
    Variant(
        "divided by the root of the number of keys",
        (*_EFFICIENT, *_DIVIDED, *_PLAIN),
        _counted(lambda c: _kept(c) ** 0.5),
    ),
    Variant(
        "divided by the number of keys twice",
        (*_EFFICIENT, *_DIVIDED, *_PLAIN),
        _counted(lambda c: 1 / _kept(c)),
    ),
    Variant(
        "with a softmax in place of the division by m",
        _PLAIN,
        step(
            "weights",
            lambda _, f, s, pairwise: softmax(
                s if pairwise != "concatenation" else np.where(s.real > 0, s, 0)
            ),
        ),
    ),
    Variant(
        "without the relu",
        _PLAIN,
        needs("weight", step("weights", lambda _, f, s, pairwise: s / s.shape[-1])),
    ),
    Variant(
        "with the halves of the weight swapped",
        _PLAIN,
        lambda c: c.given(weight=np.roll(c["weight"], _d(c)))(),
    ),
    Variant("with eps outside the factor 1/sqrt(r)", _FEATURES, _phi(_outside)),
    Variant("without eps (in the exponent it cancels, too)", _FEATURES, option(eps=1e-300)),
    Variant(
        "with the maximum of each key, not of all keys",
        _FAVOR,
        _phi(lambda f, x, p, **o: f(x, p, **{**o, "role": "query"})),
    ),
    Variant("without the factor d^-1/4", _FEATURES, _scaled_features(lambda d, now: 1.0)),
    Variant("with the factor d^-1/4", _ENLA, _scaled_features(lambda d, now: d**-0.25)),
    Variant(
        "with the factor d^-1/2 in place of d^-1/4", _FAVOR, _scaled_features(lambda d, now: now**2)
    ),
    Variant("without the half square of the length", _FEATURES, _phi(_without_square)),
    Variant("with the whole square of the length, not its half", _FEATURES, _phi(_twice_square)),
    Variant("without the normaliser", _FEATURES, _normaliser(_undivided)),
    Variant("normalised over queries", _FEATURES, _normaliser(_over_columns)),
    Variant(
        "without causality",
        _FAVOR,
        lambda c: c.given(causal=None if c["causal"] else 0, stabilizer="none")(),
    ),
    Variant("causal by one key too few", _FAVOR, needs("causal", step("_weights", _strict))),
    Variant("without denominator_eps", _FAVOR, option(denominator_eps=0.0)),
    Variant(
        "without the 1e-3 of the relu",
        _FAVOR,
        needs("kernel", step("relu_features", lambda _, f, *a, **o: f(*a, **o) - 1e-3)),
    ),
    Variant("with a relu in place of the exponential", _FAVOR, option(kernel="relu")),
    Variant(
        "with the exponential in place of the relu",
        _FAVOR,
        needs("kernel", option(kernel="softmax")),
    ),
    Variant(
        "with projections of length 1",
        _FEATURES,
        lambda c: c.given(projection=unit(c["projection"]))(),
    ),
    Variant("with amplified queries only", _ENLA, _amplified("q")),
    Variant("with amplified keys only", _ENLA, _amplified("k")),
    Variant(
        "with the amplification, not its root",
        (*_ENLA, *_LOSS),
        option(amplification=lambda c: _amplification(c) ** 2),
    ),
    Variant("without the amplification", (*_ENLA, *_LOSS), option(amplification=1.0)),
    Variant(
        "with vectors as they are, neither normalised nor amplified", (*_ENLA, *_LOSS), _as_they_are
    ),
    Variant(
        "with the floor added to squared lengths, not their least",
        _ENLA,
        step("amplify", _floor_under_the_root),
    ),
    Variant(
        "with lengths over positions, not over channels",
        (*_ENLA, *_LOSS),
        step("_length", lambda _, f, x: np.sqrt((x * x).sum(-2, keepdims=True))),
    ),
)
