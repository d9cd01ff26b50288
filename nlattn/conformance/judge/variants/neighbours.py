"""Neighbourhoods on grids gone wrong: along one axis, or one axis taken for another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nlattn._types import Array, Function, Result
from nlattn.conformance.judge.variants.base import Call, Run, Variant, after, step

_NEAR = ("neighbours",)


def _axis(wrong: Function) -> Run:
    """``wrong(function, length, window, stride, dilation, causal)`` along every axis."""
    return step("neighbours", lambda c, f, *given: wrong(f, *given))


def _placed(length: int, dilation: int, ends: Callable[[int, int], tuple[int, int]]) -> Array:
    """Keys ``first:end`` of each query, by its place among those of its remainder."""
    seen = np.zeros((length, length), bool)
    for i in range(length):
        keys = np.arange(i % dilation, length, dilation)
        first, end = ends(i // dilation, len(keys) - 1)
        seen[i, keys[max(first, 0) : max(end, 0)]] = True
    return seen


def _cut(f: Function, length: int, window: int, stride: int, dilation: int, causal: bool) -> Array:
    """Windows that stay about the query, and lose what lies outside."""
    if causal:
        return f(length, window, stride, dilation, causal)

    def ends(place: int, last: int) -> tuple[int, int]:
        first = min(place // stride * stride + stride // 2, last) - window // 2
        return first, first + window

    return _placed(length, dilation, ends)


def _led(_: object, length: int, window: int, stride: int, dilation: int, causal: bool) -> Array:
    """The window of the first query of a stride in place of that of its middle."""

    def ends(place: int, last: int) -> tuple[int, int]:
        leader = place // stride * stride
        if causal:
            return leader - window + 1, place + 1
        first = min(max(leader - window // 2, 0), last + 1 - window)
        return first, first + window

    return _placed(length, dilation, ends)


def _later(
    f: Function, length: int, window: int, stride: int, dilation: int, causal: bool
) -> Array:
    """One key more behind the query than before it, where the window is even."""

    def ends(place: int, last: int) -> tuple[int, int]:
        leader = min(place // stride * stride + stride // 2, last)
        first = min(max(leader - (window - 1) // 2, 0), last + 1 - window)
        return first, first + window

    return (
        f(length, window, stride, dilation, causal) if causal else _placed(length, dilation, ends)
    )


def _whole(
    f: Function, length: int, window: int, stride: int, dilation: int, causal: bool
) -> Array:
    """Dilated windows moved inside the axis, whatever remainder their keys then have."""
    if causal or dilation == 1 or stride > 1:
        return f(length, window, stride, dilation, causal)
    seen = np.zeros((length, length), bool)
    for i in range(length):
        reach = dilation * (window - 1)
        start = min(max(i - dilation * (window // 2), 0), length - 1 - reach)
        seen[i, start : start + reach + 1 : dilation] = True
    return seen


def _turned(c: Call) -> Result:
    """Options of the axes from the last to the first."""
    names = ("window", "stride", "dilation", "causal")
    given = {n: c.get(n)[::-1] for n in names if isinstance(c.get(n), list)}
    return c.given(**given)()


def _transposed(_: Call, out: Array) -> Array:
    """Places written column by column."""
    H, W = out.shape[-3:-1]
    turned = np.swapaxes(out, -3, -2)
    return turned.reshape((*out.shape[:-3], H, W, out.shape[-1]))


VARIANTS = (
    Variant("with windows cut off at borders, not moved inside", _NEAR, _axis(_cut)),
    Variant("without the stride", _NEAR, _axis(lambda f, n, w, s, d, c: f(n, w, 1, d, c))),
    Variant("without the dilation", _NEAR, _axis(lambda f, n, w, s, d, c: f(n, w, s, 1, c))),
    Variant("without causality", _NEAR, _axis(lambda f, n, w, s, d, c: f(n, w, s, d, False))),
    Variant(
        "with causal windows about the query, of which what comes later is hidden",
        _NEAR,
        _axis(
            lambda f, n, w, s, d, c: (
                f(n, w, s, d, c) if not c else f(n, w, s, d, False) & np.tri(n, dtype=bool)
            )
        ),
    ),
    Variant("with the first query of a stride as its leader", _NEAR, _axis(_led)),
    Variant("with even windows one key later", _NEAR, _axis(_later)),
    Variant("with dilated windows moved inside by any distance", _NEAR, _axis(_whole)),
    Variant("with options of the axes reversed", _NEAR, _turned),
    Variant("with places written column by column", _NEAR, after(_transposed)),
    Variant("with a scale of 1", _NEAR, lambda c: c.given(scale=1.0)()),
    Variant(
        "with the scale squared",
        _NEAR,
        lambda c: c.given(scale=c.scale**2)(),
    ),
)
