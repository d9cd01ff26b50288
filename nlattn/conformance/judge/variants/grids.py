"""Patches and votes on image grids gone wrong."""

from __future__ import annotations

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
)

_MEANS, _CROSS, _PSAL = ("patch means",), ("pasted patches",), ("patch votes",)


def _h(c: Call) -> float:
    return float(c.get("h") or 0.6 * c["sigma"])


def _turned_cells(c: Call, out: Array) -> Array:
    s = int(c["scale"])
    *lead, H, W, e = out.shape
    cells = out.reshape(*lead, H // s, s, W // s, s, e)
    return np.swapaxes(cells, -4, -2).reshape(out.shape)


def _numbers(c: Call) -> int:
    """Numbers of a patch."""
    return int(c.get("patch_size", 5) ** 2 * c["image"].shape[-1])


def _divided_by(count: Callable[[Call], float]) -> Run:
    """Squared distances over another number than p^2 C: the same as other sigma and h."""

    def run(c: Call) -> Result:
        ratio = (count(c) / _numbers(c)) ** 0.5
        return c.given(sigma=c["sigma"] * ratio, h=_h(c) * ratio)()

    return run


def _padded(mode: str) -> Run:
    return step("reflected", lambda _, __, n, r: np.pad(np.arange(n), r, mode=mode))  # type: ignore[call-overload]


def _votes_over_all(c: Call) -> Result:
    """Votes divided by p^2 also where fewer patches cover a pixel."""

    def wrong(_: Call, f: Function, B: Array, H: int, W: int, p: int) -> Result:
        r = p // 2
        rows, columns = (
            np.minimum(n - 1, np.arange(n) + r) - np.maximum(0, np.arange(n) - r) + 1
            for n in (H, W)
        )
        return f(B, H, W, p) * (rows[:, None] * columns)[..., None] / p**2

    return step("votes", wrong)(c)


def _weights(wrong: Function) -> Run:
    """``wrong(A, S, Q, K, nu, temperature)`` in place of the map of cross-scale attention."""

    def instead(
        _: Call, f: Function, q: Array, k: Array, p: int, temperature: float, *rest: object
    ) -> Result:
        A, S, Q, K, nu, above = f(q, k, p, temperature, *rest)
        return wrong(A, S, Q, K, nu, temperature), S, Q, K, nu, above

    return step("weights", instead)


def _patch_of(x: Array, p: int) -> Array:
    return x.reshape(len(x), p * p, -1)


def _convolved(
    _: Call, f: Function, q: Array, k: Array, p: int, T: float, floor: float, assign: str
) -> Result:
    _, S, Q, K, nu, above = f(q, k, p, T, floor, assign)
    flipped = np.flip(_patch_of(Q, p), 1).reshape(Q.shape)
    return softmax(T * (flipped @ K.T) / nu), S, Q, K, nu, above


def _floor_added(
    _: Call, f: Function, q: Array, k: Array, p: int, T: float, floor: float, assign: str
) -> Result:
    """Lengths plus the floor, in place of the larger of them."""
    _, _, Q, K, _, above = f(q, k, p, T, floor, assign)
    if assign == "argmax":
        raise ValueError
    more = np.sqrt((K * K).sum(1)) + floor
    S = Q @ K.T / more
    return softmax(T * S), S, Q, K, more, above


def _pixel_norms(
    _: Call, f: Function, q: Array, k: Array, p: int, T: float, floor: float, assign: str
) -> Result:
    """Every pixel of the keys of length 1, in place of every patch."""
    _, S, Q, K, nu, above = f(q, k, p, T, floor, assign)
    pixels = _patch_of(K, p)
    lengths = np.sqrt((pixels * pixels).sum(-1, keepdims=True))
    unit = (pixels / np.where(lengths.real > floor, lengths, floor)).reshape(K.shape)
    return softmax(T * (Q @ unit.T)), S, Q, K, nu, above


def _overlap(divide: Callable[[Array, int], Result]) -> Run:
    def wrong(
        _: Call, f: Function, A: Array, H: int, W: int, h: int, w: int, p: int, *rest: object
    ) -> Result:
        return divide(f(A, H, W, h, w, p, *rest), p)

    return step("normaliser", wrong)


def _pasted(cells: Callable[[Array], Array]) -> Run:
    """Patches pasted otherwise: ``cells`` of them (rows, columns, p, s, p, s, channels)."""

    def wrong(_: Call, f: Function, patches: Array, s: int) -> Result:
        rows, columns, size, _size, C = patches.shape
        made = cells(patches.reshape(rows, columns, size // s, s, size // s, s, C))
        return f(made.reshape(patches.shape), s)

    return step("fold", wrong)


def _voted(wrong: Callable[[int, int, int, int, int], tuple[int, int]]) -> Run:
    """Votes for the key at ``wrong(row, column, a, b)`` in place of ``(row - a, column - b)``."""

    def instead(_: Call, __: object, index: Array, grid: tuple[int, int], radius: int) -> Result:
        Hq, Wq, topk = index.shape
        found = []
        for y, x in np.ndindex(Hq, Wq):
            row = []
            for a, b, t in np.ndindex(2 * radius + 1, 2 * radius + 1, topk):
                i, j = y + a - radius, x + b - radius
                if not (0 <= i < Hq and 0 <= j < Wq) or index[i, j, t] < 0:
                    continue
                r, s = divmod(int(index[i, j, t]), grid[1])
                r, s = wrong(r, s, a - radius, b - radius, radius)
                if 0 <= r < grid[0] and 0 <= s < grid[1]:
                    row.append(((i, j, t), r * grid[1] + s))
            found.append(row)
        return found

    def run(c: Call) -> Result:
        if not c["aggregate"]:
            raise ValueError
        return step("votes", instead)(c)

    return run


def _costs(change: Callable[[Call, Array], Array]) -> Run:
    return step("costs", lambda c, f, *args: change(c, f(*args)))


def _uniform(_: Call, f: Function, *args: object) -> Result:
    return [(row, np.full(len(w), 1 / max(len(w), 1))) for row, w in f(*args)]


def _unnormalised(_: Call, f: Function, c: Array, *args: object) -> Result:
    T = args[3]
    return [(row, np.array([np.exp(-c[p] / T) for p, _ in row], c.dtype)) for row, _ in f(c, *args)]


def _own_counted(change: Callable[[Array, float], Any]) -> Run:
    """Another weight of the pixel itself, from all others and its own."""

    def wrong(_: Call, f: Function, *args: object) -> Result:
        w, _, keys, best = f(*args)
        w[-1] = change(w[:-1], w[-1])
        return w, w.sum(), keys, best

    return step("weights", wrong)


def _gaussian_patches(c: Call, f: Function, F: Array, *rest: object) -> Result:
    """Distances weighted about the middle of patches, as scikit-image's slow mode has them."""
    p = int(c.get("patch_size", 5))
    near = np.exp(-((np.arange(p) - p // 2) ** 2) / (2 * ((p - 1) / 4) ** 2))
    share = np.outer(near, near) / near.sum() ** 2 * p * p
    return f(F * np.sqrt(np.repeat(share.ravel(), c["image"].shape[-1])), *rest)


def _patch(c: Call) -> int:
    return int(c.get("patch", 3))


def _temperature(c: Call) -> float:
    return float(c.get("temperature", c.default("temperature")))


VARIANTS = (
    Variant("without the 2 sigma^2", _MEANS, lambda c: c.given(h=_h(c), sigma=1e-150)()),
    Variant(
        "with sigma^2 in place of 2 sigma^2",
        _MEANS,
        lambda c: c.given(h=_h(c), sigma=c["sigma"] * 0.5**0.5)(),
    ),
    Variant(
        "with sigma in place of its square",
        _MEANS,
        lambda c: c.given(h=_h(c), sigma=c["sigma"] ** 0.5)(),
    ),
    Variant("with h in place of its square", _MEANS, lambda c: c.given(h=_h(c) ** 0.5)()),
    Variant("with 2 h^2 in place of h^2", _MEANS, lambda c: c.given(h=_h(c) * 2**0.5)()),
    Variant("with h = sigma", _MEANS, lambda c: c.given(h=c["sigma"])()),
    Variant("with distances summed over the patch, not averaged", _MEANS, _divided_by(lambda c: 1)),
    Variant(
        "with distances averaged over pixels but summed over channels",
        _MEANS,
        _divided_by(lambda c: _numbers(c) / c["image"].shape[-1]),
    ),
    Variant(
        "with distances averaged over channels but summed over pixels",
        _MEANS,
        _divided_by(lambda c: c["image"].shape[-1]),
    ),
    Variant("with a weight of 1 for the pixel itself", _MEANS, option(self_weight="one")),
    Variant("with a weight of 0 for the pixel itself", _MEANS, option(self_weight="zero")),
    Variant(
        "with the largest other weight for the pixel itself", _MEANS, option(self_weight="max")
    ),
    Variant(
        "with the pixel itself counted twice", _MEANS, _own_counted(lambda others, own: 2 * own)
    ),
    Variant(
        "with the sum of all other weights for the pixel itself",
        _MEANS,
        _own_counted(lambda others, own: others.sum()),
    ),
    Variant("with Gaussian patches", _MEANS, step("weights", _gaussian_patches)),
    Variant("with one pixel in place of voting patches", _MEANS, option(aggregate="pixel")),
    Variant("with voting patches in place of one pixel", _MEANS, option(aggregate="patch")),
    Variant(
        "with a window one pixel narrower on each side",
        _MEANS,
        option(patch_distance=lambda c: c.get("patch_distance", 5) - 1),
    ),
    Variant(
        "with a window one pixel wider on each side",
        _MEANS,
        option(patch_distance=lambda c: c.get("patch_distance", 5) + 1),
    ),
    Variant(
        "with patches one pixel wider on each side",
        _MEANS,
        option(patch_size=lambda c: c.get("patch_size", 5) + 2),
    ),
    Variant(
        "with patches one pixel narrower on each side",
        _MEANS,
        option(patch_size=lambda c: c.get("patch_size", 5) - 2),
    ),
    Variant("with the border repeated, not reflected", _MEANS, _padded("edge")),
    Variant("with the border reflected with its edge", _MEANS, _padded("symmetric")),
    Variant("with the border continued from the other side", _MEANS, _padded("wrap")),
    Variant("with votes divided by the patch's size at the border, too", _MEANS, _votes_over_all),
    Variant("with a temperature of 1", (*_CROSS, *_PSAL), option(temperature=1.0)),
    Variant(
        "with the temperature inverted",
        (*_CROSS, *_PSAL),
        option(temperature=lambda c: 1 / _temperature(c)),
    ),
    Variant(
        "with the temperature squared",
        (*_CROSS, *_PSAL),
        option(temperature=lambda c: _temperature(c) ** 2),
    ),
    Variant(
        "with the softmax over queries",
        _CROSS,
        _weights(lambda A, S, Q, K, nu, T: softmax(T * S, 0)),
    ),
    Variant(
        "with keys as they are, not divided by their length",
        _CROSS,
        _weights(lambda A, S, Q, K, nu, T: softmax(T * S * nu)),
    ),
    Variant(
        "with queries of length 1, too",
        _CROSS,
        _weights(lambda A, S, Q, K, nu, T: softmax(T * S / np.sqrt((Q * Q).sum(1))[:, None])),
    ),
    Variant(
        "with keys divided by their squared length",
        _CROSS,
        _weights(lambda A, S, Q, K, nu, T: softmax(T * S / nu)),
    ),
    Variant("with convolution in place of correlation", _CROSS, step("weights", _convolved)),
    Variant("with pixels of length 1 in place of patches", _CROSS, step("weights", _pixel_norms)),
    Variant("with the floor added to the lengths", _CROSS, step("weights", _floor_added)),
    Variant("with the best key only", _CROSS, option(assign="argmax")),
    Variant("with overlaps divided by 6", _CROSS, option(overlap="divide", divisor=6.0)),
    Variant(
        "with overlaps divided by the patch's size", _CROSS, _overlap(lambda z, p: z * 0 + p * p)
    ),
    Variant("without a division by overlaps", _CROSS, _overlap(lambda z, p: z * 0 + 1)),
    Variant("with overlaps counted by patches", _CROSS, option(overlap="average")),
    Variant("with overlaps weighted by attention", _CROSS, option(overlap="mass")),
    Variant("with rows and columns of each cell of s x s exchanged", _CROSS, after(_turned_cells)),
    Variant(
        "with patches pasted the wrong way round: their first cell where their last should be",
        _CROSS,
        _pasted(lambda x: np.flip(x, (2, 4))),
    ),
    Variant("with rows of patches pasted upside down", _CROSS, _pasted(lambda x: np.flip(x, 2))),
    Variant(
        "with columns of patches pasted from right to left",
        _CROSS,
        _pasted(lambda x: np.flip(x, 4)),
    ),
    Variant(
        "with rows and columns of cells exchanged where patches are pasted",
        _CROSS,
        _pasted(lambda x: np.swapaxes(x, 2, 4)),
    ),
    Variant(
        "with rows and columns of patches exchanged where they are pasted",
        _CROSS,
        _pasted(lambda x: x.transpose(0, 1, 4, 5, 2, 3, 6)),
    ),
    Variant(
        "with another crop",
        _CROSS,
        lambda c: c.given(
            crop={"exact": "published", "published": "exact"}[c.get("crop", "exact")]
        )(),
    ),
    Variant(
        "with distances averaged over pixels, not summed",
        _PSAL,
        _costs(lambda c, x: x / _patch(c) ** 2),
    ),
    Variant(
        "with distances averaged over pixels and channels, not summed",
        _PSAL,
        _costs(lambda c, x: x / (_patch(c) ** 2 * c["q"].shape[-1])),
    ),
    Variant("with distances, not their squares", _PSAL, _costs(lambda c, x: np.sqrt(x))),
    Variant("with the sign of distances turned", _PSAL, _costs(lambda c, x: -x)),
    Variant("with the border repeated, not reflected", _PSAL, option(border="edge")),
    Variant("with the border reflected with its edge", _PSAL, option(border="symmetric")),
    Variant("with zeros beyond the border", _PSAL, option(border="constant")),
    Variant("with single pixels in place of patches", _PSAL, option(patch=1)),
    Variant("with equal weights", _PSAL, step("weights", _uniform)),
    Variant("without the normaliser", _PSAL, step("weights", _unnormalised)),
    Variant("without votes of neighbours", _PSAL, needs("aggregate", option(aggregate=False))),
    Variant("with votes of neighbours", _PSAL, lambda c: c.given(aggregate=True)()),
    Variant(
        "with votes for a neighbour's key, not moved back by its offset",
        _PSAL,
        _voted(lambda r, s, a, b, _: (r, s)),
    ),
    Variant("with votes moved the other way", _PSAL, _voted(lambda r, s, a, b, _: (r + a, s + b))),
    Variant(
        "with votes moved by swapped offsets", _PSAL, _voted(lambda r, s, a, b, _: (r - b, s - a))
    ),
    Variant("with votes for one key merged", _PSAL, option(dedup=True)),
    Variant("with votes for one key kept apart", _PSAL, needs("dedup", option(dedup=False))),
    Variant(
        "with a scale of 1/sqrt(d)",
        ("placed windows",),
        option(scale=lambda c: float(c["q"].shape[-1] ** -0.5)),
    ),
)
