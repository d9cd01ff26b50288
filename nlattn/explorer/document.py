"""The page itself: the contents, the style and the script in one file."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files

import numpy as np

from nlattn import _check
from nlattn._types import Floats, JsonObject
from nlattn.explorer import contents
from nlattn.explorer.contents import Layer
from nlattn.maps.base import AttentionMap

_OP = "explorer.page"


def page(
    image: object,
    maps: Mapping[str, AttentionMap] | AttentionMap,
    *,
    keys: object = None,
    layers: Mapping[str, Layer] | None = None,
    top: int = 9,
    title: str = "",
) -> str:
    """Make a page in which any pixel shows where it looks.

    Parameters
    ----------
    image : (Hq, Wq, 1 or 3) array in [0, 1], or of whole numbers
        Picture that the queries stand on.
    maps : AttentionMap, or mapping of names to one or two of them
        From the pixels of `image` in raster order; two stand side by side with their difference.
    keys : (Hk, Wk, 1 or 3) array, optional
        Picture that the keys stand on; `image` if omitted.
    layers : mapping of names to Layer, optional
        Further numbers of the queries, such as their entropy.
    top : int
        Strongest keys of each query that the page holds, 1 to 64.
    title : str
        Above the picture.

    Returns
    -------
    str
        HTML that asks nothing of any network. About 15 bytes for each query and nine keys.

    Notes
    -----
    A map that does not hold its weights is asked for at most ``2^28`` of them: the page then shows
    every second, third ... query of a row and column, and says so.

    Examples
    --------
    >>> import numpy as np, nlattn
    >>> x = np.random.default_rng(0).random((8, 8, 3))
    >>> A = nlattn.scram_map(x, x, scale=9.0)
    >>> nlattn.explorer.page(x, A)[:15]
    '<!doctype html>'
    """
    if not isinstance(maps, AttentionMap):
        _check.instance(
            _OP, "maps", maps, Mapping, "an AttentionMap, or a mapping of names to some"
        )
    named = {"attention": maps} if isinstance(maps, AttentionMap) else dict(maps)
    if not 1 <= len(named) <= 2:
        _check.fail(_OP, "maps", f"holds {len(named)} maps, expected one or two")
    ground = _picture("image", image)
    other = ground if keys is None else _picture("keys", keys)
    here, there = ground.shape[:2], other.shape[:2]
    for name, A in named.items():
        _check.instance(_OP, f"maps[{name!r}]", A, AttentionMap)
        for what, shape, grid in (("image", here, A.query_grid), ("keys", there, A.key_grid)):
            if tuple(grid) not in (shape, (math.prod(shape),)):
                _check.fail(_OP, what, f"is {shape[0]} x {shape[1]}, map {name!r} has {grid}")
    count = _check.integer(_OP, "top", top, low=1, high=64)
    _check.instance(_OP, "layers", layers or {}, Mapping, "a mapping of names to Layer")
    views, planes = [], dict(layers or {})
    for name, layer in planes.items():
        _check.instance(_OP, f"layers[{name!r}]", layer, Layer)
        shape = _check.real(_OP, f"layers[{name!r}]", layer.values).shape
        if shape != here:
            _check.fail(_OP, f"layers[{name!r}]", f"has shape {shape}, expected {here} from image")
    title = str(title or "Where pixels look")
    for name, A in named.items():
        count_of = min(count, A.shape[1])
        views.append(contents.of_looks(name, contents.looks(A, here, count_of), there))
        given = contents.received(A, there)
        if given is not None and keys is None:
            planes["received" if len(named) == 1 else f"received, {name}"] = given
    data = {
        "title": title,
        "picture": contents.of_picture(ground),
        "keys": None if keys is None else contents.of_picture(other),
        "maps": views,
        "layers": {name: contents.of_layer(layer) for name, layer in planes.items()},
    }
    return _fill(title, data)


def _picture(name: str, image: object) -> Floats:
    x = _check.pixels(_OP, name, image, (1, 3))
    if x.dtype.kind in "iu":
        return x / np.iinfo(x.dtype).max
    return np.asarray(x, np.float64)


def _fill(title: str, data: JsonObject) -> str:
    here = files("nlattn.explorer")
    template = (here / "page.html").read_text("utf-8")
    parts = {
        "title": html.escape(title).encode("utf-8", "replace").decode(),  # names of any bytes
        "style": (here / "page.css").read_text("utf-8"),
        "script": (here / "page.js").read_text("utf-8"),
        "data": json.dumps(data).replace("<", "\\u003c"),
    }
    before, *rest = template.split("{{")
    filled = [before]
    for piece in rest:
        name, _, text = piece.partition("}}")
        filled += [parts[name], text]
    return "".join(filled)
