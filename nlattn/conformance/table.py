"""The table of operators: one row each, from which cases, tests, lists and docs are made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["paper", "author code", "reconstruction", "ours"]


@dataclass(frozen=True)
class OpSpec:
    """What there is to know of one operator."""

    name: str
    """Public name; its map and gradient are ``<name>_map`` and ``<name>_vjp``."""
    stem: str
    """File name in ``oracle/`` and ``ops/``, and of its page in ``docs/algorithms/``."""
    arrays: Mapping[str, str]
    """Positional arrays and their trailing dimensions, ``{"q": "n d"}``."""
    out: str
    """Trailing dimensions of the result."""
    summary: str
    cost: str
    memory: str
    exact: bool
    """Whether the result is dense attention, or an approximation chosen by a search."""
    status: Status
    source: str
    has_map: bool = True
    has_vjp: bool = True
    least: Mapping[str, int] = field(default_factory=dict)
    """Smallest legal size of a dimension, where that is not 1."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Arrays given by keyword, without leading axes, and their dimensions."""
    optional: tuple[str, ...] = ()
    """Those of `arrays` that may be left out."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options that a small case needs, or that make it a good example."""
    heads: bool = True
    """Whether leading axes are heads; if not, the operator takes one head."""

    def function(self, kind: Literal["", "map", "vjp"] = "") -> Callable[..., Any]:
        """Return the public function, its map or its gradient."""
        module = importlib.import_module(f"nlattn.ops.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))  # type: ignore[no-any-return]

    def oracle(self, kind: Literal["", "vjp"] = "") -> Callable[..., Any]:
        """Return the oracle's function of the same name."""
        module = importlib.import_module(f"nlattn.oracle.{self.stem}")
        return getattr(module, "_".join(filter(None, [self.name, kind])))  # type: ignore[no-any-return]


_GRIDS = {"q": "Hq Wq d", "k": "Hk Wk d"}

TABLE: tuple[OpSpec, ...] = (
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
    ),
    OpSpec(
        name="patchmatch",
        stem="patchmatch",
        arrays=_GRIDS,
        out="Hq Wq topk",
        summary="best keys of every query, by propagation and random search",
        cost="n iterations (32 + log2 side) d",
        memory="O(n topk)",
        exact=False,
        status="paper",
        source="barnes2009, barnes2010",
        has_map=False,
        has_vjp=False,
    ),
    OpSpec(
        name="sparse_attention",
        stem="sparse",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over a given support",
        cost="nnz (d + e)",
        memory="O(n e)",
        exact=True,
        status="ours",
        source="wang2018, calian2019",
    ),
    OpSpec(
        name="scram",
        stem="scram",
        arrays={**_GRIDS, "v": "Hk Wk e"},
        out="Hq Wq e",
        summary="PatchMatch argmax, then a sparse non-local mean",
        cost="n log n d",
        memory="O(n (e + window^2))",
        exact=False,
        status="reconstruction",
        source="calian2019",
    ),
    OpSpec(
        name="leverage_scores",
        stem="leverage",
        arrays={"k": "n d"},
        out="n",
        summary="how much of the quadratic kernel's attention each key can receive",
        cost="2 n d^2",
        memory="O(d^2) and a block of rows",
        exact=True,
        status="paper",
        source="drineas2012, kannan2024",
        has_map=False,
        has_vjp=False,
    ),
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
    ),
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
        options={"sigma": 0.7, "patch_size": 3, "patch_distance": 2},
    ),
    OpSpec(
        name="cross_scale_attention",
        stem="cross_scale",
        arrays={**_GRIDS, "v": "Hv Wv e"},
        out="Ho Wo e",
        summary="patches pasted at s times the resolution, where their likenesses are found",
        cost="n m (d + s^2 e)",
        memory="O(width m)",
        exact=True,
        status="author code",
        source="mei2020",
        options={"scale": 2},
    ),
    OpSpec(
        name="psal",
        stem="psal",
        arrays={**_GRIDS, "v": "Hk Wk e"},
        out="Hq Wq e",
        summary="softmax over the nearest patches that PatchMatch finds",
        cost="n log n patch^2 d",
        memory="O(n patch^2 (d + topk))",
        exact=False,
        status="paper",
        source="cherel2022",
        options={"temperature": 10.0},
    ),
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
        options={"window": 3},
    ),
    OpSpec(
        name="qna_upsample",
        stem="qna",
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
        has_map=False,
        options={"scale": 2, "window": 3},
    ),
    OpSpec(
        name="lev_attention",
        stem="lev",
        arrays={"q": "n d", "k": "m d", "v": "m e"},
        out="n e",
        summary="softmax over the keys of largest leverage",
        cost="2 m d^2 + n keys (d + e)",
        memory="O(n e + d^2)",
        exact=False,
        status="reconstruction",
        source="kannan2024",
        options={"keys": 4},
    ),
    OpSpec(
        name="lewis_weights",
        stem="lewis",
        arrays={"k": "m d"},
        out="m",
        summary="fixed point of leverage of reweighted keys, for any p",
        cost="3 m d^2 a step",
        memory="O(m d)",
        exact=True,
        status="paper",
        source="cohen2015",
        has_map=False,
        has_vjp=False,
        options={"p": 3.0},
    ),
    OpSpec(
        name="sensitivity_bounds",
        stem="lewis",
        arrays={"k": "m d"},
        out="m",
        summary="what each key can receive from any query, certified",
        cost="m d^2 a certificate",
        memory="O(m d)",
        exact=True,
        status="ours",
        source="kannan2024, cohen2015",
        has_map=False,
        has_vjp=False,
        options={"p": 4.0},
    ),
    OpSpec(
        name="lp_sensitivity",
        stem="lewis",
        arrays={"k": "m d"},
        out="",
        summary="what one key can receive, between two certified ends",
        cost="3 m d^2 a step",
        memory="O(m d)",
        exact=True,
        status="ours",
        source="kannan2024",
        has_map=False,
        has_vjp=False,
        options={"i": 0, "p": 3.0},
    ),
    OpSpec(
        name="universal_set",
        stem="universal",
        arrays={"k": "m d"},
        out="",
        summary="all keys that some query could give a weight of eps",
        cost="m d^2, for p other than 2 some 20 times",
        memory="O(m d)",
        exact=True,
        status="paper",
        source="kannan2024",
        has_map=False,
        has_vjp=False,
        options={"eps": 0.5},
    ),
    OpSpec(
        name="heavy_attention",
        stem="heavy",
        arrays={"q": "n d", "k": "m d"},
        out="n m",
        summary="the entries of polynomial attention of at least eps, as a sparse map",
        cost="(n + m) d^2 + n |U| d",
        memory="O((n + m) d + entries)",
        exact=True,
        status="paper",
        source="kannan2024",
        has_map=False,
        has_vjp=False,
        options={"eps": 0.1},
        heads=False,
    ),
)


def find(name: str) -> OpSpec:
    """Return the row of an operator."""
    for spec in TABLE:
        if spec.name == name:
            return spec
    raise KeyError(f"{name!r} is no operator; there are {', '.join(s.name for s in TABLE)}")
