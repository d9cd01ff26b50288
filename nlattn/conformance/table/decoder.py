"""What decoders ask of attention: lengths, offsets, sinks, and more. Few backends take it all."""

from __future__ import annotations

from nlattn.conformance.table.recipe import ALL, Recipe

_LEAD = (2, 3)
_LONGER = {"n": 9, "m": 21}
_CORNER = {"causal": True, "causal_offset": "bottom-right"}
_LENGTHS = ("key_lengths", "query_lengths")

DECODER = (
    Recipe("key-lengths", lead=(4, 2), extra=("key_lengths",), dtypes=ALL),
    Recipe("key-lengths-pages", {}, {"n": 3, "m": 75}, lead=(4, 2), extra=("key_lengths:pages",)),
    Recipe("key-lengths-nan", lead=(4, 2), extra=("key_lengths",), values="hidden NaN"),
    Recipe("query-lengths", {"return_lse": True}, lead=_LEAD, extra=("query_lengths",)),
    Recipe("lengths-corner", _CORNER, _LONGER, lead=(4, 2), extra=_LENGTHS, dtypes=ALL),
    Recipe("causal-corner", _CORNER),
    Recipe("causal-offsets", {"causal": True}, lead=_LEAD, extra=("causal_offset",)),
    Recipe(
        "window-offset",
        {"window": [2, 1], "window_about": "offset", "causal_offset": 3},
        _LONGER,
    ),
    Recipe(
        "window-corner",
        {**_CORNER, "window": [3, 0], "window_about": "offset"},
        _LONGER,
        lead=_LEAD,
        extra=("key_lengths",),
    ),
    Recipe("sinks", {"return_lse": True}, lead=_LEAD, extra=("sinks",), dtypes=ALL),
    Recipe("sinks-mask", {"scale": 0.6}, lead=_LEAD, extra=("sinks", "mask")),
    Recipe("sinks-softcap", {"softcap": 0.7}, lead=_LEAD, extra=("sinks",), values="negative"),
    Recipe("sinks-large", lead=_LEAD, extra=("sinks",), values="large"),
    Recipe("sinks-deep", {"return_lse": True}, lead=_LEAD, extra=("sinks",), values="deep"),
    Recipe("sinks-decode", sizes={"n": 1, "m": 70, "d": 8, "e": 4}, lead=(3,), extra=("sinks",)),
    Recipe("alibi", lead=_LEAD, extra=("alibi",), dtypes=ALL),
    Recipe(
        "alibi-gradient",
        {"alibi_gradient": True},
        lead=_LEAD,
        extra=("alibi",),
        kinds=("vjp", "jvp"),
    ),
    Recipe("alibi-corner", _CORNER, _LONGER, lead=_LEAD, extra=("alibi",)),
    Recipe("packed", lead=_LEAD, extra=("packed",), dtypes=ALL),
    Recipe("packed-corner", {**_CORNER, "return_lse": True}, _LONGER, extra=("packed",)),
    Recipe(
        "packed-window",
        {"window": [2, 0]},
        {"n": 40, "m": 60},
        lead=_LEAD,
        extra=("packed", "alibi", "sinks"),
    ),
    Recipe("lse-2", {"return_lse": True, "lse_base": "2"}, dtypes=ALL),
    Recipe("block-mask", {"mask_block": [4, 5]}, lead=_LEAD, extra=("mask:blocks",)),
    Recipe("block-mask-8", {"mask_block": 8}, {"n": 20, "m": 37}, extra=("mask:blocks",)),
    Recipe("dropout", {"dropout_scale": 1.25}, lead=_LEAD, extra=("dropout_mask",), dtypes=ALL),
    Recipe("packed-alike", sizes={"n": 24, "m": 24}, lead=_LEAD, extra=("packed:alike",)),
    Recipe("sinks-empty", {"return_lse": True}, lead=_LEAD, extra=("sinks", "mask")),
    Recipe("qk-norm", {"qk_norm": 1e-2}, lead=_LEAD, dtypes=ALL),
    Recipe("qk-norm-scale", {"qk_norm": 1e-6, "scale": 0.7}, values="offset"),
    Recipe(
        "decoder",
        {
            **_CORNER,
            "window": [5, 0],
            "window_about": "offset",
            "softcap": 2.0,
            "gqa": True,
            "return_lse": True,
            "lse_base": "2",
        },
        _LONGER,
        lead=(2, 6),
        extra=("groups:2", "sinks", "alibi", *_LENGTHS),
        dtypes=ALL,
    ),
)

TOGETHER = (
    (Recipe("scale", {"scale": 0.4}),),
    (Recipe("softcap", {"softcap": 1.5}),),
    (Recipe("qk-norm", {"qk_norm": 1e-2}),),
    (Recipe("sinks", extra=("sinks",)),),
    (Recipe("alibi", extra=("alibi",)),),
    (Recipe("bias", extra=("bias",)),),
    (
        Recipe("mask", extra=("mask",)),
        Recipe("blocks", {"mask_block": [3, 4]}, extra=("mask:blocks",)),
    ),
    (Recipe("dropout", {"dropout_scale": 1.25}, extra=("dropout_mask",)),),
    (
        Recipe("lse", {"return_lse": True}),
        Recipe("lse-2", {"return_lse": True, "lse_base": "2"}),
    ),
    (
        Recipe("key-lengths", extra=("key_lengths",)),
        Recipe("lengths", extra=_LENGTHS),
        Recipe("packed", extra=("packed",)),
    ),
    (
        Recipe("causal", {"causal": True}),
        Recipe("offset", {"causal": True, "causal_offset": 3}),
        Recipe("corner", _CORNER),
        Recipe("offsets", {"causal": True}, extra=("causal_offset",)),
    ),
    (
        Recipe("window", {"window": [2, 1]}),
        Recipe("window-moved", {"window": [3, 2], "window_about": "offset"}),
    ),
    (Recipe("rows-nan", {"masked_rows": "nan"}),),
    (
        Recipe("grouped", {"gqa": True}, lead=(2, 6), extra=("groups:2",)),
        Recipe("keys-shared", lead=_LEAD, extra=("shared:k v",)),
    ),
)
"""All that one call of a decoder may ask."""
