"""Attention to all keys."""

from __future__ import annotations

from nlattn.conformance.table.recipe import ALL, TILES, Recipe
from nlattn.conformance.table.row import Cases, Growth, Law, OpSpec, Softmax

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
        cases=Cases(
            stages=True,
            differentiable=("bias",),
            values=("constant", "subnormal"),
            recipes=(
                Recipe("scale", {"scale": 0.3}),
                Recipe("lse", {"return_lse": True}, kinds=("forward",)),
                Recipe("causal", {"causal": True}, dtypes=ALL),
                Recipe("causal-offset", {"causal": True, "causal_offset": 3}),
                Recipe("causal-nothing", {"causal": True, "causal_offset": -3}),
                Recipe("causal-tiles", {"causal": True}, sizes=TILES, tier="standard"),
                Recipe("window", {"window": [2, 1]}, dtypes=ALL),
                Recipe("window-left", {"window": [3, None]}, tier="standard"),
                Recipe("window-right", {"window": [None, 0]}, tier="standard"),
                Recipe("window-causal", {"window": [2, 4], "causal": True}),
                Recipe("mask", extra=("mask",), dtypes=ALL),
                Recipe("mask-heads", extra=("mask",), lead=(2, 3), tier="standard"),
                Recipe("nan-rows", {"masked_rows": "nan"}, extra=("mask",), kinds=("forward",)),
                Recipe("bias", extra=("bias",), dtypes=ALL),
                Recipe("bias-inf", extra=("bias:inf",), tier="standard"),
                Recipe("softcap", {"softcap": 1.5}, dtypes=ALL),
                Recipe("softcap-bias", {"softcap": 1.5}, extra=("bias",)),
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
                Recipe("grouped", {"gqa": True}, lead=(2, 6), extra=("groups:2",), dtypes=ALL),
                Recipe("multi-query", {"gqa": True}, lead=(6,), extra=("groups:1",)),
                Recipe("no-keys", sizes={"m": 0}, tier="standard"),
                Recipe("no-heads", lead=(0, 2), tier="standard"),
                Recipe("integers", values="ties"),
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
        cases=Cases(
            differentiable=("weight",),
            recipes=(
                Recipe("gaussian", {"pairwise": "gaussian", "scale": 0.5}),
                Recipe("dot-product", {"pairwise": "dot_product"}, dtypes=ALL),
                Recipe(
                    "concatenation", {"pairwise": "concatenation"}, extra=("weight",), dtypes=ALL
                ),
                Recipe(
                    "dot-product-tiles", {"pairwise": "dot_product"}, sizes=TILES, tier="standard"
                ),
            ),
        ),
        growth=Growth(Law("n*m", "n*m*(d + e)", "n*m*(d + e) + n*(d + e)"), scaled=True),
        behaviour=("keys", "linear"),
        softmax=Softmax(scale=1.0, only={"pairwise": ("gaussian", "embedded_gaussian")}),
        wrong=("softmax", "pairwise", "triples"),
    ),
)
