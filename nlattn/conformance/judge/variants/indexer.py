"""The indexer gone wrong: its scores, the keys that it chooses, its loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from nlattn._types import Result
from nlattn.conformance.judge.variants.base import Array, Call, Run, after, option, several, softmax
from nlattn.conformance.judge.variants.formats import FORMATS, rounded

_SCORES, _TABLE, _LOSS = ("index scores",), ("chosen table",), ("divergence",)


def _scored(how: Callable[[Array, Array], Array]) -> Run:
    """Of products (..., n, h, m) and weights (..., n, h, 1)."""

    def run(c: Call) -> Result:
        s = np.einsum("...ihd,...jd->...ihj", c["q"], c["k"])
        return how(s, c["w"][..., None])

    return run


def _relu(s: Array) -> Array:
    return np.where(s.real > 0, s, 0)


def _chosen(key: Callable[[Call, Array], Array]) -> Run:
    """The best by another number of a key; what is hidden stays hidden."""

    def run(c: Call) -> Result:
        x = c["scores"]
        return c.given(scores=np.where(np.isneginf(x), x, key(c, x)))()

    return run


def _highest_of_equal(c: Call) -> Result:
    m = c["scores"].shape[-1]
    if c.get("causal"):
        raise ValueError
    out = c.given(scores=c["scores"][..., ::-1])()
    return np.where(out < 0, -1, m - 1 - out)


def _by_key(c: Call) -> Result:
    out, m = c(), c["scores"].shape[-1]
    return np.where(out < 0, -1, 0) + np.sort(np.where(out < 0, m, out), -1) * (
        np.sort(np.where(out < 0, m, out), -1) < m
    )


def _corner(c: Call) -> Result:
    n, m = c["scores"].shape[-2:]
    if not c["causal"] or n == m:
        raise ValueError
    return c.given(causal_offset=c.get("causal_offset", 0) + m - n)()


def _shifted(by: int) -> Run:
    def run(c: Call) -> Result:
        if not c["causal"]:
            raise ValueError
        return c.given(causal_offset=c.get("causal_offset", 0) + by)()

    return run


def _hidden_kept(c: Call) -> Result:
    if not np.isneginf(c["scores"]).any():
        raise ValueError
    return c.given(scores=np.where(np.isneginf(c["scores"]), -1e30, c["scores"]))()


def _loss(how: Callable[[Array, Array, Array], Array]) -> Run:
    """Of scores, their softmax p and the weights w."""

    def run(c: Call) -> Result:
        s = c["scores"]
        return how(np.where(np.isneginf(s.real), 0, s), softmax(s), c["weights"])

    return run


def _log(x: Array) -> Array:
    return np.asarray(np.log(np.where(x.real > 0, x, 1)))


_EPSILONS = (*(float(f"1e-{i}") for i in (3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 16, 20, 30)),
             *(float(np.finfo(t).eps) for t in (np.float32, np.float64)),
             float(np.finfo(np.float32).tiny))  # fmt: skip
"""Numbers by which logarithms of 0 are kept away."""
_TURNED = "the other way round: KL(softmax || weights)"


def _kept_finite(x: Array, eps: float, added: bool) -> Array:
    return np.asarray(np.log(x + eps if added else np.where(x.real > eps, x, eps)))


def _from_the_middle(_: Array, p: Array, w: Array) -> Array:
    log = _log((p + w) / 2)
    return np.asarray((p * (_log(p) - log) + w * (_log(w) - log)).sum(-1) / 2)


def _divergence(log: Callable[[Array], Array], turned: bool, _: Array, p: Array, w: Array) -> Array:
    one, other = (p, w) if turned else (w, p)
    return np.asarray((one * (log(one) - log(other))).sum(-1))


def _finite_logarithms() -> dict[str, Run]:
    """Divergences, either way, whose logarithms are of numbers above 0."""
    found = dict[str, Run]()
    for eps, (added, said) in product(
        _EPSILONS, ((True, "with # added in logarithms"), (False, "with logarithms of # at least"))
    ):
        log = partial(_kept_finite, eps=eps, added=added)
        words = said.replace("#", f"{eps:.3g}")
        found[words] = _loss(partial(_divergence, log, False))
        found[f"{_TURNED}, {words}"] = _loss(partial(_divergence, log, True))
    return found


VARIANTS = (
    *several(
        _SCORES,
        {
            "without the relu": _scored(lambda s, w: (w * s).sum(-2)),
            "with the relu of the sum of heads": _scored(lambda s, w: _relu((w * s).sum(-2))),
            "with the relu of weighted products": _scored(lambda s, w: _relu(w * s).sum(-2)),
            "with heads not weighted": _scored(lambda s, w: _relu(s).sum(-2) + 0 * w[..., 0, :]),
            "with the mean of heads": _scored(lambda s, w: (w * _relu(s)).mean(-2)),
            "with the first head alone": _scored(lambda s, w: (w * _relu(s))[..., 0, :]),
            "with the weight of the head before": _scored(
                lambda s, w: (np.roll(w, 1, -2) * _relu(s)).sum(-2)
            ),
            "with the weight of the next head": _scored(
                lambda s, w: (np.roll(w, -1, -2) * _relu(s)).sum(-2)
            ),
            "with a softmax of the weights of heads": _scored(
                lambda s, w: (softmax(w, -2) * _relu(s)).sum(-2)
            ),
            "with the largest head in place of the sum": _scored(
                lambda s, w: (w * _relu(s)).max(-2)
            ),
            "with scores divided by the root of d": after(
                lambda c, out: out / c["q"].shape[-1] ** 0.5
            ),
            "with scores divided by the root of d and of the heads": after(
                lambda c, out: out / (c["q"].shape[-1] * c["q"].shape[-2]) ** 0.5
            ),
            "with the square of the relu": _scored(lambda s, w: (w * _relu(s) ** 2).sum(-2)),
        },
    ),
    *several(
        _TABLE,
        {
            "with scores rounded to float16": _chosen(lambda _, x: x.astype(np.float16) + 0.0),
            "with scores rounded to bfloat16": _chosen(lambda _, x: rounded(x, FORMATS[-1])),
            "with the lowest scores": _chosen(lambda _, x: -x),
            "with the largest magnitudes": _chosen(lambda _, x: abs(x)),
            "with the scores of the query before": _chosen(lambda _, x: np.roll(x, 1, -2)),
            "with the highest of equal keys first": _highest_of_equal,
            "sorted by key": _by_key,
            "worst first": after(lambda _, out: out[..., ::-1]),
            "without the last key of the table": after(
                lambda _, out: np.where(np.arange(out.shape[-1]) == out.shape[-1] - 1, -1, out)
            ),
            "without the best key": after(
                lambda _, out: np.concatenate([out[..., 1:], -np.ones_like(out[..., :1])], -1)
            ),
            "with 0 in place of -1": after(lambda _, out: np.maximum(out, 0)),
            "with hidden keys": _hidden_kept,
            "causal from the lower right corner": _corner,
            "causal by one key too few": _shifted(-1),
            "causal by one key too many": _shifted(1),
            "without the offset of causality": option(causal_offset=0),
            "with keys counted from 1": after(lambda _, out: np.where(out < 0, -1, out + 1)),
        },
    ),
    *several(
        _LOSS,
        {
            "with the cross entropy, less that of the weights": _loss(
                lambda _, p, w: -(w * _log(p)).sum(-1)
            ),
            "with NaN for a weight of 0, as 0 log 0": _loss(
                lambda _, p, w: (w * (np.log(w) - _log(p))).sum(-1)
            ),
            **_finite_logarithms(),
            _TURNED: _loss(
                lambda _, p, w: np.where(
                    (p.real > 0) & (w.real > 0), p * (_log(p) - _log(w)), 0
                ).sum(-1)
            ),
            "with the divergence of Jensen and Shannon": _loss(_from_the_middle),
            "in bits": after(lambda _, out: out / np.log(2)),
            "with the mean over keys": after(lambda c, out: out / c["scores"].shape[-1]),
            "with the mean of all queries": after(
                lambda _, out: 0 * out + out.mean(-1, keepdims=True)
            ),
            "with half the squared error": _loss(lambda _, p, w: ((p - w) ** 2).sum(-1) / 2),
            "without the softmax of scores": _loss(lambda s, _, w: (w * (_log(w) - s)).sum(-1)),
            "with the softmax over queries": lambda c: (
                c["weights"] * (_log(c["weights"]) - _log(softmax(c["scores"], -2)))
            ).sum(-1),
            "with the sign turned": after(lambda _, out: -out),
            "with the entropy of the weights alone": _loss(
                lambda _, p, w: (w * _log(w)).sum(-1) + 0 * p.sum(-1)
            ),
        },
    ),
)
