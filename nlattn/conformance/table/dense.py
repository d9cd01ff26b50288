"""Attention to all keys."""

from __future__ import annotations

from nlattn.conformance.table.decoder import DECODER, TOGETHER
from nlattn.conformance.table.recipe import ALL, TILES, Recipe
from nlattn.conformance.table.row import Cases, Growth, Law, OpSpec, Softmax

_MISSED = {"return_lse": True, "return_missed": True}
_TOLERANCES = (
    *(
        Recipe(
            f"{label}-{tolerance:g}",
            {"tolerance": tolerance, **({"scale": scale} if scale else {}), **more},
            {"n": 9, "m": m, "d": 4, "e": 3 if label in ("within", "offset") else m},
            values={"within": "normal", "offset": "offset"}.get(label, "ones of v"),
            kinds=("forward",),
        )
        for tolerance, scale, m in ((1e-6, 4.0, 520), (1e-3, 1.5, 300), (0.1, None, 150))
        for label, more in (("within", {}), ("offset", {}), ("shares", {}), ("missed", _MISSED))
    ),
    Recipe(
        "missed-masked",
        {"tolerance": 1e-2, "causal": True, **_MISSED},
        {"n": 70, "m": 70, "e": 70},
        lead=(2,),
        extra=("mask",),
        values="ones of v",
        kinds=("forward",),
    ),
    Recipe(
        "missed-bias",
        {"tolerance": 1e-3, **_MISSED},
        {"n": 9, "m": 300, "d": 4, "e": 300},
        extra=("bias:keys",),
        values="ones of v",
        kinds=("forward",),
    ),
    Recipe(
        "missed-gaussian",
        {"tolerance": 1e-3, "weight": "gaussian", "bandwidth": 1.5, **_MISSED},
        {"n": 9, "m": 200, "e": 200, "d": 3},
        values="ones of v",
        kinds=("forward",),
    ),
)
"""Values of 0 and 1 show every weight."""

ROWS = (
    OpSpec(
        name="attention",
        stem="dense",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over all keys",
        cost="n m (d + e)",
        memory="O(n e)",
        exact=True,
        status="paper",
        source="vaswani2017",
        has_jvp=True,
        cases=Cases(
            stages=True,
            quantised=("q", "k", "v"),
            large=("queries", "outputs", "keys", "values", "elements", "band"),
            differentiable=("bias", "sinks"),
            differentiable_if={"alibi": "alibi_gradient"},
            values=("constant", "subnormal"),
            zeros=("scale",),
            choices=(
                (Recipe("scale", {"scale": 0.3}),),
                (Recipe("softcap", {"softcap": 1.5}),),
                (
                    Recipe("causal", {"causal": True}),
                    Recipe("causal-offset", {"causal": True, "causal_offset": 3}),
                    Recipe("causal-nothing", {"causal": True, "causal_offset": -3}),
                ),
                (
                    Recipe("window", {"window": [2, 1]}),
                    Recipe("window-left", {"window": [3, None]}),
                    Recipe("window-right", {"window": [None, 0]}),
                ),
                (
                    Recipe("mask", extra=("mask",)),
                    Recipe("mask-shared", extra=("mask:shared",)),
                    Recipe("mask-keys", extra=("mask:keys",)),
                    Recipe("mask-poison", extra=("mask:columns",), values="poison"),
                ),
                (
                    Recipe("bias", extra=("bias",)),
                    Recipe("bias-inf", extra=("bias:inf",)),
                    Recipe("bias-shared", extra=("bias:shared",)),
                    Recipe("bias-keys", extra=("bias:keys",)),
                ),
                (Recipe("rows-nan", {"masked_rows": "nan"}),),
                (Recipe("lse", {"return_lse": True}),),
            ),
            together=TOGETHER,
            beside=Recipe("", lead=(2, 3)),
            heads=(
                Recipe("grouped", {"gqa": True}, lead=(2, 6), extra=("groups:2",), dtypes=ALL),
                Recipe("multi-query", {"gqa": True}, lead=(6,), extra=("groups:1",)),
            ),
            recipes=(
                Recipe(
                    "multi-query-512",
                    {"gqa": True},
                    sizes={"n": 2, "m": 9, "d": 4, "e": 4},
                    lead=(512,),
                    extra=("groups:1",),
                    dtypes=("float16", "bfloat16"),
                    kinds=("vjp",),
                ),
                Recipe("causal-tiles", {"causal": True}, sizes=TILES, tier="standard"),
                Recipe("window-causal", {"window": [2, 4], "causal": True}),
                Recipe("window-beyond", {"window": [20, 20]}),
                Recipe("window-beyond-causal", {"window": [20, 2], "causal": True}),
                Recipe("window-itself", {"window": [0, 0]}),
                Recipe("bias-nothing", {"return_lse": True}, extra=("bias:nothing",)),
                Recipe(
                    "nan-rows",
                    {"masked_rows": "nan", "return_lse": True},
                    extra=("mask",),
                    kinds=("forward",),
                ),
                Recipe(
                    "everything",
                    {
                        "softcap": 2.0,
                        "causal": True,
                        "causal_offset": 2,
                        "window": [5, 3],
                        "scale": 0.7,
                    },
                    extra=("bias", "mask"),
                ),
                Recipe("large-mask", extra=("mask",), values="large", dtypes=ALL),
                Recipe("deep-mask", extra=("mask",), values="deep"),
                Recipe("rising-long", values="rising", sizes={"n": 5, "m": 300}, dtypes=ALL),
                Recipe(
                    "falling-causal",
                    {"causal": True},
                    values="falling",
                    sizes={"n": 70, "m": 150},
                    dtypes=ALL,
                ),
                Recipe("last-long", values="last", sizes={"n": 5, "m": 300}, dtypes=ALL),
                Recipe("mask-nan", extra=("mask:columns",), values="hidden NaN", dtypes=ALL),
                Recipe(
                    "mask-nan-keys",
                    extra=("mask:columns",),
                    values="hidden NaN keys",
                    dtypes=ALL,
                    kinds=("forward",),
                ),
                Recipe("nan", values="NaN", dtypes=ALL, kinds=("forward",)),
                Recipe(
                    "broadcast-mask-bias", lead=(2, 3), extra=("mask", "bias"), layout="broadcast"
                ),
                Recipe(
                    "broadcast-mask-tail",
                    lead=(2, 3),
                    extra=("mask",),
                    layout="broadcast",
                    sizes={"n": 9, "m": 129},
                    dtypes=ALL,
                ),
                Recipe("mask-blocks", extra=("mask",), sizes={"n": 70, "m": 150}, dtypes=ALL),
                Recipe("bias-blocks", extra=("bias",), sizes={"n": 70, "m": 150}, dtypes=ALL),
                Recipe("window-blocks", {"window": [40, 25]}, sizes={"n": 150, "m": 140}),
                Recipe("no-keys", sizes={"m": 0}),
                Recipe("no-heads", lead=(0, 2), tier="standard"),
                Recipe("integers", values="ties"),
                *DECODER,
            ),
        ),
        growth=Growth(
            Law("n*m", "n*m*(d + e)", "n*m*(d + e) + n*(d + e)"), scaled=True, separable=True
        ),
        behaviour=("keys", "linear"),
        softmax=Softmax(own=True),
        wrong=("softmax", "dense options", "triples"),
    ),
    OpSpec(
        name="nonlocal_mean",
        stem="nonlocal_mean",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax, plain products, or relu of a sum, over all keys",
        cost="n m (d + e), or linear",
        memory="O(n e)",
        exact=True,
        status="paper",
        source="wang2018",
        has_jvp=True,
        cases=Cases(
            differentiable=("weight",),
            zeros=("scale",),
            choices=(
                (
                    Recipe("gaussian", {"pairwise": "gaussian"}),
                    Recipe("scale", {"scale": 0.6}),
                    Recipe("dot-product", {"pairwise": "dot_product"}),
                    Recipe("concatenation", {"pairwise": "concatenation"}, extra=("weight",)),
                ),
            ),
            recipes=(
                Recipe("gaussian-scale", {"pairwise": "gaussian", "scale": 0.4}, lead=(2,)),
                Recipe(
                    "concatenation-zeros",
                    {"pairwise": "concatenation"},
                    extra=("weight",),
                    values="zeros",
                    dtypes=("float32",),
                ),
                Recipe(
                    "dot-product-tiles", {"pairwise": "dot_product"}, sizes=TILES, tier="standard"
                ),
            ),
            unasked={"tolerance": "as `certified_attention`, which is asked"},
        ),
        growth=Growth(Law("n*m", "n*m*(d + e)", "n*m*(d + e) + n*(d + e)"), scaled=True),
        behaviour=("keys", "linear"),
        softmax=Softmax(scale=1.0, only={"pairwise": ("gaussian", "embedded_gaussian")}),
        wrong=("softmax", "pairwise", "triples"),
    ),
    OpSpec(
        name="certified_attention",
        stem="certified",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over all keys within a stated tolerance, most of them never looked at",
        cost="counted, at most 2 n m (d + e)",
        memory="O((n + m) (d + e))",
        exact=True,
        status="ours",
        source="gray2001",
        has_jvp=True,
        options={"tolerance": 1e-13},
        cases=Cases(
            promises="missed",
            differentiable=("bias",),
            values=("constant",),
            zeros=("scale",),
            choices=(
                (Recipe("scale", {"scale": 0.3}),),
                (Recipe("causal", {"causal": True}),),
                (Recipe("mask", extra=("mask",)), Recipe("mask-shared", extra=("mask:shared",))),
                (
                    Recipe("bias-keys", extra=("bias:keys",)),
                    Recipe("bias-keys-inf", extra=("bias:keys-inf",)),
                ),
            ),
            recipes=(
                Recipe("lse", {"return_lse": True}, kinds=("forward",)),
                *_TOLERANCES,
                Recipe(
                    "default-tolerance",
                    {"tolerance": None, **_MISSED},
                    {"n": 9, "m": 1000, "d": 4, "e": 1000},
                    values="ones of v",
                    kinds=("forward",),
                    dtypes=("float32",),
                ),
                Recipe(
                    "equal-keys",
                    {"tolerance": 1e-2},
                    {"m": 1000},
                    values="equal",
                    kinds=("forward",),
                    dtypes=("float32",),
                ),
                Recipe("gaussian", {"weight": "gaussian", "bandwidth": 1.7}),
                Recipe(
                    "gaussian-bias",
                    {"weight": "gaussian", "bandwidth": 2.0},
                    lead=(2,),
                    extra=("bias:keys-inf",),
                ),
                Recipe(
                    "gaussian-causal",
                    {"weight": "gaussian", "bandwidth": 1.7, "causal": True},
                    lead=(2, 3),
                    extra=("mask",),
                ),
            ),
        ),
        growth=Growth(
            counted="map",
            follows="n m (d + e)",
            options={"tolerance": 1e-3},
            scaled=True,
            sides=(80, 384, 14),  # of few keys all are looked at; counts depend on the picture
        ),
        behaviour=("keys", "linear"),
        softmax=Softmax(only={"weight": ("softmax",)}),
        wrong=("softmax", "triples", "gaussian weights"),
    ),
)
