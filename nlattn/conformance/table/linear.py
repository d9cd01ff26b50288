"""Attention in linear order, by the order of products or by random features."""

from __future__ import annotations

from nlattn.conformance.table.recipe import ALL, Recipe
from nlattn.conformance.table.row import Cases, Growth, Law, OpSpec

ROWS = (
    OpSpec(
        name="efficient_attention",
        stem="efficient",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="queries and keys normalised apart from each other",
        cost="(n + m) d e",
        memory="O(d e)",
        exact=False,
        status="paper",
        source="shen2018",
        cases=Cases(
            choices=(
                (Recipe("scaling", {"normalization": "scaling"}),),
                (
                    Recipe("mask", extra=("key mask",)),
                    Recipe("mask-shared", extra=("key mask:shared",)),
                    Recipe("mask-none", extra=("key mask:none",)),
                ),
            ),
            recipes=(Recipe("mask-nan", extra=("key mask",), values="hidden NaN", dtypes=ALL),),
        ),
        growth=Growth(Law("0", "(n + m)*d*e", "(n + m)*(d + e)")),
        behaviour=("keys", "linear"),
        wrong=("two softmaxes", "triples"),
    ),
    OpSpec(
        name="refined_self_attention",
        stem="refined",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="dot products over the number of keys, in linear order",
        cost="(n + m) d e",
        memory="O(d e)",
        exact=False,
        status="reconstruction",
        source="wang2019",
        growth=Growth(Law("0", "(n + m)*d*e", "(n + m)*(d + e)")),
        behaviour=("keys", "linear"),
        wrong=("linear products", "triples"),
    ),
    OpSpec(
        name="favor_attention",
        stem="favor",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax attention through positive random features",
        cost="(n + m) r (d + e)",
        memory="O(r e)",
        exact=False,
        status="paper",
        source="choromanski2020",
        extras={"projection": "r d"},
        cases=Cases(
            causal_is_square=True,
            without=("no-queries", "long", "keys-shared", "channel"),  # features vanish there
            stretch=100,
            choices=(
                (Recipe("causal", {"causal": True}),),
                (Recipe("relu", {"kernel": "relu"}),),
                (Recipe("eps", {"eps": 0.1}),),
                (Recipe("scale", {"scale": 0.6}),),
                (
                    Recipe("neutral", {"stabilizer": "neutral"}),
                    Recipe("no-stabilizer", {"stabilizer": "none"}),
                ),
                (Recipe("denominator", {"denominator_eps": 0.1}),),
            ),
            recipes=(
                Recipe("no-features", {"kernel": "none"}),
                Recipe("no-features-causal", {"kernel": "none", "causal": True}, lead=(2, 3)),
            ),
        ),
        growth=Growth(Law("0", "(n + m)*r*(d + e + 1)", "(n + m)*(d + e)"), compared="map"),
        behaviour=("keys", "linear"),
        wrong=("positive features", "triples"),
    ),
    OpSpec(
        name="enla",
        stem="enla",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="random features of amplified unit vectors",
        cost="(n + m) r (d + e)",
        memory="O(r e)",
        exact=False,
        status="paper",
        source="xia2022",
        extras={"projection": "r d"},
        cases=Cases(
            without=("no-queries", "long", "channel"),  # a gradient of noise
            stretch=0,
            choices=(
                (
                    Recipe("amplification", {"amplification": 2.0}),
                    Recipe("as-they-are", {"amplification": None}),
                ),
                (Recipe("eps", {"eps": 0.1}),),
                (Recipe("floor", {"floor": 1.5}),),
            ),
        ),
        growth=Growth(Law("0", "(n + m)*r*(d + e + 1)", "(n + m)*(d + e)")),
        behaviour=("keys", "linear"),
        wrong=("amplified features", "triples"),
    ),
    OpSpec(
        name="enlca_loss",
        stem="enla",
        arrays={"q": "n d", "k": "m d"},
        out="",
        summary="contrast of each query's best keys with its mediocre ones",
        cost="n m d",
        memory="O(m)",
        exact=True,
        status="author code",
        source="xia2022",
        has_map=False,
        options={"positives": 2, "negatives": (3, 5), "margin": 4.0},
        least={"m": 4},
        cases=Cases(
            without=("ones", "no-queries", "long"),
            stretch=0,
            choices=(
                (Recipe("margin", {"margin": 1.0}),),
                (Recipe("amplification", {"amplification": 2.0}),),
                (Recipe("ranks", {"positives": 1, "negatives": [2, 4]}),),
                (Recipe("eps", {"eps": 0.1}), Recipe("floor", {"floor": 1.5})),
            ),
        ),
        growth=Growth(Law("n*m", "n*m*d", "n*m*d + n*d")),
        wrong=("ranks",),
    ),
)
