"""Scale, softcap, bias and normaliser of softmax attention gone wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from nlattn._types import Array, Result
from nlattn.conformance.case import dtype_of
from nlattn.conformance.judge.variants.base import Call, Run, Variant, softmax
from nlattn.conformance.judge.variants.dense import (
    BLOCKS,
    OPS,
    OPTIONS,
    given,
    leaking,
    of,
    scoring,
    stages,
    weighing,
)
from nlattn.oracle.dense import Stages

PADDED = (8, 16, 32, 64, 128)


def _padded_scale(block: int) -> Callable[[Call, float], float]:
    """The default scale of channels that are filled up to whole blocks."""

    def scale(c: Call, now: float) -> float:
        d = c["q"].shape[-1]
        if d % block == 0 or not np.isclose(now, d**-0.5):
            raise ValueError
        return float((-(-d // block) * block) ** -0.5)

    return scale


def _scaled(change: Callable[[Call, float], float]) -> Run:
    return given(scale=lambda c: change(c, c.scale))


def _under_hidden(_: Call, st: Stages) -> Array:
    """Weights in float32 beside the maximum of all keys, which may be far above those it sees."""
    s = np.asarray(st.masked, np.float32)
    if np.isfinite(s).all() or np.iscomplexobj(st.masked):
        raise ValueError
    powers = np.exp(s - np.asarray(st.biased, np.float32).max(-1, keepdims=True)).astype(float)
    total = powers.sum(-1, keepdims=True)
    return np.asarray(powers / np.where(total == 0, 1, total))


def _narrow_queries(c: Call) -> Result:
    """Queries that are scaled and stored in 16 bits once more."""
    if c.dtype not in ("float16", "bfloat16"):
        raise ValueError
    return c.given(q=(c.scale * c["q"]).astype(dtype_of(c.dtype)).astype(float), scale=1.0)()


def _masked(st: Stages, scores: Array) -> Array:
    return np.where(np.isfinite(st.masked.real), scores, -np.inf)


def _sloped(c: Call, st: Stages) -> Array:
    """Scores capped as they should be, whose change meets the slope of the cap's second use."""
    capped, softcap = np.real(st.capped), c["softcap"]
    if not np.iscomplexobj(st.raw):  # it is of gradients
        raise ValueError
    return capped + 1j * np.imag(st.raw) * (1 - np.tanh(capped / softcap) ** 2)


def _unrescaled(block: int, *, outputs_alone: bool) -> Callable[[Call, Stages], Array]:
    """Weights of an online softmax whose sums keep the scale of the maximum they were made with.

    All sums, or those of outputs alone, whose normaliser is right.
    """

    def weights(_: Call, st: Stages) -> Array:
        s = st.masked
        best = np.maximum.accumulate(s.real, -1)
        last = np.minimum(np.arange(s.shape[-1]) // block * block + block, s.shape[-1]) - 1
        top = best[..., last]
        powers = np.where(np.isneginf(s.real), 0, np.exp(s - np.where(np.isneginf(top), 0, top)))
        total = powers.sum(-1, keepdims=True)
        if outputs_alone:
            best = np.where(np.isneginf(best[..., -1:]), 0, best[..., -1:])
            total = np.where(total == 0, 0, np.exp(st.lse[..., None] - best))
        return np.asarray(powers / np.where(total == 0, 1, total))

    return weights


def _lowered(by: float, _: Call, st: Stages) -> Array:
    return np.asarray(st.biased - by * np.isneginf(st.masked.real))


def _parts(m: int, parts: int, block: int) -> list[int]:
    """Where parts of the keys begin, and where the last ends; ValueError for one part alone."""
    bounds = [*range(0, m, block), m] if block else [int(x) for x in np.linspace(0, m, parts + 1)]
    if len(bounds) < 3 or m < 2:
        raise ValueError
    return bounds


def _merged(
    change: Callable[[Array, Array], Array], parts: int = 0, block: int = 0
) -> Callable[[Call, Stages], Array]:
    """Weights of parts of the keys that are computed apart: ``change(powers, lse of a part)``."""

    def weights(_: Call, st: Stages) -> Array:
        s = st.masked
        bounds = _parts(s.shape[-1], parts, block)
        made = []
        for a, b in pairwise(bounds):
            part = s[..., a:b]
            top = part.real.max(-1, keepdims=True, initial=-np.inf)
            top = np.where(np.isneginf(top), 0, top)
            powers = np.where(np.isneginf(part.real), 0, np.exp(part - top))
            made.append(change(powers, powers.sum(-1, keepdims=True)))
        whole = np.concatenate(made, -1)
        total = whole.sum(-1, keepdims=True)
        return np.asarray(whole / np.where(total == 0, 1, total))

    return weights


def _overflowing(c: Call, st: Stages) -> Array:
    """Weights without subtracting a maximum; exponentials of all but float64 are float32's."""
    limit = 709.7 if c.dtype == "float64" else 88.7
    with np.errstate(all="ignore"):
        powers = np.where(st.masked.real > limit, np.inf, np.exp(st.masked))
        powers = np.where(st.masked.real < -limit - 16, 0, powers)
        weights = powers / powers.sum(-1, keepdims=True)
    return np.where(np.isneginf(st.masked.real).all(-1, keepdims=True), 0, weights)


def _log(change: Callable[[Stages], Array]) -> Run:
    def run(c: Call) -> Result:
        c["return_lse"]
        st = stages(c)
        return st.out, change(st)

    return of(run)


def _bias(c: Call) -> Result:
    return 0 if c.get("bias") is None else c["bias"]


_SPLITS: tuple[tuple[str, dict[str, int]], ...] = (
    *((f"{p} parts of the keys", {"parts": p}) for p in (2, 3, 4, 8)),
    *((f"blocks of {b} keys", {"block": b}) for b in (16, 32, 64, 128)),
)
_SCORES = tuple(
    Variant(name, OPS, run)
    for name, run in (
        ("with a scale of 1", _scaled(lambda _, s: 1.0)),
        *(
            (
                f"with the default scale of channels padded to a multiple of {b}",
                _scaled(_padded_scale(b)),
            )
            for b in PADDED
        ),
        ("with the scale squared", _scaled(lambda _, s: s * s)),
        ("with the scale's square root", _scaled(lambda _, s: s**0.5)),
        ("with the scale inverted", _scaled(lambda _, s: 1 / s)),
        ("with a scale of 1/sqrt(d)", _scaled(lambda c, _: float(c["q"].shape[-1] ** -0.5))),
        (
            "with a scale of 1/sqrt(e), by the values' channels",
            _scaled(lambda c, _: float(c["v"].shape[-1] ** -0.5)),
        ),
        (
            "with a scale by the channels of all heads",
            _scaled(lambda c, _: float((c["q"].shape[-3] * c["q"].shape[-1]) ** -0.5)),
        ),
        ("with masked numbers in its sums: 0 times NaN", of(leaking)),
        ("with powers of 2 in place of e", scoring(lambda _, st: st.masked * np.log(2))),
        ("with the softmax over queries", weighing(lambda _, st: softmax(st.masked, -2))),
        (
            "without a softmax",
            weighing(lambda _, st: np.where(np.isfinite(st.masked), st.masked, 0)),
        ),
        (
            "without the normaliser",
            weighing(
                lambda _, st: np.exp(
                    st.masked
                    - np.where(np.isneginf(st.lse), 0, st.masked.real.max(-1, initial=-np.inf))[
                        ..., None
                    ]
                )
            ),
        ),
        ("without the normaliser and the maximum", weighing(lambda _, st: np.exp(st.masked))),
        (
            "with the maximum of hidden keys, too, below which all others underflow",
            weighing(_under_hidden),
        ),
        ("with scaled queries rounded to 16 bits", of(_narrow_queries)),
        (
            "with the best key only",
            weighing(
                lambda _, st: (
                    (np.arange(st.masked.shape[-1]) == st.masked.real.argmax(-1)[..., None])
                    * np.isfinite(st.masked)
                )
            ),
        ),
        (
            "with masked keys in the normaliser",
            weighing(lambda _, st: np.where(np.isfinite(st.masked), softmax(st.biased), 0)),
        ),
        (
            "with masked scores of 0, not -inf",
            scoring(lambda _, st: np.where(np.isfinite(st.masked), st.masked, 0)),
        ),
        ("without subtracting the maximum", weighing(_overflowing)),
        *(
            (
                f"with {words} merged without the difference of their maxima",
                weighing(_merged(f, **how)),
            )
            for f in (lambda powers, _: powers,)
            for words, how in _SPLITS
        ),
        *(
            (f"with {words} averaged, whatever they weigh", weighing(_merged(f, **how)))
            for f in (lambda powers, total: powers / np.where(total == 0, 1, total),)
            for words, how in _SPLITS
        ),
        *(
            (
                f"with masked scores lowered by {low:g}, not removed",
                scoring(partial(_lowered, low)),
            )
            for low in (1e4, 1e9)
        ),
        *(
            (
                f"with sums not rescaled when a later block of {b} keys has a larger score",
                weighing(_unrescaled(b, outputs_alone=False)),
            )
            for b in (1, 4, *BLOCKS)
        ),
        *(
            (
                f"with outputs not rescaled when a later block of {b} keys has a larger score",
                weighing(_unrescaled(b, outputs_alone=True)),
            )
            for b in (1, 4, *BLOCKS)
        ),
    )
)

_OPTIONS = tuple(
    Variant(name, OPTIONS, run)
    for name, run in (
        (
            "with masked scores of 0 before the bias",
            scoring(lambda c, st: np.where(np.isfinite(st.masked), st.capped, 0) + c["bias"]),
        ),
        (
            "with the softcap after the mask",
            scoring(
                lambda c, st: (
                    c["softcap"]
                    * np.tanh(
                        np.where(np.isfinite(st.masked), st.raw + _bias(c), -1e300) / c["softcap"]
                    )
                )
            ),
        ),
        (
            "with the softcap after the bias",
            scoring(
                lambda c, st: _masked(
                    st, c["softcap"] * np.tanh((st.raw + c["bias"]) / c["softcap"])
                )
            ),
        ),
        (
            "with the softcap's slope taken at the capped score",
            scoring(lambda c, st: _masked(st, _sloped(c, st) + _bias(c))),
        ),
        ("without the softcap", of(lambda c: c.given(softcap=None if c["softcap"] else 0)())),
        (
            "without the factor softcap after the tanh",
            scoring(lambda c, st: _masked(st, np.tanh(st.raw / c["softcap"]) + _bias(c))),
        ),
        (
            "with the softcap before the scale",
            scoring(
                lambda c, st: _masked(
                    st,
                    c.scale * c["softcap"] * np.tanh(st.raw / c.scale / c["softcap"]) + _bias(c),
                )
            ),
        ),
        ("with the bias added after the softmax", weighing(lambda c, st: st.weights + c["bias"])),
        ("with lse in base 2", _log(lambda st: st.lse / np.log(2))),
        ("with lse without the maximum", _log(lambda st: st.lse - st.masked.real.max(-1))),
        ("with the maximum in place of lse", _log(lambda st: st.masked.max(-1))),
        ("with the sum of exponentials in place of lse", _log(lambda st: np.exp(st.lse))),
    )
)

VARIANTS = (*_SCORES, *_OPTIONS)
