"""Attention by a filter on a lattice of points."""

from __future__ import annotations

from nlattn.conformance.table.recipe import ALL, Recipe
from nlattn.conformance.table.row import Cases, Growth, OpSpec

ROWS = (
    OpSpec(
        name="permutohedral_attention",
        stem="permutohedral",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="Gaussian weights of features, by a filter on a sparse lattice",
        cost="(n + m) d (d + e) + M d e",
        memory="O((n + m + M) (d + e))",
        exact=False,
        status="author code",
        source="joutard2019, adams2010",
        has_jvp=True,
        cases=Cases(
            given="simplices",
            most={"d": 3},
            costly=True,
            choices=(
                (
                    Recipe("softmax", {"weight": "softmax"}, dtypes=ALL),
                    Recipe("softmax-scale", {"weight": "softmax", "scale": 0.4}),
                ),
                (
                    Recipe("keys-alone", {"query_vertices": False}),
                    Recipe("complete", {"lattice": "complete"}),
                ),
                (Recipe("lse", {"return_lse": True}),),
            ),
            recipes=(
                Recipe("published", {"normalize": False}, dtypes=ALL),
                Recipe("published-heads", {"normalize": False}, lead=(2,)),
                Recipe("softmax-lse", {"weight": "softmax", "return_lse": True}, lead=(2,)),
                Recipe("own-simplices", extra=("simplices:own",)),
                Recipe("one-channel", sizes={"d": 1}),
                Recipe("integers", values="ties"),
                *(
                    Recipe(f"own-{label}", options, extra=("simplices:own",), lead=(2,))
                    for label, options in (
                        ("published", {"normalize": False}),
                        ("softmax", {"weight": "softmax", "return_lse": True}),
                        ("keys-alone", {"query_vertices": False}),
                        ("complete", {"lattice": "complete"}),
                    )
                ),
            ),
        ),
        growth=Growth(
            counted="map",
            follows="(n + m) (d + 1) (d + e) + 2 M (d + 1) e",
            channels=3,
        ),
        behaviour=("linear",),
        wrong=("lattice", "triples"),
    ),
)
