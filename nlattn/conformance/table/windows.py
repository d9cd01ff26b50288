"""Learned queries in windows."""

from __future__ import annotations

from nlattn.conformance.table.recipe import ALL, Recipe
from nlattn.conformance.table.row import Cases, Growth, Law, OpSpec

ROWS = (
    OpSpec(
        name="qna",
        stem="qna",
        arrays={"q": "t d", "k": "H W d", "v": "H W e", "bias": "t kh kw", "gate": "t kh kw"},
        optional=("bias", "gate"),
        out="H W e",
        summary="the same learned queries in every window",
        cost="n window^2 t (e + 1)",
        memory="O(n (t + e))",
        exact=True,
        status="author code",
        source="arar2022",
        has_jvp=True,
        options={"window": 3},
        cases=Cases(
            values=("constant", "subnormal"),
            zeros=("scale",),
            choices=(
                (Recipe("bias", extra=("bias",)),),
                (Recipe("gate", extra=("gate",)),),
                (
                    Recipe("stride", {"stride": 2}),
                    Recipe("stride-1x2", {"stride": [1, 2]}),
                ),
                (Recipe("padding", {"padding": [2, 0]}),),
                (
                    Recipe("window-2x4", {"window": [2, 4]}),
                    Recipe("window-5", {"window": 5}),
                ),
                (Recipe("scale", {"scale": 0.3}),),
            ),
            recipes=(Recipe("bias-gate", extra=("bias", "gate"), dtypes=ALL),),
        ),
        growth=Growth(
            Law("n*t", "n*t*d + 2*n*window*t*(e + 1)", "n*(d + t + 2*window*t*(e + 1) + e)")
        ),
        behaviour=("linear",),
        wrong=("learned queries", "placed windows", "grids", "triples"),
    ),
    OpSpec(
        name="qna_upsample",
        stem="qna_upsample",
        arrays={
            "q": "f t d",
            "k": "H W d",
            "v": "H W e",
            "bias": "f t kh kw",
            "gate": "f t kh kw",
        },
        optional=("bias", "gate"),
        out="Hs Ws e",
        summary="a set of learned queries for each phase of a finer grid",
        cost="n scale^2 window^2 t (e + 1)",
        memory="O(n scale^2 (t + e))",
        exact=True,
        status="reconstruction",
        source="arar2022",
        has_jvp=True,
        has_map=False,
        options={"scale": 2, "window": 3},
        cases=Cases(
            stretch=0,
            choices=(
                (Recipe("bias", extra=("bias",)),),
                (Recipe("gate", extra=("gate",)),),
                (Recipe("window-3x5", {"window": [3, 5]}),),
            ),
            recipes=(
                Recipe("bias-gate", extra=("bias", "gate")),
                Recipe("scale-3", {"scale": 3}, sizes={"f": 9}, extra=("bias",), layout="strided"),
                Recipe(
                    "scale-3-gate",
                    {"scale": 3},
                    sizes={"f": 9, "H": 4, "W": 6},
                    extra=("gate",),
                    layout="strided",
                ),
                Recipe("scale-1", {"scale": 1}, sizes={"f": 1}, layout="reversed"),
            ),
        ),
        growth=Growth(
            Law(
                "n*f*t",
                "n*f*t*d + n*f*window**2*t*(e + 1)",
                "n*(d + f*t + f*window**2*t*(e + 1) + f*e)",
            )
        ),
        behaviour=("linear",),
        wrong=("learned queries", "phases", "grids", "triples"),
    ),
    OpSpec(
        name="neighbourhood_attention",
        stem="neighbourhood",
        arrays={"q": "H W d", "k": "H W d", "v": "H W e"},
        out="H W e",
        summary="softmax over the neighbours on a grid, as many for every query",
        cost="n window (d + e)",
        memory="O(n e)",
        exact=True,
        status="author code",
        source="hassani2023",
        options={"window": [3, 3]},
        least={"H": 10, "W": 15},
        has_jvp=True,
        cases=Cases(
            values=("constant", "subnormal"),
            large=("grid", "places"),
            without=("ones",),
            zeros=("scale",),
            choices=(
                (
                    Recipe("window-2x4", {"window": [2, 4]}),
                    Recipe("window-5", {"window": [5, 5]}),
                ),
                (
                    Recipe("stride", {"stride": [2, 2]}),
                    Recipe("stride-1x3", {"window": [3, 4], "stride": [1, 3]}),
                ),
                (
                    Recipe("dilation", {"dilation": [2, 2]}),
                    Recipe("dilation-1x3", {"dilation": [1, 3]}),
                ),
                (
                    Recipe("causal", {"causal": True}),
                    Recipe("causal-columns", {"causal": [False, True]}),
                ),
                (Recipe("scale", {"scale": 0.3}),),
                (Recipe("lse", {"return_lse": True}),),
            ),
            recipes=(
                Recipe("sequences", {"window": [4]}, sizes={"H": 3, "W": 11}, dtypes=ALL),
                Recipe("volume", {"window": [2, 3, 3]}, lead=(4,)),
                Recipe(
                    "volume-strides",
                    {"window": [2, 4, 3], "stride": [1, 3, 2], "causal": [True, False, False]},
                    lead=(4,),
                ),
                Recipe("volume-dilation", {"window": [2, 3, 3], "dilation": [1, 2, 3]}, lead=(5,)),
                Recipe(
                    "sequences-causal", {"window": [4], "causal": True}, sizes={"H": 3, "W": 11}
                ),
                Recipe(
                    "sequences-stride",
                    {"window": [5], "stride": [3], "dilation": [2], "return_lse": True},
                    sizes={"H": 3, "W": 21},
                ),
                Recipe(
                    "everything",
                    {
                        "window": [4, 3],
                        "stride": [3, 2],
                        "dilation": [2, 1],
                        "causal": [False, True],
                    },
                ),
            ),
        ),
        growth=Growth(counted="map", follows="9 n (d + e)", scaled=True),
        behaviour=("linear",),
        wrong=("neighbours", "softmax", "grids", "triples"),
    ),
)
