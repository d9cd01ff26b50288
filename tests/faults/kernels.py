"""Bug reports and mistakes of real kernels, re-created: what goes wrong inside a softmax.

Attention is written once more, in float64, with a place to spoil each of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from nlattn.conformance.case import scale_of
from tests.faults.spoilt import ALL, Arrays, Lying, Options, Trap, again

Spoil = Callable[[Any, "Steps"], Any]


@dataclass
class Steps:
    """What a kernel has at hand; `s` are scores before the mask."""

    a: Arrays
    o: Options
    dtype: str
    s: Any = None
    yes: Any = None
    top: Any = None


@dataclass(frozen=True, eq=False)
class Kernel(Trap):
    """Attention of which a step is spoilt."""

    scores: Spoil | None = None
    """Of the masked scores."""
    maximum: Spoil | None = None
    powers: Spoil | None = None
    lse: Spoil | None = None
    narrow: Any = None
    """The dtype of sums and products."""

    def run(self, op: str, arrays: Arrays, options: Options) -> Any:
        """Compute a case."""
        if op != "attention":
            raise NotImplementedError
        dtype = arrays["q"].dtype
        inner = self.narrow if self.narrow and dtype.name in self.dtypes else float
        a = {n: x if x.dtype == bool else x.astype(inner) for n, x in arrays.items()}
        o = dict(options)
        if dtype.name in self.dtypes and self.before:
            self.before(a, o)
        spoilt = dtype.name in self.dtypes
        with np.errstate(all="ignore"):
            results = self._attend(a, o, dtype.name, spoilt)
        return tuple(np.asarray(x).astype(dtype) for x in results)

    def _attend(self, a: Arrays, o: Options, dtype: str, spoilt: bool) -> Any:
        def step(spoil: Spoil | None, x: Any) -> Any:
            return spoil(x, st) if spoil and spoilt else x

        q, k, v = (a[n] for n in "qkv")
        if o.get("gqa"):
            k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
        n, m = q.shape[-2], k.shape[-2]
        factor = q.dtype.type(q.shape[-1] ** -0.5 if o.get("scale") is None else o["scale"])
        s = factor * (q @ np.swapaxes(k, -1, -2))
        if o.get("softcap"):
            s = o["softcap"] * np.tanh(s / o["softcap"])
        if "bias" in a:
            s = s + a["bias"]
        apart = np.arange(m) - np.arange(n)[:, None]
        yes = np.ones((n, m), bool)
        if o.get("causal"):
            yes &= apart <= o.get("causal_offset", 0)
        left, right = o.get("window") or (None, None)
        yes &= apart >= -left if left is not None else True
        yes &= apart <= right if right is not None else True
        yes = np.broadcast_to(yes & a["mask"] if "mask" in a else yes, s.shape)
        yes = yes & ~np.isneginf(s)
        st = Steps(a, o, dtype, s, yes)
        none = ~yes.any(-1, keepdims=True)
        s = step(self.scores, np.where(yes, s, -np.inf))
        top = s.max(-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isneginf(top), 0, step(self.maximum, top))
        st.top = top
        p = step(self.powers, np.where(np.isneginf(s), 0, np.exp(s - top)))
        total = p.sum(-1, keepdims=True)
        w = np.where(none | (total == 0), 0, p / np.where(total == 0, 1, total))
        out = w @ np.where(np.isfinite(v), v, 0) if np.isfinite(v).all() else _seen(w, v, yes)
        if o.get("masked_rows") == "nan":
            out = np.where(none, np.nan, out)
        lse = np.where(none, -np.inf, top + np.log(np.where(total == 0, 1, total)))[..., 0]
        results = [out, step(self.lse, lse)] if o.get("return_lse") else [out]
        return self.after(results, a, o) if self.after and spoilt else results


def _seen(w: Any, v: Any, yes: Any) -> Any:
    return np.stack(
        [np.where(yes, w * v[..., None, :, c], 0).sum(-1) for c in range(v.shape[-1])], -1
    )


def _noise(p: Any, size: float) -> Any:
    return p * (1 + size * np.sin(37 * np.arange(p.size).reshape(p.shape)))


def _dropped(rate: float) -> Spoil:
    def powers(p: Any, _: Steps) -> Any:
        return p * (np.random.default_rng(0).random(p.shape) >= rate) / (1 - rate)

    return powers


def _split(block: int = 0) -> Spoil:
    """Parts merged by their sums, without the difference of their maxima."""

    def powers(p: Any, st: Steps) -> Any:
        m = p.shape[-1]
        s = np.where(st.yes, st.s, -np.inf)
        bounds = [*range(0, m, block), m] if block else [0, m // 2, m]
        for a, b in pairwise(bounds):
            top = s[..., a:b].max(-1, keepdims=True, initial=-np.inf)
            part = np.exp(s[..., a:b] - np.where(np.isneginf(top), 0, top))
            p[..., a:b] = np.where(st.yes[..., a:b], part, 0)
        return p

    return powers


def _unrescaled(block: int) -> Spoil:
    def powers(_: Any, st: Steps) -> Any:
        s = np.where(st.yes, st.s, -np.inf)
        best = np.maximum.accumulate(s, -1)
        at = np.minimum(np.arange(s.shape[-1]) // block * block + block, s.shape[-1]) - 1
        top = best[..., at]
        return np.where(st.yes, np.exp(s - np.where(np.isneginf(top), 0, top)), 0)

    return powers


def _two_halves(x: Any) -> Any:
    """As two numbers of bfloat16."""
    import ml_dtypes

    high = x.astype(ml_dtypes.bfloat16).astype(float)
    return high, (x - high).astype(ml_dtypes.bfloat16).astype(float)


def _without_low_low(_: Any, st: Steps) -> Any:
    q, k = (st.a[n] for n in "qk")
    if st.o.get("gqa") or "bias" in st.a or st.o.get("softcap") or not np.isfinite(k).all():
        return np.where(st.yes, st.s, -np.inf)
    (qh, ql), (kh, kl) = (_two_halves(x) for x in (q, k))
    factor = q.shape[-1] ** -0.5 if st.o.get("scale") is None else st.o["scale"]
    kt, lt = np.swapaxes(kh, -1, -2), np.swapaxes(kl, -1, -2)
    return np.where(st.yes, factor * (qh @ kt + qh @ lt + ql @ kt), -np.inf)


def _far(value: float) -> Spoil:
    return lambda s, st: np.where(st.yes, s, st.s - value)


def _drop_if(condition: Callable[[Arrays, Options], bool], *names: str) -> Any:
    def before(a: Arrays, o: Options) -> None:
        for name in names if condition(a, o) else ():
            a.pop(name, None)
            o.pop(name, None)

    return before


def _first_head_only(name: str) -> Any:
    def before(a: Arrays, _: Options) -> None:
        if name in a and a[name].ndim == 2 and a["q"].ndim > 2:
            more = np.zeros((*a["q"].shape[:-2], *a[name].shape[-2:]))
            more[(0,) * (a["q"].ndim - 2)] = a[name]
            a[name] = more

    return before


def _row(i: int, every: int = 0) -> Any:
    def after(r: Any, _: Arrays, __: Options) -> Any:
        rows = np.arange(r[0].shape[-2])
        bad = rows % every == i if every else rows == i
        r[0] = np.where(bad[:, None], np.roll(r[0], 1, -2), r[0])
        return r

    return after


def _none_is_zero(_: Arrays, o: Options) -> None:
    if o.get("window"):
        o["window"] = [side or 0 for side in o["window"]]


def _where(when: Callable[[Arrays], bool], change: Callable[[Any], Any]) -> Any:
    return lambda r, a, _: [change(r[0]) if when(a) else r[0], *r[1:]]


def _short_offsets(a: Arrays, _: Options) -> None:
    """Offsets in bytes, of float64, in 16 bits with a sign."""
    if a["q"].ndim == 2:
        n, d = a["q"].shape
        at = np.arange(n) * d * 8
        a["q"] = np.where((at >= 2**15)[:, None], a["q"][::-1], a["q"])


def _forward() -> Iterator[Trap]:
    def kernel(what: str, expected: str = "", dtypes: tuple[str, ...] = ALL, **steps: Any) -> Trap:
        return Kernel("attention", what, expected, dtypes=dtypes, **steps)

    yield kernel("exponentials 1e-5 off", powers=lambda p, _: _noise(p, 1e-5), dtypes=("float32",))
    yield kernel("exponentials 1e-6 off", powers=lambda p, _: _noise(p, 1e-6), dtypes=("float32",))
    yield kernel(
        "exponentials below -20 are 0",
        powers=lambda p, st: np.where(np.where(st.yes, st.s, 0) - st.top < -20, 0, p),
        dtypes=("float32", "float64"),
    )
    yield kernel(
        "scale 1e-6 off",
        before=lambda a, o: o.update(
            scale=(1 + 1e-6) * (o["scale"] if "scale" in o else a["q"].shape[-1] ** -0.5)
        ),
        dtypes=("float32",),
    )
    yield kernel("masked scores less 1e4", "lowered by 10000", scores=_far(1e4))
    yield kernel("masked scores less 1e4, in float16", scores=_far(1e4), dtypes=("float16",))
    yield kernel("masked scores less 100", scores=_far(100.0))
    yield kernel(
        "the maximum is of masked keys, too",
        maximum=lambda _, st: st.s.max(-1, keepdims=True, initial=-np.inf),
        powers=lambda p, st: np.where(np.where(st.yes, st.s, 0) - st.top < -87, 0, p),
        dtypes=("float32", "float16", "bfloat16"),
    )
    yield kernel(
        "the maximum starts at 0",
        maximum=lambda t, _: np.maximum(t, 0),
        powers=lambda p, st: np.where(st.s - st.top < -87, 0, p),
    )
    yield kernel(
        "the maximum starts at -5000",
        maximum=lambda t, _: np.maximum(t, -5000),
        powers=lambda p, st: np.where(st.s - st.top < -87, 0, p),
    )
    yield kernel(
        "weights of negative scores 1e-4 too large",
        powers=lambda p, st: np.where(st.s < 0, p * 1.0001, p),
        dtypes=("float32", "float64"),
    )
    yield kernel(
        "weights of negative scores 1 % too large",
        powers=lambda p, st: np.where(st.s < 0, p * 1.01, p),
    )
    yield kernel("weights of positive scores alone", powers=lambda p, st: np.where(st.s < 0, 0, p))
    for rate in (0.1, 1e-2):
        yield kernel(f"dropout of {rate} left on", powers=_dropped(rate))
    yield kernel("dropout of 1e-4 left on", powers=_dropped(1e-4))
    yield kernel("two halves merged by their sums", "without the difference of", powers=_split())
    for block in (16, 32, 64, 128):
        yield kernel(
            f"blocks of {block} merged by their sums",
            "without the difference",
            powers=_split(block),
        )
        yield kernel(f"sums not rescaled, blocks of {block}", powers=_unrescaled(block))
    yield kernel(
        "lse without bias and cap",
        lse=lambda _, st: (
            np.log(np.exp(st.a["q"] @ np.swapaxes(st.a["k"], -1, -2)).sum(-1))
            if not st.o.get("gqa")
            else _
        ),
    )
    yield kernel(
        "lse of masked keys, too",
        lse=lambda x, st: np.where(np.isneginf(x), x, np.log(np.exp(st.s).sum(-1))),
    )
    yield kernel(
        "lse rounded to 16 bits", lse=lambda x, _: x.astype(np.float16), dtypes=("float32",)
    )
    yield kernel(
        "NaN where there are no keys",
        after=_where(lambda a: not a["k"].shape[-2], lambda x: x * np.nan + np.nan),
    )
    yield kernel("a window's None is read as 0", before=_none_is_zero)
    for name in ("bias", "mask"):
        yield kernel(
            f"a {name} without heads reaches the first alone",
            before=_first_head_only(name) if name == "bias" else _first_mask,
        )
    for name in ("causal", "window", "bias", "mask", "softcap", "scale"):
        yield kernel(
            f"grouped heads ignore {name}", before=_drop_if(lambda _, o: bool(o.get("gqa")), name)
        )
    yield kernel("sums and products in float16", "", ("float16",), narrow=np.float16)
    yield kernel(
        "products in two halves of bfloat16 without the low ones'",
        scores=_without_low_low,
        dtypes=("float32",),
    )
    yield kernel("row 500 holds its neighbour's", after=_row(500))
    yield kernel("one row of 500 holds its neighbour's", after=_row(499, 500))
    yield kernel("one row of 8 holds its neighbour's", after=_row(7, 8))
    yield kernel("head dimensions of 72 and 104 lose their last 8 channels", before=_lose_channels)
    yield kernel(
        "d = 256 and several heads: 2 % off",
        after=_where(lambda a: a["q"].shape[-1] == 256 and a["q"].ndim > 2, lambda x: x * 1.02),
    )
    yield kernel(
        "NaN in a query comes out as 0",
        after=_where(lambda a: np.isnan(a["q"]).any(), np.nan_to_num),
    )
    yield kernel("offsets in bytes of 16 bits", before=_short_offsets, dtypes=("float64",))
    yield kernel("the last head has the scale squared", after=_last_head_squared)
    yield kernel("from row 64 on no mask", after=_unmasked_rows)
    strided = "strided keys are read as if contiguous"
    yield Lying("attention", strided, "", spoil=_as_if_contiguous)
    yield Lying("attention", "heads of stride 0 are read as 0", "", spoil=_heads_of_stride_0)


def _first_mask(a: Arrays, _: Options) -> None:
    if "mask" in a and a["mask"].ndim == 2 and a["q"].ndim > 2:
        more = np.ones((*a["q"].shape[:-2], *a["mask"].shape), bool)
        more[(0,) * (a["q"].ndim - 2)] = a["mask"]
        a["mask"] = more


def _lose_channels(a: Arrays, _: Options) -> None:
    d = a["q"].shape[-1]
    if d % 16 == 8 and d > 64:
        a["q"][..., -8:] = 0


def _last_head_squared(r: Any, a: Arrays, o: Options) -> Any:
    if r[0].ndim > 2:
        scale = scale_of(o, a["q"])
        r[0][..., -1, :, :] = again("attention", a, o, scale=scale**2)[0][..., -1, :, :]
    return r


def _unmasked_rows(r: Any, a: Arrays, o: Options) -> Any:
    if r[0].shape[-2] > 64:
        r[0][..., 64:, :] = again("attention", a, o, mask=None, causal=None)[0][..., 64:, :]
    return r


def _spread(arrays: Arrays) -> list[str]:
    return [n for n in ("k", "v", "bias") if n in arrays and not arrays[n].flags.c_contiguous]


def _as_if_contiguous(arrays: Arrays, a: Arrays, _: Options) -> None:
    for name in _spread(arrays):
        x = arrays[name]
        if min(x.strides) > 0:
            a[name] = x.ravel("K").reshape(x.shape).astype(float)


def _heads_of_stride_0(arrays: Arrays, a: Arrays, _: Options) -> None:
    for name in _spread(arrays):
        if 0 in arrays[name].strides:
            a[name][1:] = 0


KERNELS = tuple(_forward())
