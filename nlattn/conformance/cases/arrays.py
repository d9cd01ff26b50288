"""Arrays of cases: values of every kind, masks, supports, matches, and ways to lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array
from nlattn.conformance.case import scale_of
from nlattn.conformance.cases.decoder import EXTRAS as _OF_DECODERS
from nlattn.conformance.cases.decoder import TABLES, Extra, key_table
from nlattn.conformance.cases.hard import KINDS, harden
from nlattn.conformance.cases.parts import PART_VALUES, page_lengths, page_table, shares
from nlattn.conformance.table import OpSpec
from nlattn.conformance.table.recipe import Recipe

TOP = 1e4
"""Largest score of "large" values."""


def core(spec: OpSpec, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Shapes of the table's arrays, leading axes included."""
    size = dict(recipe.sizes)
    window = recipe.options.get("window", 1)
    both = window if isinstance(window, list) else [window, window]
    size |= zip(("kh", "kw"), both, strict=False)
    for axis in "HW":
        if f"{axis}k" in size:
            size[f"{axis}v"] = int(recipe.options.get("scale", 1) or 1) * size[f"{axis}k"]
    shapes = {name: tuple(size[x] for x in dims.split()) for name, dims in spec.arrays.items()}
    shapes = {n: s for n, s in shapes.items() if n not in spec.optional or n in recipe.extra}
    return {name: (*recipe.lead, *shape) for name, shape in shapes.items()}


def values(rng: np.random.Generator, spec: OpSpec, recipe: Recipe) -> dict[str, Array]:
    """Float64 arrays of the table's shapes, of the recipe's kind."""
    arrays = {n: rng.standard_normal(shape) for n, shape in core(spec, recipe).items()}
    how = _VALUES.get(recipe.values, _VALUES["normal"])
    arrays = {name: how(rng, name, x) for name, x in arrays.items()}
    if recipe.values == "large":
        _stretch(spec, recipe, arrays)
    if recipe.values == "empty NaN":
        arrays["outs"] = np.where(np.isneginf(arrays["lses"])[..., None], np.nan, arrays["outs"])
    for name in spec.cases.shares:
        arrays[name] = shares(rng, arrays[name], next(iter(arrays.values())))
        if recipe.values == "parts":
            arrays[name] *= rng.uniform(0.3, 0.9, (*arrays[name].shape[:-1], 1))
    if recipe.values in KINDS and "q" in arrays:
        grid = arrays["k"].shape[-len(spec.arrays["k"].split()) : -1]
        harden(recipe.values, arrays, scale_of(recipe.options, arrays["q"]), grid)
    for name in {"k", "v"} & {*arrays} if recipe.layout == "broadcast" else ():
        arrays[name] = lay(arrays[name], "broadcast").copy()
    for name in recipe.extra:
        kind, _, detail = name.partition(":")
        if kind == "groups":
            for shared in ("k", "v"):
                arrays[shared] = arrays[shared][..., : int(detail), :, :]
        if kind in ("one", "first") and recipe.lead:
            axis = len(recipe.lead) - 1 if kind == "one" else 0
            for shared in {*detail.split()} & {*arrays}:
                arrays[shared] = np.take(arrays[shared], [0], axis)
        if kind == "shared":
            for shared in {*detail.split()} & {*arrays}:
                arrays[shared] = arrays[shared][(0,) * len(recipe.lead)]
    for name, dims in spec.extras.items():
        if recipe.options.get("kernel") != "none":
            arrays[name] = rng.standard_normal([recipe.sizes[x] for x in dims.split()])
    return arrays


def _stretch(spec: OpSpec, recipe: Recipe, arrays: dict[str, Array]) -> None:
    """Queries so long that the largest score is +-1e4; where lengths do not count, as they are."""
    if not spec.cases.stretch or "k" not in arrays:
        return
    q, k = (arrays[n].reshape(-1, arrays[n].shape[-1]) for n in "qk")
    scale = scale_of(recipe.options, q) or 1.0
    most = abs(scale * q @ k.T).max(initial=0)
    most *= spec.cases.stretch
    arrays["q"] *= TOP / max(most, 1e-300)


def _low_rank(rng: np.random.Generator, _: str, x: Array) -> Array:
    """The last column is 0, the one before it a copy of the first; a row is 0."""
    x = x.copy()
    x[..., -1] = 0
    x[..., -2] = x[..., 0]
    x[..., rng.integers(x.shape[-2]), :] = 0
    return x


def _uneven(_: object, __: str, x: Array) -> Array:
    """The last column is nearly the first, so that a coarser rank leaves it out."""
    x = x.copy()
    x[..., -1] = x[..., 0] + x[..., -1] / 16
    return x


def _tight(_: object, __: str, x: Array) -> Array:
    """Unit vectors, the first of them once, the others several times."""
    m, d = x.shape[-2:]
    return np.broadcast_to(np.eye(d)[np.minimum(np.arange(m), d - 1)], x.shape).copy()


def _equal(_: object, name: str, x: Array) -> Array:
    """All keys are one key, all queries one query."""
    return x if name == "v" or not x.size else np.broadcast_to(x[..., :1, :], x.shape).copy()


def _some_nan(_: object, name: str, x: Array) -> Array:
    """A query and a channel of a value hold NaN."""
    x, row = x.copy(), {"q": x.shape[-2] // 3, "v": x.shape[-2] // 2}
    if name in row:
        x[..., row[name], 0] = np.nan
    return x


_VALUES: dict[str, Callable[[np.random.Generator, str, Array], Array]] = {
    "normal": lambda _, __, x: x,
    "large": lambda _, __, x: x,
    "nothing": lambda _, __, x: np.where(np.arange(len(x)).reshape(-1, 1, 1) > 0, x, 0),
    "zeros": lambda rng, name, x: x if name == "v" else _mostly_zero(rng, x),
    "small": lambda _, __, x: x * 2.0**-10,
    "ties": lambda rng, _, x: rng.integers(-1, 2, x.shape).astype(float),
    "equal": _equal,
    "constant": lambda _, __, x: np.full_like(x, 0.75),
    "subnormal": lambda _, __, x: x,
    "low rank": _low_rank,
    "uneven": _uneven,
    "hidden NaN": lambda _, __, x: x,
    "hidden NaN keys": lambda _, __, x: x,
    "NaN": _some_nan,
    "tight": _tight,
    "signed zeros": lambda rng, _, x: (
        rng.integers(-1, 2, x.shape) * np.where(rng.random(x.shape) < 0.5, -1.0, 1.0)
    ),
    "shifted": lambda _, name, x: x if name == "v" else x + 32,
    "huge": lambda _, __, x: x * 1e10,
    "parts": lambda _, __, x: x,
    "ones": lambda _, __, x: np.ones_like(x),
    "no keys": lambda _, name, x: 0 * x if name == "k" else x,
    "alone": lambda _, __, x: np.where(np.arange(x.shape[-2])[:, None] == 1, 4.0, 0.0) + 0 * x,
    "ones of v": lambda _, name, x: (
        np.broadcast_to(np.eye(*x.shape[-2:]), x.shape).copy() if name == "v" else x
    ),
    **PART_VALUES,
}


def _mostly_zero(rng: np.random.Generator, x: Array) -> Array:
    """Some rows are 0."""
    return np.where(rng.random(x.shape[:-1])[..., None] < 0.5, 0.0, x)


def extras(
    rng: np.random.Generator, spec: OpSpec, recipe: Recipe, arrays: dict[str, Array]
) -> dict[str, Array]:
    """Masks, biases, supports, matches and chosen keys of a recipe."""
    found: dict[str, Array] = {}
    for wanted in recipe.extra:
        name, _, detail = wanted.partition(":")
        maker = _EXTRAS.get(name)
        if maker is not None and name not in arrays:
            found |= maker(rng, spec, recipe, arrays | found, detail)
    return found


def _pairs(spec: OpSpec, arrays: dict[str, Array]) -> tuple[tuple[int, ...], int, int]:
    """Leading axes, number of queries and of keys; those of an image are its pixels."""
    if "image" in arrays:
        *lead, H, W, _ = arrays["image"].shape
        return tuple(lead), H * W, H * W
    dims = len(spec.arrays["q"].split()) - 1
    q, k = arrays["q"], arrays["k"]
    before = q.shape[: q.ndim - dims - 1]
    return before, int(np.prod(q.shape[len(before) : -1])), int(np.prod(k.shape[-dims - 1 : -1]))


def _apart(lead: tuple[int, ...], detail: str) -> tuple[int, ...]:
    """Leading axes of what heads share, all of them or those of a batch, or batches do."""
    return {"shared": (), "batch": (*lead[:-1], 1), "heads": lead[-1:]}.get(detail, lead)


def _mask(
    rng: np.random.Generator, spec: OpSpec, recipe: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    """Half of all pairs, a query has none; shared by heads, or by queries, or some keys hidden.

    Of blocks, half of these.
    """
    lead, n, m = _pairs(spec, arrays)
    if detail == "blocks":
        rows, columns = np.broadcast_to(recipe.options["mask_block"], 2)
        n, m = -(-n // rows), -(-m // columns)
    lead, n = (_apart(lead, detail), 1 if detail == "keys" else n)
    mask = rng.random((*lead, n, m)) < 0.5
    if n > 1:
        mask[..., n // 2, :] = False
    if detail == "columns":
        mask[..., rng.permutation(m)[: max(1, m // 3)]] = False
    return {"mask": mask}


def _key_mask(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    shape = arrays["k"].shape[-2:-1] if detail == "shared" else arrays["k"].shape[:-1]
    mask = rng.random(shape) < 0.6
    mask[..., 0] = True
    return {"mask": mask & (detail != "none")}


def _bias(
    rng: np.random.Generator, spec: OpSpec, _: Recipe, arrays: dict[str, Array], detail: str
) -> Any:
    """For every pair; shared by heads, or by heads and queries; or forbidding a third."""
    lead, n, m = _pairs(spec, arrays)
    lead, n = ((), 1) if detail.startswith("keys") else (_apart(lead, detail), n)
    bias = rng.standard_normal((*lead, n, m))
    if detail == "nothing":  # of the first query
        bias[..., :1, :] = -np.inf
    if detail in ("inf", "keys-inf"):
        bias = np.where(rng.random(bias.shape) < 0.3, -np.inf, bias)
    return {"bias": bias}


def _weight(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], ___: str
) -> dict[str, Array]:
    return {"weight": rng.standard_normal(2 * arrays["q"].shape[-1])}


def _support(
    rng: np.random.Generator, spec: OpSpec, _: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    """About a third of all keys; with gaps, some queries have none; of a hub, all have key 0."""
    lead, n, m = _pairs(spec, arrays)
    lead = () if detail == "shared" else lead
    chosen = rng.random((*lead, n, m)) < (1.0 if detail == "all" else 0.35)
    chosen[..., rng.integers(0, max(m, 1), max(m, 1) // 9 + 1)] = True
    if detail == "hub":
        chosen &= rng.random(chosen.shape) < 0.2
        chosen[..., 0] = True
    if detail == "gaps" or detail in TABLES:
        chosen[..., ::4, :] = False
    indptr = np.concatenate([[0], np.cumsum(chosen.sum(-1).reshape(-1))]).astype(np.int64)
    listed = {"support.index": key_table(rng, chosen, detail)} if detail in TABLES else {}
    return {
        **listed,
        "support.indptr": indptr,
        "support.indices": np.nonzero(chosen)[-1].astype(np.int32),
        "support.shape": np.array(chosen.shape, np.int64),
    }


def _field(
    rng: np.random.Generator, spec: OpSpec, _: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    """Up to three different keys of every query, in any order."""
    q, (__, ___, m) = arrays["q"], _pairs(spec, arrays)
    index = np.argsort(rng.random((*q.shape[:-1], m)), -1)[..., :3].astype(np.int32)
    if detail == "gaps":
        index[..., 1:] = np.where(rng.random(index[..., 1:].shape) < 0.5, -1, index[..., 1:])
        index[..., :2, :, :] = -1
    return {"field.index": index}


def _index(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    if detail == "own":
        return {}
    k = arrays["k"][(0,) * (arrays["k"].ndim - 2)] if detail == "shared" else arrays["k"]
    order = np.argsort(rng.random(k.shape[:-1]), -1)[..., : max(1, k.shape[-2] // 2)]
    return {"index": np.sort(order, -1).astype(np.int64)}


def _simplices(
    _: object, __: OpSpec, recipe: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    """The lattice simplices of queries and keys, unless the backend finds its own."""
    from nlattn.oracle.permutohedral import simplices

    found: dict[str, Array] = {}
    for name in "qk" if detail != "own" else "":
        x = arrays[name]
        scale = recipe.options.get("scale", x.shape[-1] ** -0.5)
        root = scale**0.5 if recipe.options.get("weight") == "softmax" else 1.0
        parts = zip(("rem0", "rank"), simplices(root * x), strict=True)
        found |= {f"{name}_simplices.{part}": y for part, y in parts}
    return found


def _weights(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], ___: str
) -> dict[str, Array]:
    """One for each key, positive."""
    return {"weights": rng.uniform(0.2, 2.0, arrays["k"].shape[:-1])}


def _hidden_keys(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], ___: str
) -> dict[str, Array]:
    """A part of the keys of a grid."""
    return {"key_mask": rng.random(arrays["k"].shape[:-1]) < 0.6}


def _grid_mask(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], ___: str
) -> dict[str, Array]:
    """Pairs of pixels, (..., Hq, Wq, Hk, Wk)."""
    shape = (*arrays["q"].shape[:-1], *arrays["k"].shape[-3:-1])
    return {"mask": rng.random(shape) < 0.6}


def _scores(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], detail: str
) -> dict[str, Array]:
    """What keys are chosen by; or few numbers, of which many are equal."""
    shape = arrays["k"].shape[:-1]
    ties = rng.integers(0, 3, shape).astype(float)
    return {"scores": ties if detail == "ties" else rng.standard_normal(shape)}


def _start(
    rng: np.random.Generator, _: OpSpec, __: Recipe, arrays: dict[str, Array], ___: str
) -> dict[str, Array]:
    """Any two keys of every query, the worst to begin with."""
    lead, n, m = arrays["q"].shape[:-2], arrays["q"].shape[-2], arrays["k"].shape[-2]
    return {"start.index": rng.integers(0, max(m, 1), (*lead, 1, n, 2)).astype(np.int32)}


_EXTRAS: dict[str, Extra] = {
    "hidden keys": _hidden_keys, "grid mask": _grid_mask, "scores": _scores, "start": _start,
    "mask": _mask, "key mask": _key_mask, "bias": _bias, "weight": _weight,
    "support": _support, "field": _field, "index": _index,
    "simplices": _simplices, "table": page_table, "page_lengths": page_lengths,
    "weights": _weights,
    **_OF_DECODERS,
}  # fmt: skip


def lay(x: Array, layout: str) -> Array:
    """The same numbers, lying otherwise in memory."""
    if layout == "strided":
        wider = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype) if x.ndim else x
        if x.ndim:
            wider[..., ::2] = x
            return wider[..., ::2]
    if layout == "reversed" and x.ndim:
        return np.flip(np.flip(x).copy())
    if layout == "heads-last" and x.ndim > 2:
        return np.swapaxes(np.swapaxes(x, -2, -3).copy(), -2, -3)
    if layout == "broadcast" and x.ndim > 2:
        return np.broadcast_to(x[(0,) * (x.ndim - 2)].copy(), x.shape)
    if layout == "Fortran" and x.ndim:
        return x.copy(order="F")
    x = np.ascontiguousarray(x).reshape(x.shape).copy()
    if layout == "read-only":
        x.flags.writeable = False
    return x


def layout_of(x: Array) -> str:
    """The name under which `lay` makes an array lie like this one."""
    if any(step < 0 for step in x.strides):
        return "reversed"
    if x.size and any(step == 0 < size - 1 for step, size in zip(x.strides, x.shape, strict=True)):
        return "broadcast"
    if not x.flags.writeable:
        return "read-only"
    if x.flags.c_contiguous:
        return "C"
    if x.ndim > 2 and np.swapaxes(x, -2, -3).flags.c_contiguous:
        return "heads-last"
    return "Fortran" if x.flags.f_contiguous else "strided"
