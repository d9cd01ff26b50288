"""How a wrong result relates to ours: multiples row by row, another order, a function of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nlattn._types import Array

_FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "the square of ours": np.square,
    "the root of ours": np.sqrt,
    "the reciprocal of ours": np.reciprocal,
    "the exponential of ours": np.exp,
    "the logarithm of ours": np.log,
    "ours without its sign": np.abs,
    "ours with 0 for what is negative": lambda x: np.maximum(x, 0),
}
_LEFT = 0.3
"""The share of an error that factors may leave if they are to explain it."""


def relation(want: Array, got: Array, share: float) -> str:
    """In words, such as "ours, each row times a factor of its own"; empty if none is seen.

    Numbers are equal that differ by this share of the largest.
    """
    if got.size < 4:
        return ""
    if not np.isfinite(want).all():
        return _filled(want, got, share)
    if not np.isfinite(got).all():
        return _holes(want, got, share)

    def equal(x: Array, y: Array) -> bool:
        return bool((abs(x - y) <= 4 * share * max(abs(y).max(), 1e-300)).all())

    if equal(got, want):  # no more than rounding
        return ""
    for words, other in _candidates(want):
        if other.shape == got.shape and np.isfinite(other).all() and equal(got, other):
            return words
    apart = got - want
    if equal(apart, np.full_like(apart, apart.mean())) and abs(apart.mean()) > 0:
        return f"ours plus {apart.mean():.6g}"
    return _sums(want, got, share) or _factors(want, got, share) or _order(want, got, share)


def _sums(want: Array, got: Array, share: float) -> str:
    """Whether results sum to a whole number, where ours sum to another."""
    if min(want.min(), got.min()) < 0 or want.ndim < 1 or want.shape[-1] < 3:
        return ""
    mine, ours = got.sum(-1), want.sum(-1)
    whole = np.round(mine)
    limit = max(1e-6, 4 * share)
    if (abs(mine - whole) > limit * whole).any() or (abs(mine - ours) < 0.1).any():
        return ""
    if np.ptp(mine) > limit or np.ptp(ours) > limit or not whole.all():
        return ""
    return f"wrong: it sums to {float(mine.flat[0]):.6g}, ours to {float(ours.flat[0]):.6g}"


def _candidates(want: Array) -> Iterator[tuple[str, Array]]:
    with np.errstate(all="ignore"):
        for words, function in _FUNCTIONS.items():
            yield words, function(want)
    for how in (np.mean, np.sum):
        yield f"the {how.__name__} of all of ours", np.full_like(want, how(want))
    if want.ndim >= 2:
        yield "ours transposed", np.swapaxes(want, -1, -2)
        axes = {"rows": -2, "channels": -1, **({"heads": 0} if want.ndim > 2 else {})}
        for name, axis in axes.items():
            yield f"ours with its {name} in reverse order", np.flip(want, axis)
            mean = want.mean(axis, keepdims=True)
            yield f"the mean of our {name}", np.broadcast_to(mean, want.shape)
            for step in (1, -1):
                said = "next" if step > 0 else "one before"
                yield f"ours, each of its {name} from the {said}", np.roll(want, -step, axis)


def _holes(want: Array, got: Array, share: float) -> str:
    """Where numbers are missing, if all others are right."""
    bad = ~np.isfinite(got)
    right = (abs(got - want) <= share * abs(want).max(initial=0)) | bad
    if bad.all() or not right.all():
        return ""
    what = "NaN" if np.isnan(got[bad]).all() else "infinite"
    at = [int(i) for i in np.argwhere(bad)[0]]
    return f"right but {what} in {int(bad.sum())} of {bad.size} places, first at {at}"


def _filled(want: Array, got: Array, share: float) -> str:
    """What stands where ours has no numbers, if all others are right."""
    bad = np.isnan(want) & ~np.isnan(got)
    with np.errstate(invalid="ignore"):
        right = (abs(got - want) <= share * abs(want[np.isfinite(want)]).max(initial=0)) | bad
    right |= (got == want) | (np.isnan(got) & np.isnan(want))
    if not bad.any() or not right.all():
        return ""
    what = "0" if not got[bad].any() else "a number"
    at = [int(i) for i in np.argwhere(bad)[0]]
    return f"right but {what} where ours is NaN, in {int(bad.sum())} places, first at {at}"


def _factors(want: Array, got: Array, share: float) -> str:
    """Whether rows, channels or heads are multiples of ours, each by its own factor."""
    axes = {"row": (-1,), "channel": (-2,), "head": (-2, -1)} if want.ndim >= 2 else {}
    for name, over in axes.items():
        if (name == "head" and want.ndim < 3) or min(want.shape[a] for a in over) < 2:
            continue
        size = (want * want).sum(over, keepdims=True)
        factor = (got * want).sum(over, keepdims=True) / np.where(size == 0, 1, size)
        left = got - factor * want
        near = (abs(left) <= 4 * share * max(abs(got).max(), 1e-300)).all()
        if near and (left**2).mean() <= _LEFT**2 * ((got - want) ** 2).mean():
            some = factor[size > 0]
            low, high = float(some.min()), float(some.max())
            span = f"{low:.4g} to {high:.4g}"
            if max(abs(low - 1), abs(high - 1)) < 1e-3:
                span = f"1 {low - 1:+.2g} to 1 {high - 1:+.2g}"
            why = ": what rows are divided by is off" if name == "row" and low > 0 else ""
            return f"ours, each {name} times a factor of its own, {span}{why}"
    return ""


def _order(want: Array, got: Array, share: float) -> str:
    """Whether rows are ours in another order."""
    if want.ndim < 2 or want.shape[-2] < 3 or want.shape[-2] > 400:
        return ""
    mine, ours = got.reshape(-1, got.shape[-1]), want.reshape(-1, want.shape[-1])
    if len(mine) > 2000:
        return ""
    limit = 4 * share * max(abs(ours).max(), 1e-300)
    nearest = [int(abs(ours - row).max(-1).argmin()) for row in mine]
    near = all(abs(ours[j] - row).max() <= limit for j, row in zip(nearest, mine, strict=True))
    if not near or len(np.unique(ours, axis=0)) < len(ours):
        return ""
    moved = sum(i != j for i, j in enumerate(nearest))
    first = next(i for i, j in enumerate(nearest) if i != j) if moved else 0
    return (
        f"made of our rows, {moved} of them at another place: row {first} is our {nearest[first]}"
    )
