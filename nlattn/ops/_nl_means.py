"""Options of non-local means: a call as it came, and what it comes to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import (
    AllPixels,
    Candidates,
    Nonfinite,
    PatchChoice,
    PatchSearch,
    SelfWeight,
)
from nlattn._types import Ints, Support
from nlattn.engines import certified_means
from nlattn.engines.nl_means import BANDWIDTH, SELF, PictureMeans
from nlattn.engines.patchmatch import CANDIDATES
from nlattn.engines.similar import SEARCHES, SELECTS, PixelSearch
from nlattn.engines.support import checked_support
from nlattn.ops._picture import ABSENT, Picture


class NLMeansArguments(NamedTuple):
    """The options of a call, as they came."""

    sigma: float
    h: float | None
    patch_size: int
    patch_distance: int
    search: PatchSearch
    topk: int | None
    select: PatchChoice
    self_weight: SelfWeight
    candidates: Candidates
    iterations: int | None
    seed: int
    support: Support | AllPixels | None
    channel_axis: int | None
    data_range: float | None
    fast_mode: bool
    nonfinite: Nonfinite
    max_bytes: float
    tolerance: float = 1e-3


def checked(
    op: str,
    image: object,
    asked: NLMeansArguments,
    dout: object = ABSENT,
    *,
    dimage: object = ABSENT,
) -> tuple[Picture, PictureMeans]:
    """The picture and its call; ValueError for values outside their sets."""
    sigma = _check.number(op, "sigma", asked.sigma)
    if sigma < 0:
        _check.fail(op, f"sigma={sigma}", "is negative, expected the noise's deviation")
    h = BANDWIDTH * sigma if asked.h is None else _check.number(op, "h", asked.h)
    if h < 0:
        _check.fail(op, f"h={h}", "is negative, expected a bandwidth")
    own = _check.choice(op, "self_weight", asked.self_weight, SELF)
    search = _search(op, asked)
    if not _check.flag(op, "fast_mode", asked.fast_mode):
        text = "weighs the pixels of a patch by a Gaussian, which is not offered"
        _check.fail(op, "fast_mode=False", text)
    picture = Picture(
        op,
        image,
        channel_axis=asked.channel_axis,
        data_range=asked.data_range,
        nonfinite=asked.nonfinite,
        beside={"dout": dout, "dimage": dimage},
    )
    sigma, h, fit = sigma * picture.unit, h * picture.unit, picture.fit
    support: Support | None = None
    slices: Ints = np.zeros(fit.batch, np.int64)
    n = fit.dims["H"] * fit.dims["W"]
    if isinstance(asked.support, str):
        _certified(op, asked, h)
        needed = 48 * n * (search.patch**2 * fit.dims["e"] + 8)
        _check.memory(op, needed, asked.max_bytes, f"points and sums of {n} pixels", "use a window")
        if op != "nl_means":
            support = certified_means.all_pixels(op, n, asked.max_bytes)
    elif asked.support is not None:
        support, slices = _given(fit, asked.support)
    search = search._replace(sigma=sigma)
    H, W, C = fit.shape("H W e")
    call = PictureMeans(fit, H, W, C, search, sigma, h, own, asked.max_bytes, support, slices)
    return picture, call


def _search(op: str, asked: NLMeansArguments) -> PixelSearch:
    topk, iterations = asked.topk, asked.iterations
    if topk is not None:
        topk = _check.integer(op, "topk", topk, low=1, high=63)
    elif asked.select == "statistical" and asked.search == "window":
        text = "chooses topk keys, and topk is not given; topk=16 chooses 16"
        _check.fail(op, "select='statistical'", text)
    if iterations is None:
        iterations = 1 if asked.candidates == "tree" else 3
    return PixelSearch(
        _check.choice(op, "search", asked.search, SEARCHES),
        _check.odd(op, "patch_size", asked.patch_size, "its centre is a pixel"),
        _check.integer(op, "patch_distance", asked.patch_distance, low=0),
        topk,
        _check.choice(op, "select", asked.select, SELECTS),
        _check.choice(op, "candidates", asked.candidates, CANDIDATES),
        _check.integer(op, "iterations", iterations, low=0),
        _check.integer(op, "seed", asked.seed, low=0, high=2**64 - 1),
        0.0,
    )


def _certified(op: str, asked: NLMeansArguments, h: float) -> None:
    """ValueError for what all pixels, to a tolerance, cannot be asked with."""
    _check.choice(op, "support", str(asked.support), ("certified",))
    _check.share(op, "tolerance", asked.tolerance)
    if h == 0:
        text = "has no bounds of weights with support='certified', expected a positive bandwidth"
        _check.fail(op, f"h={h}", text)


def _given(fit: _check.Fit, support: Support) -> tuple[Support, Ints]:
    """A checked support, and its slice for each picture."""
    checked, n = checked_support(fit.op, support), fit.dims["H"] * fit.dims["W"]
    *lead, rows, m = checked.shape
    if (rows, m) != (n, n):
        text = f"has shape {checked.shape}, expected (..., n, n) with n={n} pixels"
        _check.fail(fit.op, "support", text)
    return checked, _check.slices(fit.op, "support", tuple(lead), fit.lead)
