"""Scores and selections of keys, and attention on a support, gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

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

_LEVERAGE, _LEWIS, _BOUNDS = ("leverage",), ("reweighted",), ("two ends",)
_ONE, _SET, _HEAVY = ("one key",), ("sets of keys",), ("large entries",)
_SUPPORT, _LEV = ("support",), ("chosen keys",)
_NEAREST, _BANDWIDTH = ("nearest",), ("nearest", "gaussian weights")


def _worst(c: Call) -> Result:
    """Smallest products instead of largest."""
    if c.get("score", "dot") == "neg_l2":
        raise ValueError
    return -c.given(q=-c["q"])()


def _rooted(c: Call) -> Result:
    return c.given(bandwidth=c["bandwidth"] ** 0.5)()


def _leverage(c: Call) -> Result:
    return Call("leverage_scores", {"k": c["k"]}, {})()


def _centred(k: Array) -> Array:
    return np.asarray(k - k.mean(-2, keepdims=True))


def _ridged(c: Call) -> Result:
    """Keys with as many rows more, of length 1 along each axis: a ridge of 1."""
    k = c["k"]
    d = k.shape[-1]
    more = np.broadcast_to(np.eye(d), (*k.shape[:-2], d, d))
    return c.given(k=np.concatenate([k, more], -2))()[..., : k.shape[-2]]


def _truncated(c: Call) -> Result:
    """Keys less their least singular direction."""
    U = np.linalg.svd(c["k"], full_matrices=False)[0]
    return (U[..., :-1] ** 2).sum(-1)


def _p(c: Call) -> float:
    return float(c.get("p", 2.0))


def _lse_of_all(c: Call) -> Result:
    every = np.broadcast_to(np.arange(c["k"].shape[-2]), (*c["index"].shape[:-1], c["k"].shape[-2]))
    return c()[0], c.given(index=every.copy(), return_lse=True)()[1]


def _sides(change: Callable[[Call, Array, Array], Result]) -> Run:
    return lambda c: change(c, *c())


def _weights(change: Callable[[Call, Array], Array]) -> Run:
    """``change(call, A)`` in place of the whole map, before entries below eps are dropped."""

    def wrong(c: Call, f: Function, *args: object, **options: object) -> Result:
        A, lse = f(*args, **options)
        return change(c, A), lse

    return step("polynomial_attention", wrong)


def _whole(c: Call) -> Result:
    return c.given(eps=0.0)()


def _cut(c: Call, A: Array) -> Array:
    return np.where(c["eps"] > A, 0, A)


def _over_kept(c: Call) -> Result:
    A = c()
    total = A.sum(-1, keepdims=True)
    return A / np.where(total == 0, 1, total)


def _rows(change: Callable[[list[Array], int], list[Array]]) -> Run:
    """Other keys in the rows of a support, ``change(rows, keys)``."""

    def run(c: Call) -> Result:
        indptr, indices = c["support.indptr"], c["support.indices"]
        rows = [indices[a:b] for a, b in pairwise(indptr)]
        rows = change(rows, int(c["support.shape"][-1]))
        pointers = np.cumsum([0, *(len(row) for row in rows)])
        joined = np.concatenate([*rows, np.zeros(0, np.int32)]).astype(np.int32)
        return c.given(support__indptr=pointers, support__indices=joined)()

    return run


def _probabilities(wrong: Function) -> Run:
    """``wrong(s, P, weight)`` in place of the weights of one query, from their scores."""

    def instead(
        _: Call, f: Function, s: Array, weight: str, power: float, *sink: Array | None
    ) -> Result:
        P, lse = f(s, weight, power, *sink)
        return wrong(s, P, weight), lse

    return step("probabilities", instead, "sparse")


def _of_weight(name: str, run: Run) -> Run:
    def only(c: Call) -> Result:
        if c.get("weight", "softmax") != name:
            raise ValueError
        return run(c)

    return only


def _index(change: Callable[[Array, int], Array]) -> Run:
    """Other chosen keys."""
    return lambda c: c.given(index=change(c["index"], c["k"].shape[-2]))()


def _chosen_by(select: str) -> Run:
    return lambda c: c.given(index=None, keys=int(c["index"].shape[-1]), select=select)()


def _all(index: Array, m: int) -> Array:
    return np.broadcast_to(np.arange(m), (*index.shape[:-1], m)).copy()


def _softmaxed(c: Call, A: Array) -> Array:
    s = c["q"] @ np.swapaxes(c["k"], -1, -2)
    return softmax(np.where(A > 0, s, -np.inf))


def _before(c: Call) -> Result:
    """Row i of the causal map on the keys before i alone."""
    out = np.zeros((c["q"].shape[-2], c["k"].shape[-2]))
    out[1:] = c.given(q=c["q"][1:])()
    return out


def _over_all(c: Call) -> Result:
    """Rows of causal weights over the sum of all keys, later ones too."""
    A = c.given(causal=False, eps=0.0)()
    return _cut(c, np.where(np.tri(*A.shape[-2:]) > 0, A, 0))


def _from_roots(s: Array, _: Array, __: str) -> Array:
    """Gaussian weights of ``-|q - k| / h`` in place of its square."""
    return softmax(-np.sqrt(-s))


def _first_values(c: Call) -> Result:
    v = c["v"].copy()
    index = np.broadcast_to(c["index"], (*v.shape[:-2], c["index"].shape[-1]))[..., None]
    np.put_along_axis(v, index, c["v"][..., : index.shape[-2], :].copy(), -2)
    return c.given(v=v)()


VARIANTS = (
    Variant("with the root of the scores", _LEVERAGE, after(lambda c, out: np.sqrt(out))),
    Variant(
        "with scores that sum to 1",
        (*_LEVERAGE, *_LEWIS),
        after(lambda c, out: out / out.sum(-1, keepdims=True)),
    ),
    Variant(
        "with squared lengths in place of leverage", _LEVERAGE, lambda c: (c["k"] ** 2).sum(-1)
    ),
    Variant("with keys less their mean", _LEVERAGE, lambda c: c.given(k=_centred(c["k"]))()),
    Variant(
        "with keys of length 1",
        (*_LEVERAGE, *_LEWIS, *_BOUNDS, *_SET),
        lambda c: c.given(k=unit(c["k"]))(),
    ),
    Variant("with a ridge of 1", _LEVERAGE, _ridged),
    Variant("without the least direction", _LEVERAGE, _truncated),
    Variant(
        "with a column of ones beside the keys",
        _LEVERAGE,
        lambda c: c.given(k=np.concatenate([c["k"], np.ones_like(c["k"][..., :1])], -1))(),
    ),
    Variant("with leverage, whatever p is", _LEWIS, _leverage),
    Variant("after three steps of the fixed point", _LEWIS, option(steps=3)),
    Variant("with 1/p in place of p", (*_LEWIS, *_BOUNDS), option(p=lambda c: 1 / _p(c))),
    Variant("with the root of the weights", _LEWIS, after(lambda c, out: np.sqrt(out))),
    Variant("with the weights to the power 2/p", _LEWIS, after(lambda c, out: out ** (2 / _p(c)))),
    Variant("with p = 2", (*_BOUNDS, *_ONE, *_SET, *_HEAVY), option(p=2.0)),
    Variant("with p = 1", _HEAVY, option(p=1.0)),
    Variant("with reciprocals", _ONE, _sides(lambda c, low, high: (1 / low, 1 / high))),
    Variant("of the key after", _ONE, option(i=lambda c: c["i"] + 1)),
    Variant("of the key before", _ONE, option(i=lambda c: c["i"] - 1)),
    Variant(
        "to the power 1/p",
        _ONE,
        _sides(lambda c, low, high: (low ** (1 / _p(c)), high ** (1 / _p(c)))),
    ),
    Variant("inverted: the keys that are not in it", _SET, after(lambda c, out: ~np.asarray(out))),
    Variant("with eps squared", (*_SET, *_HEAVY), option(eps=lambda c: c["eps"] ** 2)),
    Variant("with the root of eps", (*_SET, *_HEAVY), option(eps=lambda c: c["eps"] ** 0.5)),
    Variant("with keys strictly above eps", _SET, option(eps=lambda c: c["eps"] * (1 + 1e-9))),
    Variant(
        "with the keys of lower bounds above eps",
        _SET,
        lambda c: (
            Call("sensitivity_bounds", {"k": c["k"]}, {"p": _p(c)})()[0] >= c["eps"] * (1 - 1e-12)
        ),
    ),
    Variant(
        "with squared lengths in place of leverage",
        _SET,
        lambda c: (c["k"] ** 2).sum(-1) >= c["eps"],
    ),
    Variant("with all keys", _SET, after(lambda c, out: np.ones_like(out))),
    Variant(
        "with scores relative to the largest",
        _SET,
        lambda c: _leverage(c) >= c["eps"] * _leverage(c).max(-1, keepdims=True),
    ),
    Variant("with all entries, small ones too", _HEAVY, _whole),
    Variant("with the small entries, not the large", _HEAVY, lambda c: _whole(c) - c()),
    Variant("with rows that sum to 1 over what is kept", _HEAVY, _over_kept),
    Variant(
        "normalised over queries",
        _HEAVY,
        lambda c: _cut(
            c,
            np.swapaxes(
                Call(
                    c.op, {"q": c["k"], "k": c["q"]}, {**c.options, "eps": 0.0, "causal": False}
                )(),
                -1,
                -2,
            ),
        ),
    ),
    Variant("with ones in place of weights", _HEAVY, after(lambda c, out: (out > 0).astype(float))),
    Variant(
        "without the normaliser",
        _HEAVY,
        lambda c: np.where(
            _whole(c) >= c["eps"], abs(c["q"] @ np.swapaxes(c["k"], -1, -2)) ** _p(c), 0
        ),
    ),
    Variant("with a softmax in place of powers", _HEAVY, _weights(_softmaxed)),
    Variant("without causality", _HEAVY, needs("causal", option(causal=False))),
    Variant("with the sum of all keys, later ones too", _HEAVY, needs("causal", _over_all)),
    Variant("with keys strictly before the query only", _HEAVY, needs("causal", _before)),
    Variant(
        "without the last key of each row",
        _SUPPORT,
        _rows(lambda rows, m: [row[:-1] for row in rows]),
    ),
    Variant(
        "without the first key of each row",
        _SUPPORT,
        _rows(lambda rows, m: [row[1:] for row in rows]),
    ),
    Variant(
        "with the keys of the next query's row",
        _SUPPORT,
        _rows(lambda rows, m: [*rows[1:], rows[0]]),
    ),
    Variant(
        "with the keys of the row before", _SUPPORT, _rows(lambda rows, m: [rows[-1], *rows[:-1]])
    ),
    Variant(
        "with all keys, whatever the support is",
        _SUPPORT,
        _rows(lambda rows, m: [np.arange(m)] * len(rows)),
    ),
    Variant(
        "with the keys that the support leaves out",
        _SUPPORT,
        _rows(lambda rows, m: [np.setdiff1d(np.arange(m), row) for row in rows]),
    ),
    Variant(
        "with every key index one too large",
        _SUPPORT,
        _rows(lambda rows, m: [(row + 1) % m for row in rows]),
    ),
    Variant(
        "with counts added to the scores, not their logarithms",
        _SUPPORT,
        option(bias=lambda c: np.exp(c["bias"])),
    ),
    Variant(
        "with softmax weights",
        _SUPPORT,
        lambda c: c.given(weight="softmax" if c["weight"] != "softmax" else 0)(),
    ),
    Variant(
        "with h in place of its square",
        _SUPPORT,
        _of_weight("gaussian", option(bandwidth=lambda c: c.get("bandwidth", 1.0) ** 0.5)),
    ),
    Variant(
        "with 2 h^2 in place of h^2",
        _SUPPORT,
        _of_weight("gaussian", option(bandwidth=lambda c: c.get("bandwidth", 1.0) * 2**0.5)),
    ),
    Variant("with a bandwidth of 1", _SUPPORT, _of_weight("gaussian", option(bandwidth=1.0))),
    Variant(
        "with distances, not their squares",
        _SUPPORT,
        _of_weight("gaussian", _probabilities(_from_roots)),
    ),
    Variant(
        "divided by the sum of weights, not by their number",
        _SUPPORT,
        _of_weight("dot", _probabilities(lambda s, P, weight: s / s.sum())),
    ),
    Variant(
        "without the normaliser",
        _SUPPORT,
        _probabilities(
            lambda s, P, weight: (
                np.exp(s)
                if weight in ("softmax", "gaussian")
                else P * (len(s) if weight == "dot" else (s**2).sum())
            )
        ),
    ),
    Variant(
        "divided by the number of all keys",
        _SUPPORT,
        _of_weight(
            "dot",
            lambda c: step(
                "probabilities",
                lambda _, f, s, w, p: (s / c["k"].shape[-2], f(s, w, p)[1]),
                "sparse",
            )(c),
        ),
    ),
    Variant("with a power of 1", _SUPPORT, _of_weight("abspow", option(power=1.0))),
    Variant(
        "with equal weights",
        (*_SUPPORT,),
        _probabilities(lambda s, P, weight: np.full(len(s), 1 / max(len(s), 1))),
    ),
    Variant("with a scale of 1", _SUPPORT, _of_weight("dot", option(scale=1.0))),
    Variant("with all keys, whatever the chosen ones are", _LEV, _index(_all)),
    Variant("with lse over all keys", _LEV, _lse_of_all),
    Variant("without the last of the chosen keys", _LEV, _index(lambda index, m: index[..., :-1])),
    Variant("without the first of the chosen keys", _LEV, _index(lambda index, m: index[..., 1:])),
    Variant("with every key index one too large", _LEV, _index(lambda index, m: (index + 1) % m)),
    Variant(
        "with the first keys in place of the chosen ones",
        _LEV,
        _index(lambda index, m: index * 0 + np.arange(index.shape[-1])),
    ),
    Variant("with values of the first keys, not of the chosen ones", _LEV, _first_values),
    Variant("with keys chosen by leverage", _LEV, _chosen_by("leverage")),
    Variant("with keys chosen by length", _LEV, _chosen_by("norm")),
    Variant(
        "with the first head's chosen keys for all",
        _LEV,
        lambda c: c.given(
            index=np.broadcast_to(
                c["index"].reshape(-1, c["index"].shape[-1])[0], c["index"].shape
            ).copy()
        )(),
    ),
    Variant("with the worst keys", _NEAREST, _worst),
    Variant("best key last", _NEAREST, after(lambda _, s: s[..., ::-1])),
    Variant("without the scale", _NEAREST, option(scale=1.0)),
    Variant("with a bandwidth that is not squared", _BANDWIDTH, needs("bandwidth", _rooted)),
    Variant(
        "with exp(-d^2 / (2 bandwidth^2))",
        _BANDWIDTH,
        needs("bandwidth", option(bandwidth=lambda c: c["bandwidth"] * 2**0.5)),
    ),
    Variant("with keys after the query", _NEAREST, needs("causal", option(causal=False))),
)
