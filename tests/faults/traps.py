"""Traps of real kernels and bug reports: what is right but for one place, size, dtype or option.

They share no code with the catalogue of wrong variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nlattn.conformance.case import scale_of
from tests.faults.spoilt import ALL, Arrays, Trap, keep_only


def _n(a: Arrays) -> int:
    return int(a["q"].shape[-2])


def _m(a: Arrays) -> int:
    return int(a["k"].shape[-2])


def _heads(a: Arrays) -> bool:
    return bool(a["q"].ndim > 2)


def _forbid(
    keep: Callable[[Any, Any, int], Any], when: Callable[[Arrays], bool] = lambda a: True
) -> Any:
    """Keys that are left out, by ``keep(i, j, m)``."""

    def before(a: Arrays, _: dict[str, Any]) -> None:
        if when(a) and _m(a):
            keep_only(a, lambda i, j: keep(i, j, _m(a)))

    return before


def _drop(*names: str, when: Callable[[Arrays], bool] = lambda a: True) -> Any:
    def before(a: Arrays, o: dict[str, Any]) -> None:
        if when(a):
            for name in names:
                o.pop(name, None)
                a.pop(name, None)

    return before


def _times(factor: float, where: Callable[[Any], Any] = lambda x: ..., which: int = 0) -> Any:
    def after(r: Any, _: Arrays, __: dict[str, Any]) -> Any:
        r[which][where(r[which])] *= factor
        return r

    return after


def _rows(change: Callable[[Any], None], when: Callable[[Arrays], bool] = lambda a: True) -> Any:
    def after(r: Any, a: Arrays, _: dict[str, Any]) -> Any:
        if when(a) and r[0].ndim >= 2 and r[0].size:
            change(r[0])
        return r

    return after


def _swap_pairs(x: Any) -> None:
    even = x.shape[-2] // 2 * 2
    x[..., :even, :] = (
        x[..., :even, :]
        .reshape(*x.shape[:-2], -1, 2, x.shape[-1])[..., ::-1, :]
        .reshape(*x.shape[:-2], even, x.shape[-1])
    )


def _neighbour(x: Any) -> None:
    if x.shape[-2] > 1:
        x[..., -1, :] = x[..., -2, :]


def _set(value: float, at: Callable[[Any], Any]) -> Any:
    def change(x: Any) -> None:
        x[at(x)] = value

    return _rows(change)


def _first_head(name: str) -> Any:
    def before(a: Arrays, _: dict[str, Any]) -> None:
        if _heads(a) and name in a and a[name].ndim > 2:
            a[name] = np.broadcast_to(a[name][(0,) * (a[name].ndim - 2)], a[name].shape).copy()

    return before


def _lse(change: Callable[[Any], Any]) -> Any:
    def after(r: Any, _: Arrays, o: dict[str, Any]) -> Any:
        return [r[0], change(r[1])] if o.get("return_lse") else r

    return after


def _short_channels(a: Arrays, o: dict[str, Any]) -> None:
    d = a["q"].shape[-1]
    if d % 8 == 0 and d > 4:
        a["q"][..., d - 4 :] = 0
        o["scale"] = scale_of(o, a["q"])


def _all_nan_to_zero(r: Any, _: Arrays, __: dict[str, Any]) -> Any:
    return [np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf) for x in r]


def _from_head_13(r: Any, _: Arrays, __: dict[str, Any]) -> Any:
    for x in r:
        if x.ndim > 2 and x.shape[0] > 12:
            x[12:] = x[0]
    return r


def _upto(most: int) -> Any:
    return _forbid(lambda i, j, m: j < most)


def _rows_upto(most: int) -> Any:
    return _set(0.0, lambda x: (..., slice(most, None), slice(None)))


def _attention(op: str) -> Iterator[Trap]:
    def trap(
        what: str, before: Any = None, after: Any = None, expected: str = "", **o: Any
    ) -> Trap:
        return Trap(op, what, expected, before, after, **o)

    for most in (32, 64, 128, 256, 512, 1024):
        yield trap(f"keys beyond {most} left out", _upto(most), expected="")
        yield trap(f"queries beyond {most} left out", None, _rows_upto(most), expected="0 ")
    for block in (8, 16, 32, 64, 128):
        yield trap(
            f"the last part of a block of {block} keys left out",
            _forbid(lambda i, j, m, b=block: (j < m // b * b) | (m < b)),
            expected=f"last whole block of {block}",
        )
    yield trap(
        "the last key left out",
        _forbid(lambda i, j, m: j < max(m - 1, 1)),
        expected="without the last key",
    )
    yield trap(
        "the first key left out",
        _forbid(lambda i, j, m: (j > 0) | (m == 1)),
        expected="without the first key",
    )
    yield trap(
        "the last key left out where there are more than 16",
        _forbid(lambda i, j, m: (j < m - 1) | (m <= 16)),
    )
    yield trap(
        "the last key left out where m is even", _forbid(lambda i, j, m: (j < m - 1) | (m % 2 == 1))
    )
    yield trap(
        "the last key left out in decode",
        _forbid(lambda i, j, m: (j < m - 1) | (m == 1), lambda a: _n(a) == 1),
    )
    yield trap("every 16th key left out", _forbid(lambda i, j, m: j % 16 != 15))
    yield trap("the diagonal left out", _forbid(lambda i, j, m: (i != j) | (m == 1)))
    for name in ("window", "causal", "softcap", "scale", "bias", "mask"):
        yield trap(f"with heads, no {name}", _drop(name, when=_heads))
    for name in ("window", "causal", "softcap", "scale", "bias", "mask", "masked_rows"):
        yield trap(f"no {name}", _drop(name))
    for name in ("bias", "mask", "k", "v"):
        yield trap(f"all heads use {name} of head 0", _first_head(name))
    yield trap("d a multiple of 8: four channels are not read", _short_channels)
    yield trap("1 % too large", after=_times(1.01), expected="ours times 1.01")
    yield trap(
        "3 % too large in float16",
        after=_times(1.03),
        expected="ours times 1.03",
        dtypes=("float16",),
    )
    yield trap("10 % too large in bfloat16", after=_times(1.1), dtypes=("bfloat16",))
    yield trap(
        "1e-3 too large in float32",
        after=_times(1.001),
        dtypes=("float32",),
        expected="ours times 1.001",
    )
    yield trap(
        "1e-4 too large in float32",
        after=_times(1.0001),
        dtypes=("float32",),
        expected="ours times 1.0001",
    )
    yield trap(
        "1e-5 too large in float32", after=_times(1.00001), dtypes=("float32",), expected="1.00001"
    )
    yield trap(
        "1e-6 too large in float32", after=_times(1.000001), dtypes=("float32",), expected=""
    )
    for dtype in ALL:
        yield trap(f"zeros in {dtype}", after=_times(0.0), dtypes=(dtype,), expected="0 everywhere")
    yield trap("heads from the 13th are head 0", after=_from_head_13)
    yield trap("rows in pairs swapped", after=_rows(_swap_pairs, lambda a: _n(a) % 2 == 0))
    yield trap("the last row holds its neighbour's", after=_rows(_neighbour))
    yield trap("the last head is 0", after=_rows(lambda x: x[-1:].fill(0) if x.ndim > 2 else None))
    yield trap("the last channel is 0", after=_set(0.0, lambda x: (..., -1)))
    yield trap("one element off by a quarter", after=_times(1.25, lambda x: (-1,) * x.ndim))
    yield trap("one NaN", after=_set(np.nan, lambda x: (0,) * x.ndim))
    yield trap(
        "rows beyond the last whole block of 8",
        after=_rows(lambda x: x[..., x.shape[-2] // 8 * 8 :, :].fill(0)),
    )
    yield trap("NaN comes out as 0", after=_all_nan_to_zero)


def _gradient() -> Iterator[Trap]:
    op = "attention_vjp"
    for which, name in enumerate(("dq", "dk", "dv")):
        for dtype, factor in (
            ("float16", 1.1),
            ("bfloat16", 1.2),
            ("float32", 1.00001),
            ("float64", 1 + 1e-9),
        ):
            yield Trap(
                op,
                f"{name} times {factor} in {dtype}",
                f"{name} is",
                None,
                _times(factor, which=which),
                (dtype,),
            )
        yield Trap(op, f"{name} is 0", f"{name} is 0", None, _times(0.0, which=which))
        yield Trap(
            op,
            f"the last row of {name} is 0",
            "",
            None,
            _times(0.0, lambda x: (..., -1, slice(None)), which),
        )
        yield Trap(
            op,
            f"{name} without its tail of 64",
            "",
            None,
            _times(
                0.0,
                lambda x: (..., slice(x.shape[-2] // 64 * 64 or None, None), slice(None)),
                which,
            ),
        )
    yield Trap(op, "gradient of lse ignored", "without the gradient of lse", _drop("dlse"))
    yield Trap(
        op,
        "gradient of lse turned",
        "",
        lambda a, o: a.update(dlse=-a["dlse"]) if "dlse" in a else None,
    )
    yield Trap(
        op,
        "dbias transposed where n = m",
        "",
        None,
        lambda r, a, o: [
            *r[:3],
            *(
                np.swapaxes(x, -1, -2) if x.ndim > 1 and x.shape[-1] == x.shape[-2] else x
                for x in r[3:]
            ),
        ],
    )
    yield Trap(
        op,
        "dbias times 2",
        "dbias is ours times 2",
        None,
        lambda r, a, o: [*r[:3], *(2 * x for x in r[3:])],
    )
    for name in ("window", "causal", "softcap", "scale", "mask"):
        yield Trap(op, f"with heads, no {name}", "", _drop(name, when=_heads))
        yield Trap(op, f"no {name}", name, _drop(name))


def _other() -> Iterator[Trap]:
    for op in ("sparse_attention", "scram", "lev_attention", "attention"):
        yield Trap(op, "lse in base 2", "log 2", None, _lse(lambda x: x / np.log(2)))
        if op != "lev_attention":
            yield Trap(
                op,
                "lse 0 where a query has no key",
                "",
                None,
                _lse(lambda x: np.where(np.isneginf(x), 0, x)),
            )
        yield Trap(op, "lse without the scale's share", "", None, _lse(lambda x: x + 0.01))
    options = {
        "efficient_attention": ("mask", "normalization"), "favor_attention": ("causal", "eps", "scale", "kernel", "denominator_eps", "stabilizer"),
        "enla": ("eps", "floor", "amplification"), "qna": ("bias", "gate", "stride", "padding", "scale"), "psal": ("aggregate", "dedup", "border"),
        "cross_scale_attention": ("overlap", "crop", "assign", "floor"), "sparse_attention": ("weight", "power", "bandwidth", "scale"),
        "heavy_attention": ("p", "causal"), "universal_set": ("p", "causal"), "nl_means": ("h", "self_weight", "aggregate"),
        "scram": ("weight", "scale"), "lev_attention": ("scale",), "nonlocal_mean": ("scale",),
    }  # fmt: skip
    for op, names in options.items():
        for name in names:
            yield Trap(op, f"{name} ignored", "", _drop(name))
    del options["universal_set"]
    for op in (
        *options,
        "refined_self_attention",
        "leverage_scores",
        "lewis_weights",
        "qna_upsample",
    ):
        yield Trap(op, "1e-4 too large in float32", "", None, _times(1.0001), ("float32",))
        yield Trap(op, "zeros in float32", "0 everywhere", None, _times(0.0), ("float32",))
        if op not in ("heavy_attention", "nl_means", "lewis_weights", "leverage_scores"):
            yield Trap(op, "zeros in bfloat16", "0 everywhere", None, _times(0.0), ("bfloat16",))


TRAPS = (*_attention("attention"), *_gradient(), *_other())
