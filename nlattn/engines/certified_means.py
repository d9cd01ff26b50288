"""Non-local means over all pixels of a picture, to a stated tolerance.

Weights of all other pixels, ``exp(-max(d2 - 2 sigma^2, 0) / h^2)``, are what `engines.certified`
sums; the pixel's own comes after. It is at most the largest other one, so no more of it may be
misplaced than of the others: these are given half of the tolerance.
"""

from __future__ import annotations

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Support
from nlattn.engines import certified
from nlattn.engines.exhaustive import Slice
from nlattn.engines.nl_means import PictureMeans
from nlattn.engines.patches import patches, tallied
from nlattn.kernels.scores import NEG_L2


def denoise(call: PictureMeans, b: int, voting: bool, tolerance: float, out: Floats) -> None:
    """One picture (H, W, C): certified means of all other pixels, then the pixel itself."""
    u = call.fit["image"][b]
    F = _check.frozen(patches(u, call.search.patch))
    V = F if voting else _check.frozen(u.reshape(call.n, call.C))
    twice, steep, _ = call.options(F.shape[1])
    pairs, keys = _check.frozen(np.zeros((0, 0), bool)), _check.frozen(np.zeros(0, bool))
    floor = min(float(twice) * float(steep), 1e300)
    x = Slice(F, F, NEG_L2, float(steep), keys, pairs, False, floor, True)
    found = certified.attend(certified.survey(x, tolerance / 2), V)
    share = _own_share(found, call.own)[:, None]
    means = (found.out + share * (V - found.out)).astype(u.dtype)
    out[:] = tallied(means, u.shape, call.search.patch) if voting else means.reshape(u.shape)


def _own_share(found: certified.Sums, own: str) -> Floats:
    """Share of a pixel's weights that is its own; all of it where the others are 0 in float64."""
    fixed = np.full_like(found.best, 0 if own == "one" else -np.inf)
    level = found.best if own == "max" else fixed
    total = np.logaddexp(found.lse, level)
    least = np.log(16 * float(np.finfo(np.float64).tiny))
    with np.errstate(invalid="ignore"):
        return np.where(total < least, 1 / (1 + np.exp(found.lse)), np.exp(level - total))


def all_pixels(op: str, n: int, max_bytes: float) -> Support:
    """The support of every pixel with all of its picture, where that fits."""
    what = f"the weights of all {n} x {n} pixels"
    _check.memory(op, 32 * n * n, max_bytes, what, "use a window")
    keys = np.tile(np.arange(n, dtype=np.int32), n)
    return Support(_check.frozen(np.arange(n + 1, dtype=np.int64) * n), _check.frozen(keys), (n, n))
