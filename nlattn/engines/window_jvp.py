"""Forward mode of learned queries in windows: outputs for other values and other gates."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Ints
from nlattn.engines.window import Local


class WindowChange(NamedTuple):
    """Changes of the arrays of a call, and which slices of each (B, 5) belong together."""

    dq: Floats
    dk: Floats
    dv: Floats
    dbias: Floats | None
    """(B., t, kh kw), as dgate."""
    dgate: Floats | None
    slices: Ints


@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite
def jvp(near: Local, v: Floats, change: WindowChange) -> Floats:
    """Change of the outputs (B, Ho, Wo, e), by outputs for other values and gates.

    With ``F(g, v)`` the output of one query for gates g and values v, ds the change of its
    scores and db of its bias:
    ``F(g, ds v + dv) + F(dg, v) + F(g db, v) - (F(1, ds) + F(db, 1)) F(g, v)``.
    """
    of_v, of_gate, own = near.slices[:, 2], near.slices[:, 4], np.arange(len(near.slices))
    values, along, e = v[of_v], change.dv[change.slices[:, 2]], v.shape[3]
    out: Floats = np.zeros((len(own), near.to.Ho, near.to.Wo, e), v.dtype)
    if change.dgate is not None:
        out += _reading(near, change.dgate, change.slices[:, 4], of_v).attend(v, out=True)[0]
    one: Floats = np.ones((1, near.q.shape[1], near.bias.shape[2]), v.dtype)
    for t in range(near.q.shape[1]):
        ds = _moved_score(near, change, t)[..., None]
        both = _check.frozen(np.concatenate([ds * values + along, values], 3))
        read = _reading(near, near.gate, of_gate, own, t).attend(both, out=True)[0]
        moved, whole = read[..., :e], read[..., e:]
        mean = _reading(near, one, 0, own, t).attend(_check.frozen(ds), out=True)[0]
        if change.dbias is not None:
            db = change.dbias[change.slices[:, 3]]
            ones = _check.frozen(np.ones((1, *ds.shape[1:]), v.dtype))
            mean = mean + _reading(near, db, own, 0, t).attend(ones, out=True)[0]
            gated = near.gate[of_gate] * db
            moved = moved + _reading(near, gated, own, of_v, t).attend(v, out=True)[0]
        out += moved - mean * whole
    return out


def _reading(
    near: Local, gate: Floats, at: int | Ints, of_v: int | Ints, query: int | None = None
) -> Local:
    """The same scores with other gates (B., t, kh kw) and values; of one query, or of all."""
    other, some = copy.copy(near), slice(query, None if query is None else query + 1)
    other.slices = near.slices.copy()
    other.slices[:, 2], other.slices[:, 4] = of_v, at
    other.q, other.bias = near.q[:, some], _check.frozen(near.bias[:, some])
    other.score, other.gate = _check.frozen(near.score[:, some]), _check.frozen(gate[:, some])
    other.box = all(bool((x == x[..., :1]).all()) for x in (other.bias, other.gate))
    return other


def _moved_score(near: Local, change: WindowChange, t: int) -> Floats:
    """Change (B, H, W) of the scores of one query."""
    rows = zip(near.slices[:, :2], change.slices[:, :2], strict=True)
    moved = [near.k[b] @ change.dq[i, t] + change.dk[j] @ near.q[a, t] for (a, b), (i, j) in rows]
    shape = len(near.slices), near.to.H, near.to.W
    return near.scale * np.reshape(moved, shape).astype(near.q.dtype)
