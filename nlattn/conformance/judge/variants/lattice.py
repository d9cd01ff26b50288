"""The filter on a permutohedral lattice gone wrong, and attention by signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, after, option, softmax, step

_LATTICE, _SIGNS = ("lattice",), ("signs",)
_CHOSEN = [f"{name}_simplices__{part}" for name in "qk" for part in ("rem0", "rank")]


def _normalised(c: Call) -> bool:
    return bool(c.get("normalize", True))


def _if(wanted: Callable[[Call], bool], run: Run) -> Run:
    """A variant of the calls that are wanted."""

    def only(c: Call) -> Result:
        if not wanted(c):
            raise ValueError
        return run(c)

    return only


def _stretched(factor: float) -> Run:
    """Features times a factor, in simplices of their own."""

    def run(c: Call) -> Result:
        arrays = {name: factor * c[name] for name in "qk"}
        return c.given(**arrays, **dict.fromkeys(_CHOSEN))()

    return run


def _exact(c: Call) -> Result:
    """Gaussian weights of every pair."""
    if c.get("weight", "gaussian") == "softmax":
        raise ValueError
    q, k, v = c["q"], c["k"], c["v"]
    s = -((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1) / 2
    return (softmax(s) if _normalised(c) else np.exp(s)) @ v


def _corner(_: Call, f: Function, *args: object) -> Result:
    """All of a point's weight on the vertex that is nearest to it."""
    b = f(*args)
    first = np.argmax(b.real, axis=-1)[..., None]
    one = np.zeros_like(b)
    np.put_along_axis(one, first, np.ones(first.shape), -1)
    return one


def _wide_blur(_: Call, __: object, z: Array, lattice: Any, order: Any) -> Result:
    for j in order:
        z = z + z[lattice.above[j]] + z[lattice.below[j]]
    return z


def _one_sided(_: Call, __: object, z: Array, lattice: Any, order: Array) -> Result:
    for j in order:
        z = z + z[lattice.above[j]]
    return z


def _in_place(order_of: Callable[[Any], Array]) -> Run:
    """Points one after the other, which read neighbours that this axis has changed already."""

    def wrong(_: Call, __: object, z: Array, lattice: Any, order: Array) -> Result:
        z, points = z.copy(), order_of(lattice)
        for j in order:
            for p in points:
                z[p] = z[p] + (z[lattice.above[j, p]] + z[lattice.below[j, p]]) / 2
        return z

    return step("blur", wrong)


def _inserted(lattice: Any) -> Array:
    """Points in the order in which keys, then queries, name them; others after these."""
    M = len(lattice.points)
    named = (lattice.of_keys, lattice.of_queries, np.arange(M))
    every = np.concatenate([x.ravel() for x in named])
    every = every[every < M]
    return np.asarray(every[np.sort(np.unique(every, return_index=True)[1])])


def _one_lattice(c: Call) -> Result:
    """Points of all heads on one lattice: values stay apart, but the blur crosses them."""
    q, k, v = c["q"], c["k"], c["v"]
    lead = q.shape[:-2]
    heads, (m, e) = int(np.prod(lead)), v.shape[-2:]
    if heads < 2 or c.get("weight", "gaussian") == "softmax":
        raise ValueError
    x = np.concatenate([v, np.ones_like(v[..., :1])], -1).reshape(heads, m, e + 1)
    values = np.zeros((heads, m, heads, e + 1), x.dtype)
    for b in range(heads):
        values[b, :, b] = x[b]
    arrays = {n: y.reshape(-1, y.shape[-1]) for n, y in (("q", q), ("k", k))}
    for name in _CHOSEN:
        part = name.replace("__", ".")
        if part in c.arrays:
            arrays[name] = c[part].reshape(-1, c[part].shape[-1])
    F = c.given(**arrays, v=values.reshape(heads * m, -1), normalize=False)()
    F = F.reshape(heads, -1, heads, e + 1)
    F = np.stack([F[b, :, b] for b in range(heads)]).reshape(*lead, -1, e + 1)
    if not _normalised(c):
        return F[..., :-1]
    Z = F[..., -1:]
    return np.where(Z == 0, 0, F[..., :-1] / np.where(Z == 0, 1, Z))


def _alpha(c: Call) -> float:
    return 1 + 0.5 ** int(c["q"].shape[-1])


def _ranked(choose: Callable[[Array, int], Array]) -> Run:
    """Other keys of the same number."""
    return step("nearest", lambda _, __, s, keys: np.sort(choose(np.asarray(s.real), keys), -1))


def _from_numbers(c: Call, chosen_by_signs: bool) -> Result:
    """Scores of the numbers themselves, among the keys that signs or they choose."""
    q, k = c["q"], c["k"]
    s = q @ np.swapaxes(k, -1, -2)
    signs = np.where(q.real < 0, -1, 1) @ np.swapaxes(np.where(k.real < 0, -1, 1), -1, -2)
    by = signs if chosen_by_signs else s.real
    index = np.argsort(-by, axis=-1, kind="stable")[..., : c.get("keys", 32)]
    kept = np.zeros(s.shape, bool)
    np.put_along_axis(kept, index, True, -1)
    scale = c.scale
    return softmax(np.where(kept, scale * s, -np.inf)) @ c["v"]


def _over_all(c: Call) -> Result:
    """Weights over the sum of all keys' exponentials, not of those that are kept."""
    _, lse = c.given(return_lse=True)()
    _, whole = c.given(return_lse=True, keys=c["k"].shape[-2])()
    return c() * np.exp(lse - whole)[..., None]


def _signed(wrong: Callable[[Array], Array]) -> Run:
    """Another sign, of which no perturbation passes."""
    return step("signs", lambda _, __, x, *rest: wrong(x.real).astype(x.dtype))


def _scaled(factor: Callable[[Call], float]) -> Run:
    return option(scale=lambda c: factor(c) * c.scale)


VARIANTS = (
    Variant("with exact Gaussian weights, not the lattice's", _LATTICE, _exact),
    Variant("without the normaliser", _LATTICE, _if(_normalised, option(normalize=False))),
    Variant(
        "divided by the filtered ones",
        _LATTICE,
        _if(lambda c: not _normalised(c), option(normalize=True)),
    ),
    Variant(
        "without alpha",
        _LATTICE,
        _if(lambda c: not _normalised(c), after(lambda c, out: _alpha(c) * out)),
    ),
    Variant("without the blur", _LATTICE, step("blur", lambda _, f, z, lattice, order: z)),
    Variant(
        "with the axes blurred in reverse order",
        _LATTICE,
        step("blur", lambda _, f, z, lattice, order: f(z, lattice, list(order)[::-1])),
    ),
    Variant("with a blur of 1, 1, 1", _LATTICE, step("blur", _wide_blur)),
    Variant("with a blur to one side alone", _LATTICE, step("blur", _one_sided)),
    Variant(
        "with the last axis left out of the blur",
        _LATTICE,
        step("blur", lambda _, f, z, lattice, order: f(z, lattice, sorted(order)[:-1])),
    ),
    *(
        Variant("with axes blurred in place, from what is blurred already", _LATTICE, _in_place(of))
        for of in (_inserted, lambda lattice: np.arange(len(lattice.points)))
    ),
    Variant("without the vertices of queries", _LATTICE, option(query_vertices=False)),
    Variant("with the vertices of queries", _LATTICE, option(query_vertices=True)),
    Variant("on the complete lattice", _LATTICE, option(lattice="complete")),
    Variant(
        "on the published lattice, not the complete one", _LATTICE, option(lattice="published")
    ),
    Variant("with all weight on the nearest vertex", _LATTICE, step("barycentric", _corner)),
    Variant(
        "with the vertices' weights in the opposite order",
        _LATTICE,
        step("barycentric", lambda _, f, *args: f(*args)[..., ::-1]),
    ),
    Variant(
        "with the first vertex's weight last",
        _LATTICE,
        step(
            "barycentric",
            lambda _, f, *args: np.concatenate([f(*args)[..., 1:], f(*args)[..., :1]], -1),
        ),
    ),
    Variant("with weights of exp(-|q - k|^2), too narrow", _LATTICE, _stretched(2**0.5)),
    Variant("with weights of exp(-|q - k|^2 / 4), too wide", _LATTICE, _stretched(0.5**0.5)),
    Variant("without sqrt(2/3) in the embedding", _LATTICE, _stretched(1.5**0.5)),
    Variant("with all heads on one lattice", _LATTICE, _one_lattice),
    Variant(
        "with Gaussian weights, not the softmax's",
        _LATTICE,
        _if(
            lambda c: c.get("weight") == "softmax",
            lambda c: c.given(weight="gaussian", scale=None, **dict.fromkeys(_CHOSEN))(),
        ),
    ),
    Variant("with scores of the numbers, not of signs", _SIGNS, lambda c: _from_numbers(c, False)),
    Variant(
        "with keys chosen by signs, but scores of the numbers",
        _SIGNS,
        lambda c: _from_numbers(c, True),
    ),
    Variant("with all keys", _SIGNS, option(keys=lambda c: c["k"].shape[-2])),
    Variant("with a key fewer", _SIGNS, option(keys=lambda c: c["keys"] - 1)),
    Variant("with a key more", _SIGNS, option(keys=lambda c: c["keys"] + 1)),
    Variant(
        "with the highest of equal keys, not the lowest",
        _SIGNS,
        _ranked(lambda s, keys: np.argsort(s, axis=-1, kind="stable")[..., -keys:]),
    ),
    Variant(
        "with the farthest keys",
        _SIGNS,
        _ranked(lambda s, keys: np.argsort(s, axis=-1, kind="stable")[..., :keys]),
    ),
    Variant(
        "with the first keys",
        _SIGNS,
        _ranked(
            lambda s, keys: np.broadcast_to(
                np.arange(min(keys, s.shape[-1])), (*s.shape[:-1], min(keys, s.shape[-1]))
            )
        ),
    ),
    Variant("with scores that count agreeing signs: half of ours", _SIGNS, _scaled(lambda c: 0.5)),
    Variant("with a scale of 1", _SIGNS, option(scale=1.0)),
    Variant("with a scale of 1/d", _SIGNS, option(scale=lambda c: 1 / c["q"].shape[-1])),
    Variant("with equal weights on the nearest keys", _SIGNS, option(scale=1e-30)),
    Variant("with weights over the sum of all keys'", _SIGNS, _over_all),
    Variant("with the sign of 0 taken for -1", _SIGNS, _signed(lambda x: np.where(x > 0, 1, -1))),
    Variant("with the sign of 0 taken for 0", _SIGNS, _signed(np.sign)),
    Variant(
        "with the sign of -0 taken for -1",
        _SIGNS,
        _signed(lambda x: np.where(np.signbit(x), -1, 1)),
    ),
    Variant("with the gradient clipped", _SIGNS, option(straight_through="clip")),
    Variant("with the gradient not clipped", _SIGNS, option(straight_through="identity")),
    Variant("without a gradient through the signs", _SIGNS, option(straight_through="none")),
)
