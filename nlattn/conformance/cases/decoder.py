"""Arrays that stand beside those of attention in a decoder: lengths, offsets, sinks, slopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from nlattn._types import Array
from nlattn.conformance.table import OpSpec
from nlattn.conformance.table.recipe import Recipe

MadeArrays = dict[str, Array]
Extra: TypeAlias = Callable[[np.random.Generator, OpSpec, Recipe, MadeArrays, str], MadeArrays]
"""Arrays beside those of the table, from these, and from the detail behind a colon."""


def _of_batch(arrays: MadeArrays, *numbers: int) -> Array:
    """Numbers for each sequence, which its heads share."""
    lead = arrays["q"].shape[:-2]
    shape = (*lead[:-1], 1) if len(lead) > 1 else lead
    return np.resize(np.array(numbers, np.int64), shape)


def _key_lengths(_: object, __: object, ___: object, arrays: MadeArrays, detail: str) -> MadeArrays:
    """Some of the keys, none, all, few; or whole pages of 16."""
    m = arrays["k"].shape[-2]
    if detail == "pages":
        return {"key_lengths": _of_batch(arrays, *(min(p, m) for p in (32, 16, 64, 48)))}
    return {"key_lengths": _of_batch(arrays, m - m // 3, 0, m, m // 4)}


def _query_lengths(_: object, __: object, ___: object, arrays: MadeArrays, ____: str) -> MadeArrays:
    n = arrays["q"].shape[-2]
    return {"query_lengths": _of_batch(arrays, n - n // 3, n, 0, n // 2)}


def _causal_offset(_: object, __: object, ___: object, arrays: MadeArrays, ____: str) -> MadeArrays:
    return {"causal_offset": _of_batch(arrays, 4, -2, 0)}


def _sinks(
    rng: np.random.Generator, _: object, __: object, arrays: MadeArrays, ___: str
) -> MadeArrays:
    return {"sinks": rng.standard_normal(arrays["q"].shape[-3:-2])}


def _alibi(_: object, __: object, ___: object, arrays: MadeArrays, ____: str) -> MadeArrays:
    """Powers of two."""
    heads = arrays["q"].shape[-3:-2]
    return {"alibi": 2.0 ** -(1 + np.arange(int(np.prod(heads)))).reshape(heads)}


def _dropout_mask(
    rng: np.random.Generator, _: object, __: object, arrays: MadeArrays, ___: str
) -> MadeArrays:
    shape = (*arrays["q"].shape[:-1], arrays["k"].shape[-2])
    return {"dropout_mask": rng.random(shape) < 0.8}


def _edge_dropout(
    rng: np.random.Generator, _: object, __: object, arrays: MadeArrays, ___: str
) -> MadeArrays:
    """Which edges of a support are kept."""
    return {"dropout_mask": rng.random(len(arrays["support.indices"])) < 0.8}


def _edge_bias(
    rng: np.random.Generator, _: object, __: object, arrays: MadeArrays, detail: str
) -> MadeArrays:
    """Of each edge of a support; or the logarithm of how often a key counts, most often once."""
    size = arrays["support.indices"].shape
    if detail == "counts":
        return {"bias": np.log(np.maximum(rng.integers(-2, 5, size), 1))}
    return {"bias": rng.standard_normal(size)}


def _packed(_: object, __: object, ___: object, arrays: MadeArrays, detail: str) -> MadeArrays:
    """Four sequences, one without queries, one without keys, and a bit of padding; keys alike."""
    n, m = arrays["q"].shape[-2], arrays["k"].shape[-2]
    starts = [0, n // 3, n // 3, n // 3 + n // 4, n - n // 8]
    ends = [0, m // 3, m // 2, m // 2, m - m // 8]
    if detail == "alike":
        return {"cu_seqlens_q": np.minimum(starts, m)}  # they are the keys' starts, too
    return {"cu_seqlens_q": np.array(starts), "cu_seqlens_k": np.array(ends)}


TABLES = ("table", "beyond", "named twice")
"""Supports that are also given as a table of keys, and what stands where a row has no more."""


def key_table(rng: np.random.Generator, chosen: Array, detail: str) -> Array:
    """Keys (..., n, t) of `chosen` pairs (..., n, m), in any order.

    -1 stands for none, "beyond" also numbers from m on; or some keys are "named twice".
    """
    m, counts = chosen.shape[-1], chosen.sum(-1)
    width = int(counts.max(initial=0)) + 2
    table = np.full((*counts.shape, width), -1, np.int32)
    for row in np.ndindex(counts.shape):
        keys, free = np.flatnonzero(chosen[row]), width - counts[row]
        none = np.full(free, -1)
        if detail == "beyond":
            none = rng.choice([-1, m, m + 1, 3 * m], free)
        if detail == "named twice" and len(keys):
            none[: free // 2 + 1] = rng.choice(keys, free // 2 + 1)
        table[row] = rng.permutation(np.concatenate([keys, none]))
    return table


EXTRAS: dict[str, Extra] = {
    "key_lengths": _key_lengths, "query_lengths": _query_lengths, "causal_offset": _causal_offset,
    "sinks": _sinks, "alibi": _alibi, "dropout_mask": _dropout_mask,
    "edge_bias": _edge_bias, "edge_dropout": _edge_dropout,
    "packed": _packed,
}  # fmt: skip
