"""How the arguments and results of each operator grow together, for `magnitude.ranged`.

A law is a function of the call's arguments. Gradients of q have the unit of ``dout v /q`` where a
change of units of q is undone by an option, as by `scale`; and maps, whose values come later, hold
weights that have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nlattn.engines.magnitude import RangeLaw

Given = Mapping[str, Any]

_BACK = ("dout v /q", "dout v /k", "dout", "dout v", "dout v")  # the last of biases and sinks
_LOGITS = ("q k", "scale q k", "scale", "v")
_CHAIN = ("dout v", "dout v scale k", "dout v scale q", "dlse", "dlse scale k", "dlse scale q")


def along(law: Callable[[Given], RangeLaw]) -> Callable[[Given], RangeLaw]:
    """Of the forward mode of what has a law: a change dq has the unit of q, the larger of both."""

    def made(given: Given) -> RangeLaw:
        base = law(given)
        products = (*base.upper, *base.both, *base.results, *base.same)
        known = {name.removeprefix("/") for product in products for name in product.split()}
        changes = sorted(f"d{n}" for n in {*known, *base.fixed} if f"d{n}" in given)
        moved = [
            " ".join(change if word == change[1:] else word for word in product.split())
            for change in changes
            for product in (*base.upper, *base.both)
            if change[1:] in product.split() and not {*changes} & {*product.split()}
        ]
        fixed = [change for change in changes if change[1:] in base.fixed]
        moved += [f"{change} {unit}" for change in fixed for unit in base.results[:1]]
        sums = {change: change[1:] for change in changes if change not in fixed}
        alone = base.rows or base.steady
        results = tuple(f"{unit} along" for unit in base.results) if alone else base.results
        return base._replace(
            results=results,
            upper=(*base.upper, *moved, *changes),
            sums={**base.sums, **sums},
            fixed=(*base.fixed, *fixed),
        )

    return made


def softmax(given: Given) -> RangeLaw:
    """Scores ``scale q.k``, capped and biased as they are."""
    common: Any = {
        "options": {"scale": "q k"},
        "fixed": ("bias", "sinks", "alibi"),
        "default": {"scale": -0.5},
        "unless": "qk_norm",
    }
    if "dout" in given:
        sums = {"dlse": "dout v"}
        return RangeLaw(_BACK, upper=_LOGITS, both=("softcap", *_CHAIN), sums=sums, **common)
    return RangeLaw(("v",), upper=_LOGITS, both=("softcap",), **common)


def pairwise(given: Given) -> RangeLaw:
    """Those of `nonlocal_mean`."""
    kind, back = given.get("pairwise"), "dout" in given
    if kind == "dot_product":
        return products(given)
    if kind == "concatenation":
        sums = ("weight q", "weight k", "weight q v", "weight k v")
        if back:
            units = ("dout v weight", "dout v weight", "dout weight q", "dout v q")
            return RangeLaw(units, upper=sums, both=units, same=("q", "k"))
        return RangeLaw(("weight q v",), upper=sums, same=("q", "k"), fixed=_if_map(given))
    return softmax(given)


def products(given: Given) -> RangeLaw:
    """``q k v``, in any order."""
    if "dout" in given:
        units = ("dout k v", "dout q v", "dout q k")
        return RangeLaw(units, upper=("k v", "q k", "dout q", "dout v"), both=units)
    if "q" not in given:
        return RangeLaw(("k v",), upper=("k v",))
    return RangeLaw(("q k v",), upper=("q k", "k v", "q k v"), fixed=_if_map(given))


def index(given: Given) -> RangeLaw:
    """Those of `index_scores`: ``w relu(q k)``."""
    if "dscores" in given:
        units = ("dscores k w", "dscores q w", "dscores q k")
        return RangeLaw(units, upper=("dscores w",), both=("q k", *units))
    return RangeLaw(("q k w",), upper=("w", "q k w"), both=("q k",), steady=("q", "k"))


def _if_map(given: Given) -> tuple[str, ...]:
    """A map's weights could not be brought back to their units."""
    return () if "v" in given else ("q", "k", "weight")


def normalization(given: Given) -> RangeLaw:
    """Those of `efficient_attention`."""
    if given.get("normalization") == "scaling":
        return products(given)
    units = ("dout v", "dout v", "dout") if "dout" in given else ("v",)
    both = units[:1] if "dout" in given else ()
    return RangeLaw(units, upper=("q", "k", "v"), both=both, fixed=("q", "k"))


def weight(given: Given) -> RangeLaw:
    """Those of `sparse_attention` and `scram`."""
    if given.get("weight") == "gaussian":
        back = "dout" in given
        squares = ("q q", "q q /bandwidth /bandwidth")
        slopes = ("dout v", "dout v q /bandwidth /bandwidth", "dlse q /bandwidth /bandwidth")
        return RangeLaw(
            _BACK if back else ("v",),
            {"bandwidth": "/q"},
            upper=(*squares, "/bandwidth /bandwidth", "v"),
            both=slopes if back else (),
            same=("q", "k"),
            fixed=("bias", "sinks"),
            sums={"dlse": "dout v"} if back else {},
            unless="qk_norm",
        )
    return softmax(given)


def score(given: Given) -> RangeLaw:
    """Those of `patchmatch`."""
    if given.get("score") == "neg_l2":
        size = "q q /bandwidth /bandwidth"
        return RangeLaw(
            (size,),
            {"bandwidth": "/bandwidth"},
            both=(size, "q q"),
            same=("q", "k"),
            own=("bandwidth",),
        )
    if given.get("score") == "cosine":  # per vector
        return RangeLaw(
            ("scale",),
            {"scale": "/scale"},
            both=("q q", "k k", "scale"),
            rows=("q", "k"),
            own=("scale",),
        )
    size = "q k scale"
    return RangeLaw(
        (size,), {"scale": "/scale"}, both=(size, "q k"), own=("scale",), default={"scale": -0.5}
    )


def costs(given: Given) -> RangeLaw:
    """Squares of differences over a temperature."""
    back = "dout" in given
    return RangeLaw(
        _BACK if back else ("v",),
        {"temperature": "/q /q"},
        upper=("q q /temperature", "/temperature", "v"),
        both=("q q", *(("dout v", "dout v q /temperature") if back else ())),
        same=("q", "k"),
    )


def window(given: Given) -> RangeLaw:
    """Softmax scores, and gates."""
    plain = softmax(given)
    gated = ("v gate", "dout gate", "dout v gate", "dout v gate scale k", "dout v gate scale q")
    back = ("dout v gate /q", "dout v gate /k", "dout gate", "dout v gate", "dout v")
    return plain._replace(
        results=back if "dout" in given else ("v gate",),
        upper=(*plain.upper, *gated),
        fixed=plain.fixed if "v" in given else (*plain.fixed, "gate"),
    )


def kernel(given: Given) -> RangeLaw:
    """Random features of ``scale x``."""
    back = "dout" in given
    units: tuple[str, ...] = _BACK if back else ("v",)
    if given.get("kernel") == "none":
        units = ("dout v", "dout v", "dout") if back else ("v",)
        return RangeLaw(
            units, upper=("q", "k", "v"), both=units[:1] if back else (), fixed=("q", "k")
        )
    squares = ("scale scale q q", "scale scale k k", "scale q projection", "scale k projection")
    return RangeLaw(
        units,
        {"scale": "q"},
        upper=("q projection", "k projection", *squares, "v", "eps eps v", "eps eps"),
        both=("dout v", "dout v scale projection", "dout v scale scale q") if back else (),
        same=("q", "k"),
        default={"scale": -0.25},
        fixed=("projection",),
    )


def unit(given: Given) -> RangeLaw:
    """Unit vectors, but of rows below a floor."""
    back = "dout" in given
    squares = ("q q", "k k", "amplification")
    if "v" not in given:  # a loss or its gradient, or a map
        units = ("dout /q", "dout /k") if back else ("",)
        return RangeLaw(
            units,
            upper=("margin", "eps"),
            both=(*squares, *units) if back else squares,
            rows=("q", "k"),
            fixed=("projection",),
        )
    return RangeLaw(
        _BACK if back else ("v",),
        upper=("v", "eps eps v"),
        both=(*squares, *(("dout v", "dout v /q", "dout v /k") if back else ())),
        rows=("q", "k"),
        fixed=("projection",),
    )


def picture(given: Given) -> RangeLaw:
    """Means of pictures: with sigma and h they grow as the picture."""
    return RangeLaw(
        ("dout",) if "dout" in given else ("image",),
        {"sigma": "/image", "h": "/image"},
        both=("image image", "sigma sigma", "h h", "dout"),
        clamp={"sigma": (-100, 200), "h": (-100, 200)},
        steady=("image",),
    )


def cross_scale(given: Given) -> RangeLaw:
    """Keys over their lengths."""
    back = "dout" in given
    chain = ("dout v", "dout v temperature", "dout v temperature q /k")
    return RangeLaw(
        _BACK if back else ("v",),
        {"temperature": "q", "floor": "/k"},
        upper=("q k", "temperature q", "temperature", "v", "/floor"),
        both=("k k", *(chain if back else ())),
        steady=("k",),
    )


def bounded(given: Given) -> RangeLaw:
    """Those of `nearest_keys`, whose bounds of groups are made of squared lengths."""
    law = score(given)
    return law if given.get("score") == "cosine" else law._replace(both=(*law.both, "q q", "k k"))


def signs(given: Given) -> RangeLaw:
    """Those of `hamming_attention`: of queries and keys the signs count alone."""
    law = lattice(given)
    more = ("dout v scale", "dlse scale") if "dout" in given else ()
    slopes = ("scale dq v", "scale dk v") if "dq" in given else ()
    return law._replace(upper=(*law.upper, "scale", *slopes), both=(*law.both, *more))


def lattice(given: Given) -> RangeLaw:
    """Those of `permutohedral_attention`: weights are of features as they are."""
    if "dout" in given:
        units, sums = ("dout v", "dout v", "dout"), {"dlse": "dout v"}
        return RangeLaw(units, upper=("v",), both=("dout v", "dlse"), fixed=("q", "k"), sums=sums)
    return RangeLaw(("v",), upper=("v",), fixed=("q", "k"))


def keys(_: Given) -> RangeLaw:
    """What does not depend on the unit of any channel of the keys."""
    return RangeLaw(both=("k k",), columns=("k",))
