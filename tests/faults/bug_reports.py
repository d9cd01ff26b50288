"""Bug reports against attention kernels, most of 2025 and 2026, re-created from what they say.

They were written before the kit had seen them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.faults.spoilt import Arrays, Lying, Options, Results, Trap, again, keep_only, sizes

LOG_2 = float(np.log(2))


def _plain_mask(o: Options) -> bool:
    return "mask_block" not in o


# -- attention, forward


def _wider(_: Arrays, o: Options) -> None:
    left, right = o.get("window") or (None, None)
    if left is not None:
        o["window"] = [left + 1, right]


def _window_about_corner(a: Arrays, o: Options) -> None:
    if o.get("window") and not o.get("causal") and _plain_mask(o):
        (left, right), (n, m) = o.pop("window"), sizes(a)
        keep_only(
            a,
            lambda i, j: (
                (left is None or i + m - n - left <= j) & (right is None or j <= i + m - n + right)
            ),
        )


def _long_window(a: Arrays, o: Options) -> None:
    left = (o.get("window") or (None, None))[0]
    if left is not None and left >= sizes(a)[1]:
        o.pop("window")
        o.pop("causal", None)


def _sinks_by_row(r: Results, a: Arrays, o: Options) -> Results:
    if "sinks" not in a:
        return r
    heads = len(a["sinks"])
    each = [again("attention", a, o, sinks=np.full_like(a["sinks"], s)) for s in a["sinks"]]
    n = a["q"].shape[-2]
    rows = (np.arange(heads)[:, None] * n + np.arange(n)) % heads
    out = np.stack([x[0] for x in each])
    h, i = np.ogrid[:heads, :n]
    r[0] = np.moveaxis(out, 0, -4)[..., rows, h, i, :]
    return r


def _sink_beyond(r: Results, a: Arrays, o: Options) -> Results:
    """A sink that is no part of the maximum: its power overflows."""
    if "sinks" in a and len(r) > 1:
        bare = again("attention", a, o, sinks=None, return_lse=True, lse_base=None)[1]
        over = np.asarray(a["sinks"])[..., None] - bare > 88
        r[1] = np.where(over & np.isfinite(bare), np.inf, r[1])
    return r


def _empty_with_sink(r: Results, a: Arrays, o: Options) -> Results:
    if "sinks" in a and len(r) > 1:
        bare = again("attention", a, o, sinks=None, return_lse=True, lse_base=None)[1]
        r[1] = np.where(np.isneginf(bare), -np.inf, r[1])
    return r


def _turned_lse(r: Results, _: Arrays, o: Options) -> Results:
    if o.get("gqa") and len(r) > 1:
        *lead, h, n = r[1].shape
        r[1] = np.swapaxes(r[1], -1, -2).reshape(*lead, h, n)
    return r


def _empty_part(r: Results, a: Arrays, o: Options) -> Results:
    """Half of the keys hold none that a query sees: its part counts with a lse of 0."""
    n, m = sizes(a)
    if "mask_block" in o or m < 2 or o.get("lse_base") or "sinks" in a or len(r) > 1:
        return r
    left, right = (np.arange(m) < m // 2, np.arange(m) >= m // 2)
    yes = a.get("mask", np.ones((n, m), bool))
    lse = [again("attention", a, o, mask=yes & half, return_lse=True)[1] for half in (left, right)]
    for mine, other in (lse, lse[::-1]):
        alone = np.isneginf(other) & np.isfinite(mine)
        share = 1 / (1 + np.exp(-np.where(alone, mine, 0)))
        r[0] = np.where(alone[..., None], share[..., None] * r[0], r[0])
    return r


def _one_of_32(arrays: Arrays, a: Arrays, o: Options) -> None:
    """A tail of one key is not read, where heads are of stride 0 and there is a mask."""
    m = arrays["k"].shape[-2]
    if 0 in arrays["k"].strides and m % 32 == 1 and m > 1 and "mask" in a and _plain_mask(o):
        keep_only(a, lambda _, j: j < m - 1)


def _page_beyond(a: Arrays, _: Options) -> None:
    if "key_lengths" in a:
        x, m = a["key_lengths"], sizes(a)[1]
        a["key_lengths"] = np.where((x % 16 == 0) & (x > 0), np.minimum(x + 16, m), x)


def _cap_of_base_2(_: Arrays, o: Options) -> None:
    if o.get("softcap"):
        o["softcap"] *= LOG_2


def _bias_of_base_2(a: Arrays, _: Options) -> None:
    if "bias" in a:
        a["bias"] = a["bias"] * LOG_2


def _tile_limit(a: Arrays, o: Options) -> None:
    """Of each eight columns at the diagonal at most two are seen."""
    offset = o.get("causal_offset", 0)
    if o.get("causal") and isinstance(offset, int) and _plain_mask(o) and "packed" not in a:
        keep_only(
            a,
            lambda i, j: (
                j
                < np.maximum(i + 1 + offset, 0) // 8 * 8
                + np.minimum(np.maximum(i + 1 + offset, 0) % 8, 2)
            ),
        )


def _mask_or_causal(a: Arrays, o: Options) -> None:
    if o.get("causal"):
        a.pop("mask", None)
        o.pop("mask_block", None)


def _slopes_of_first(a: Arrays, _: Options) -> None:
    if "alibi" in a:
        a["alibi"] = np.full_like(a["alibi"], np.ravel(a["alibi"])[0])


def _no_rows_beyond(r: Results, a: Arrays, o: Options) -> Results:
    n, m = sizes(a)
    if o.get("causal") and n > m:
        r[0][..., m:, :] = 0
    return r


def _no_causal_corner(a: Arrays, o: Options) -> None:
    """A mask aligned to the other corner where there are not as many queries as keys."""
    n, m = sizes(a)
    if o.get("causal") and not o.get("causal_offset") and n != m:
        o["causal_offset"] = m - n


def _whole_tiles(r: Results, a: Arrays, _: Options) -> Results:
    n, m = sizes(a)
    if n % 128 or m % 128:
        r[0][..., n // 128 * 128 :, :] *= 0.5
    return r


def _forward() -> Iterator[Trap]:
    def trap(what: str, before: Any = None, after: Any = None, said: str = "") -> Trap:
        return Trap("attention", what, said, before, after)

    yield trap("a window one key wider on the left (transformers#39408)", _wider)
    yield trap("a window about the last key (flash-attention#2199)", _window_about_corner)
    yield trap("no causality with a window beyond all keys (libflash_attn#11)", _long_window)
    yield trap("sinks by row mod heads (modular#6591)", None, _sinks_by_row)
    yield trap("sinks are no part of the maximum (flash-attention#2752)", None, _sink_beyond)
    yield trap("lse of a sink alone is -inf (flash-attention#2706)", None, _empty_with_sink)
    yield trap("lse of grouped heads turned (vllm/flash-attention#87)", None, _turned_lse)
    yield trap("an empty part counts with an lse of 0 (vllm#49294)", None, _empty_part)
    yield Lying("attention", "a tail of one key (pytorch#191937)", "", spoil=_one_of_32)
    yield trap("a page beyond lengths of whole pages (pegainfer#291)", _page_beyond)
    yield trap("the softcap in units of base 2 (sgl-kernel-xpu#491)", _cap_of_base_2)
    yield trap("the bias in units of base 2 (segment-anything-fast#71)", _bias_of_base_2)
    yield trap("two of each eight columns at the diagonal (flash-attention#1915)", _tile_limit)
    yield trap("with causality no mask (keras#22910)", _mask_or_causal)
    yield trap("slopes of the first head (flash-attention#1585)", _slopes_of_first)
    yield trap("no rows beyond the keys if causal (flash-attention#1778)", None, _no_rows_beyond)
    yield trap("causal from the other corner (cutlass#2336)", _no_causal_corner, said="corner")
    yield trap("whole tiles of 128 alone (cutlass#2428)", None, _whole_tiles)


# -- attention, gradient


def _heads_mod(r: Results, a: Arrays, o: Options) -> Results:
    """Gradients of grouped heads are added to head h mod G, not h // group."""
    if not o.get("gqa"):
        return r
    H, G = a["q"].shape[-3], a["k"].shape[-3]
    wide = {n: np.repeat(a[n], H // G, -3) for n in "kv"}
    apart = again("attention_vjp", {**a, **wide}, o, gqa=None)
    for at in (1, 2):
        x = apart[at]
        r[at] = np.stack([x[..., g::G, :, :].sum(-3) for g in range(G)], -3)
    return r


def _narrow_values(r: Results, a: Arrays, o: Options) -> Results:
    d, e = a["q"].shape[-1], a["v"].shape[-1]
    if d < e:
        r[0] = again("attention_vjp", a, o, v=a["v"][..., :d], dout=a["dout"][..., :d])[0]
    return r


def _as_keys_lie(r: Results, arrays: Arrays) -> Results:
    k = arrays["k"]
    if k.ndim > 2 and not k.flags.c_contiguous and min(k.strides) > 0:
        order = np.argsort([-s for s in k.strides], kind="stable")
        r[1] = r[1].transpose(order).copy().reshape(r[1].shape)
    return r


def _always_causal(a: Arrays, o: Options) -> None:
    n, m = sizes(a)
    if n == m:
        o["causal"] = True


def _nan_of_both(r: Results, a: Arrays, _: Options) -> Results:
    if "bias" in a and "mask" in a and sizes(a)[0] % 128:
        r[0][...] = np.nan
    return r


def _store_beyond(r: Results, a: Arrays, _: Options) -> Results:
    """A tile of 16 keys is stored whole: zeros reach the first rows of the next head."""
    m = sizes(a)[1]
    if a["k"].ndim > 2 and m % 16:
        for x in r[1:3]:
            flat = x.reshape(-1, *x.shape[-2:])
            flat[1:, : 16 - m % 16] = 0
    return r


def _no_dsinks(r: Results, a: Arrays, _: Options) -> Results:
    return [*r[:-1], 0 * r[-1]] if "sinks" in a else r


def _nan_of_nothing(r: Results, a: Arrays, o: Options) -> Results:
    given = {n: x for n, x in a.items() if n not in ("dout", "dlse", "sinks")}
    lse = again("attention", given, {**o, "return_lse": True})[1]
    r[0] = np.where(np.isneginf(lse)[..., None], np.nan, r[0])
    return r


def _only_dq(r: Results, _: Arrays, __: Options) -> Results:
    return [1.096 * r[0], *r[1:]]


def _of_64(r: Results, a: Arrays, _: Options) -> Results:
    return [150 * x for x in r] if a["q"].shape[-1] == 64 else r


def _gradient() -> Iterator[Trap]:
    def trap(what: str, before: Any = None, after: Any = None, said: str = "") -> Trap:
        return Trap("attention_vjp", what, said, before, after)

    yield trap("grouped heads mod their number (native-sparse-attention#27)", None, _heads_mod)
    yield trap("dq of the first d channels of values (native-sparse#27)", None, _narrow_values)
    yield Lying("attention_vjp", "dk as keys lie (pytorch#146377)", "", results=_as_keys_lie)
    yield trap("always causal (triton#5660)", _always_causal, said="causal")
    yield trap("NaN of bias and mask together (pytorch#153799)", None, _nan_of_both)
    yield trap("tiles stored whole (native-sparse-attention-pytorch#33)", None, _store_beyond)
    yield trap("no gradient of sinks (TransformerEngine#2541)", None, _no_dsinks, "dsinks is 0")
    yield trap("NaN of rows of nothing (cudnn-frontend#676)", None, _nan_of_nothing, "NaN")
    yield trap("dq 9.6 % off, dv exact (tt-metal#53205)", None, _only_dq, "dq is ours times 1.096")
    yield trap("d = 64 is 150 times too large (flash-attention#2623)", None, _of_64, "times 150")


# -- others


def _by_query(a: Arrays, o: Options) -> tuple[Any, Any]:
    """Gradients of keys and values from each query alone, (n, ..., m, d) and (n, ..., m, e)."""
    each = []
    for i in range(a["q"].shape[-2]):
        dout = np.zeros_like(a["dout"])
        dout[..., i, :] = a["dout"][..., i, :]
        more = {}
        if "dlse" in a:
            more["dlse"] = np.where(np.arange(a["q"].shape[-2]) == i, a["dlse"], 0)
        each.append(again("sparse_attention_vjp", {**a, **more}, o, dout=dout)[1:3])
    return np.stack([x[0] for x in each]), np.stack([x[1] for x in each])


def _last_writer(r: Results, a: Arrays, o: Options) -> Results:
    """Queries that chose one key overwrite each other's gradients of it."""
    if a["q"].shape[-2] > 20:
        return r
    for at, parts in zip((1, 2), _by_query(a, o), strict=True):
        some = (parts != 0).any(-1)
        last = len(parts) - 1 - np.argmax(some[::-1], 0)
        r[at] = np.take_along_axis(parts, last[None, ..., None], 0)[0]
    return r


def _columns(most: int) -> Any:
    """Gradients of keys drop what stands in a row's list from some column on."""

    def after(r: Results, a: Arrays, o: Options) -> Results:
        n = a["q"].shape[-2]
        if n > 20 or a["q"].ndim > 2:
            return r
        indptr, indices = a["support.indptr"], a["support.indices"]
        for at, parts in zip((1, 2), _by_query(a, o), strict=True):
            for i in range(n):
                parts[i][indices[indptr[i] : indptr[i + 1]][most:]] = 0
            r[at] = parts.sum(0)
        return r

    return after


def _unscaled_dq(r: Results, a: Arrays, _: Options) -> Results:
    return [r[0] * a["q"].shape[-1] ** 0.25, *r[1:]]


def _squared_variance(_: Arrays, o: Options) -> None:
    if o.get("sigma"):
        o["sigma"] = o["sigma"] ** 2


def _size_of_patch(_: Arrays, o: Options) -> None:
    if o.get("h"):
        o["h"] = o["h"] * (o.get("patch", 3) + 1) / o.get("patch", 3)


def _least_scores(a: Arrays, _: Options) -> None:
    a["q"] = -a["q"]


def _partial_tile(r: Results, a: Arrays, _: Options) -> Results:
    if a["q"].shape[-2] % 8:
        r[2][..., -1, :] = np.nan
    return r


def _others() -> Iterator[Trap]:
    sparse = "sparse_attention_vjp"
    yield Trap(sparse, "the last query alone (cudnn-frontend#385)", "", None, _last_writer)
    for dtype in ("float32", "bfloat16"):
        only = f"the last query alone in {dtype} (cudnn-frontend#385)"
        yield Trap(sparse, only, "", None, _last_writer, (dtype,))
    yield Trap(sparse, "columns beyond 8 dropped (cudnn-frontend#298)", "", None, _columns(8))
    yield Trap(sparse, "no gradient of sinks (cudnn-frontend#676)", "dsinks is 0", None, _no_dsinks)
    yield Trap("favor_attention_vjp", "dq without the scale (fla#47)", "", None, _unscaled_dq)
    yield Trap("nl_means", "the variance squared (scikit-image#2922)", "", _squared_variance)
    yield Trap("nl_means", "patches one too large (scikit-image#5922)", "", _size_of_patch)
    yield Trap("nearest_keys", "the least scores (faiss#2205)", "", _least_scores)
    near = "neighbourhood_attention_vjp"
    yield Trap(near, "NaN of partial tiles (NATTEN#341)", "NaN", None, _partial_tile)


BUG_REPORTS = (*_forward(), *_gradient(), *_others())
