"""Sets of keys and large weights gone wrong: thresholds, prefixes, blocks; weights with signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, needs, several, step

_SET, _HEAVY, _SUPPORT = ("sets of keys",), ("large entries",), ("support",)
_MASKED = ("two softmaxes",)


def _of_all(c: Call) -> Result:
    """The set of all keys, for every prefix."""
    whole = np.asarray(c.given(causal=False)())
    return np.broadcast_to(whole[..., None, :], (*whole.shape, whole.shape[-1])).copy()


def _of_all_before(c: Call) -> Result:
    return np.tril(np.asarray(_of_all(c)))


def _in_blocks(size: int) -> Run:
    """Row sums over the keys up to the end of the query's block."""

    def run(c: Call) -> Result:
        q, k, p = c["q"], c["k"], float(c.get("p", 2.0))
        if q.shape[-2] <= 1 or not c["causal"]:
            raise ValueError
        powers = abs(q @ np.swapaxes(k, -1, -2)) ** p
        i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])
        total = np.where(j < (i // size + 1) * size, powers, 0).sum(-1, keepdims=True)
        A = np.where(j <= i, powers, 0) / np.where(total == 0, 1, total)
        return np.where(c["eps"] > A, 0, A)

    return run


def _kept(rule: Callable[[Call, Array], Any]) -> Run:
    """Other entries of the whole map."""

    def run(c: Call) -> Result:
        A = np.asarray(c.given(eps=0.0)())
        return np.where(rule(c, A), A, 0)

    return run


def _signed(c: Call) -> Result:
    """Powers that keep their sign, over the sum of their sizes."""
    if c["weight"] != "abspow":
        raise ValueError

    def wrong(_: Call, f: Function, s: Array, weight: str, power: float, *__: Any) -> Any:
        powers = np.sign(s.real) * abs(s) ** power
        return powers / abs(powers).sum(), f(s, weight, power)[1]

    return step("probabilities", wrong, "sparse")(c)


def _normaliser_held(c: Call) -> Result:
    """Weights over a sum that does not move."""

    def wrong(_: Call, f: Function, s: Array, weight: str, power: float, *__: Any) -> Any:
        P, lse = f(s, weight, power)
        if weight == "dot" or not s.size:
            raise ValueError
        steep = power / np.where(s.real == 0, 1, s.real) if weight == "abspow" else 1.0
        return P * (1 + 1j * (P.real * steep * s.imag).sum()), lse

    return step("probabilities", wrong, "sparse")(c)


def _of_the_first_head(c: Call) -> Result:
    """Rows of the first head's support, for all heads."""
    indptr, indices, shape = (c[f"support.{x}"] for x in ("indptr", "indices", "shape"))
    n, heads = int(shape[-2]), int(np.prod(shape[:-2]))
    if heads < 2:
        raise ValueError
    first = indptr[: n + 1]
    pointers = np.concatenate([first[:1], *(first[1:] + h * first[-1] for h in range(heads))])
    return c.given(
        support__indptr=pointers, support__indices=np.tile(indices[: first[-1]], heads)
    )()


def _entered_as_zero(name: str) -> Run:
    """Masked rows are 0 and count."""

    def run(c: Call) -> Result:
        mask = c["mask"]
        if mask.shape != c["k"].shape[:-1]:
            raise ValueError
        return c.given(mask=None, **{name: np.where(mask[..., None], c[name], 0)})()

    return run


VARIANTS = (
    *several(
        _SET,
        {
            "with the set of all keys for every prefix": needs("causal", _of_all),
            "with the keys of the set of all keys that come before": needs(
                "causal", _of_all_before
            ),
        },
    ),
    *several(
        _HEAVY,
        {
            "with entries of at least eps of the largest in their row": _kept(
                lambda c, A: c["eps"] * A.max(-1, keepdims=True) <= A
            ),
            **{
                f"with row sums over the whole block of {n} that a query is in": _in_blocks(n)
                for n in (4, 8, 16, 32, 64)
            },
        },
    ),
    *several(
        _SUPPORT,
        {
            "with powers that keep their sign": _signed,
            "with the support of the first head for all": _of_the_first_head,
            "without the gradient of the normaliser": _normaliser_held,
        },
    ),
    *several(
        _MASKED,
        {
            "with masked keys set to 0, not left out": _entered_as_zero("k"),
            "with values of masked keys set to 0, their weights kept": _entered_as_zero("v"),
        },
    ),
)
