"""Patches of images: denoising, pasting, voting."""

from __future__ import annotations

from nlattn.conformance.table.recipe import Recipe
from nlattn.conformance.table.row import GRIDS, Cases, Growth, Law, OpSpec, Search

ROWS = (
    OpSpec(
        name="nl_means",
        stem="nl_means",
        arrays={"image": "H W e"},
        out="H W e",
        summary="denoising by non-local means, over windows or PatchMatch",
        cost="n window^2 (patch + e)",
        memory="O(n e)",
        exact=True,
        status="paper",
        source="buades2005, buades2011",
        has_jvp=True,
        options={"sigma": 0.7, "patch_size": 3, "patch_distance": 2},
        cases=Cases(
            costly=True,
            values=("constant",),
            choices=(
                (Recipe("pixel", {"aggregate": "pixel"}),),
                (
                    Recipe("self-one", {"self_weight": "one"}),
                    Recipe("self-zero", {"self_weight": "zero"}),
                ),
                (Recipe("h", {"h": 0.9}),),
                (
                    Recipe("patch-5", {"patch_size": 5, "patch_distance": 1}),
                    Recipe("support", extra=("support:gaps",)),
                ),
            ),
            recipes=(
                Recipe("all-pixels", {"support": "certified", "tolerance": 1e-13}),
                Recipe(
                    "default-patches",
                    {"patch_size": None, "patch_distance": None},
                    sizes={"H": 13, "W": 12},
                    kinds=("forward",),
                    dtypes=("float32",),
                ),
                Recipe("topk", {"topk": 3}, layout="strided"),
                Recipe(
                    "topk-pixel", {"topk": 5, "aggregate": "pixel", "search": "window"}, lead=(2,)
                ),
                Recipe("statistical", {"topk": 4, "select": "statistical"}, lead=(2,)),
            ),
            ways=("search",),
            unasked={
                "channel_axis": "where channels stand before the call",
                "data_range": "of whole numbers, which no case has",
                "fast_mode": "has one value",
            },
        ),
        growth=Growth(
            Law(
                "n*(2*reach + 1)**2",
                "n*(2*reach + 1)**2*(patch + e)",
                "n*(2*reach + 1)**2*(patch + e) + n*e",
            ),
            options={"sigma": 0.1, "patch_size": 5, "patch_distance": 5},
        ),
        wrong=("patch means", "grids"),
    ),
    OpSpec(
        name="cross_scale_attention",
        stem="cross_scale",
        arrays={**GRIDS, "v": "Hv Wv e"},
        out="Ho Wo e",
        summary="patches pasted at s times the resolution, where their likenesses are found",
        cost="n m (d + s^2 e)",
        memory="O(width m)",
        exact=True,
        status="author code",
        source="mei2020",
        has_jvp=True,
        options={"scale": 2},
        cases=Cases(
            without=("keys-shared",),
            costly=True,
            stretch=100,
            values=("constant",),
            choices=(
                (
                    Recipe("mass", {"overlap": "mass"}),
                    Recipe("divide", {"overlap": "divide", "divisor": 5.0}),
                    Recipe("published-crop", {"overlap": "divide", "crop": "published"}),
                ),
                (Recipe("scale-3", {"scale": 3}),),
                (Recipe("patch-1", {"patch": 1}),),
                (Recipe("best", {"assign": "argmax"}),),
                (Recipe("temperature", {"temperature": 1.7}),),
                (Recipe("floor", {"floor": 8.0}),),
            ),
            recipes=(
                Recipe("patch-5", {"patch": 5}, sizes={"Hq": 7, "Wq": 6, "Hk": 6, "Wk": 7}),
                Recipe("best-of-equal", {"assign": "argmax"}, values="no keys"),
            ),
        ),
        growth=Growth(
            Law("n*m", "n*m*(d + s**2*e)", "n*m*(2*d + 2*s**2*e + 1)"), coarser_keys=True
        ),
        behaviour=("linear",),
        wrong=("pasted patches", "grids", "triples"),
    ),
    OpSpec(
        name="psal",
        stem="psal",
        arrays={**GRIDS, "v": "Hk Wk e"},
        out="Hq Wq e",
        summary="softmax over the nearest patches that PatchMatch finds",
        cost="n log n patch^2 d",
        memory="O(n patch^2 (d + topk))",
        exact=False,
        status="paper",
        source="cherel2022",
        has_jvp=True,
        options={"temperature": 10.0},
        cases=Cases(
            costly=True,
            search=Search("nearest patch", {"iterations": 2, "patch": 3, "topk": 1}),
            one_head=True,
            given="field",
            stretch=100,
            values=("constant",),
            choices=(
                (
                    Recipe("voting", {"aggregate": True}),
                    Recipe("dedup", {"aggregate": True, "dedup": True}),
                ),
                (Recipe("edge", {"border": "edge"}),),
                (Recipe("patch-1", {"patch": 1}),),
                (Recipe("no-matches", extra=("field:gaps",)),),
                (Recipe("temperature", {"temperature": 3.0}),),
            ),
            recipes=(
                Recipe("patch-5", {"patch": 5}, sizes={"Hq": 7, "Wq": 6, "Hk": 6, "Wk": 7}),
                Recipe("narrow-5", {"patch": 5}, sizes={"Hq": 2, "Wq": 3, "Hk": 3, "Wk": 2}),
                Recipe("default-temperature", {"temperature": None}),
                Recipe(
                    "edge-5",
                    {"patch": 5, "border": "edge", "aggregate": True},
                    sizes={"Hq": 7, "Wq": 6, "Hk": 6, "Wk": 7},
                ),
            ),
        ),
        growth=Growth(
            counted="map",
            follows="n d patch^2 (1 + iterations (8 4 + log2(side) + 1)) + n topk patch^2 (d + e)",
        ),
        behaviour=("linear",),
        wrong=("patch votes", "grids", "triples"),
    ),
)
