"""A wish for quality instead of knobs: the first setting of SCRAM that holds a share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._modes import Candidates, SearchMethod, SupportKind
from nlattn._types import Field, Floats
from nlattn.engines.draws import hashes
from nlattn.maps.sparse import SparseMap
from nlattn.ops.certified import certified_attention
from nlattn.ops.patchmatch import patchmatch
from nlattn.ops.scram import scram_map, scram_support

_Z = 1.959963984540054  # two-sided 95 % of a normal distribution


class Setting(NamedTuple):
    """Options of a search and of a support."""

    method: SearchMethod
    candidates: Candidates
    topk: int
    kind: tuple[SupportKind, ...]
    window: int


class Trial(NamedTuple):
    """What a setting keeps, and what it costs."""

    setting: Setting
    held: float
    """Mean share of exact attention that its keys hold, over the sampled queries."""
    low: float
    """Lower end of its 95 % interval."""
    keys: float
    """Keys of a query in the mean."""
    scores: float
    """Score evaluations of the search for a query."""


class Wish(NamedTuple):
    """What `scram_for_mass` chose."""

    reached: bool
    """Whether ``chosen.low`` is at least what was wished for; else the best that was found."""
    chosen: Trial
    tried: tuple[Trial, ...]
    rows: int
    """Queries that it was measured on."""
    field: Field
    map: SparseMap
    """The map of the chosen setting, from values to outputs."""


LADDER = (
    Setting("buffered", "tree", 1, ("neighbours",), 1),
    Setting("buffered", "tree", 8, ("topk",), 1),
    Setting("buffered", "tree", 8, ("topk", "neighbours"), 1),
    Setting("certified", "tree", 16, ("topk",), 1),
    Setting("certified", "tree", 64, ("topk",), 1),
    Setting("certified", "tree", 64, ("topk", "neighbours"), 3),
)
"""Settings in the order in which they are tried; proved keys where a search does not suffice."""


def scram_for_mass(
    q: Floats,
    k: Floats,
    *,
    mass: float,
    scale: float | None = None,
    rows: int = 256,
    tolerance: float = 1e-3,
    seed: int = 0,
    max_bytes: float = 4e9,
) -> Wish:
    """The first setting of `scram` whose keys hold a share `mass` of exact softmax attention.

    Parameters
    ----------
    q, k : (Hq, Wq, d), (Hk, Wk, d) arrays of one dtype
        Queries and keys on their grids.
    mass : float
        Share wished for in the mean over queries, in (0, 1). It is reached when the lower end of
        the 95 % interval is not below.
    scale : float
        Factor on the scores, ``1/sqrt(d)`` if omitted.
    rows, tolerance, seed : int, float, int
        Queries that it is measured on, drawn by hash, and how exactly; seed of searches too.
    max_bytes : float
        Most bytes that a support may take.

    Returns
    -------
    Wish
        The setting, its map, and what else was tried.

    Notes
    -----
    Settings are tried in turn (`LADDER`), each at the cost of a run. Status: ours.

    Examples
    --------
    >>> wish = nlattn.scram_for_mass(3 * grid, 3 * grid, mass=0.5)
    >>> wish.reached, wish.map.shape
    (True, (256, 256))
    """
    op = "scram_for_mass"
    fit = _check.fit(op, {"q": (q, "Hq Wq d"), "k": (k, "Hk Wk d")}, remedy=False)
    _check.one_head(fit, "(Hq, Wq, d), (Hk, Wk, d)")
    share = _check.number(op, "mass", mass)
    if not 0 < share < 1:
        _check.fail(op, f"mass={share}", "is a share of exact attention, expected between 0 and 1")
    count = _check.integer(op, "rows", rows, low=2)
    q, k = fit["q"][0], fit["k"][0]
    n, m, d = q.shape[0] * q.shape[1], k.shape[0] * k.shape[1], q.shape[2]
    if not n or not m:
        _check.fail(op, "q, k", f"have grids of {n} and {m} points, expected some of both")
    seed = _check.integer(op, "seed", seed, low=0, high=2**63 - 1)
    some = np.sort(np.argsort(hashes(seed, 0, 0, np.arange(n), 0), kind="stable")[:count])
    sets = q.reshape(n, d)[some], k.reshape(m, d), np.zeros((m, 1), q.dtype)
    _, exact = certified_attention(*sets, scale=scale, tolerance=tolerance, return_lse=True)

    tried: list[Trial] = []
    best: Wish | None = None
    fields: dict[tuple[str, int], Field] = {}
    for setting in LADDER:
        topk = min(setting.topk, m)
        field = fields.get((setting.method, topk))
        if field is None:
            field = patchmatch(
                q, k, candidates=setting.candidates, method=setting.method, topk=topk,
                scale=scale, seed=seed,
            )  # fmt: skip
            fields = {(setting.method, topk): field}
        support = scram_support(
            field, kind=setting.kind, window=setting.window, max_bytes=max_bytes
        )
        A = scram_map(q, k, field=field, support=support, scale=scale)
        trial = _trial(setting, np.minimum(np.exp(A.lse[some] - exact), 1), n, A, field)
        tried.append(trial)
        if best is None or trial.held > best.chosen.held:
            best = Wish(trial.low >= share, trial, (), len(some), field, A)
        if best.reached:
            break
    assert best is not None
    return best._replace(tried=tuple(tried))


def _trial(setting: Setting, held: Floats, n: int, A: SparseMap, field: Field) -> Trial:
    error = float(np.sqrt((1 - len(held) / n) * held.var(ddof=1) / len(held)))
    mean, keys = float(held.mean()), len(A.support.indices) / n
    return Trial(setting, mean, max(0.0, mean - _Z * error), keys, field.work.scores / n)
