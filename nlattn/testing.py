"""Keys whose heavy attention is known beforehand: a planted model, and instances that are tight."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from nlattn import _check
from nlattn._types import Array, Floats, Ints


class Planted(NamedTuple):
    """Keys of which some matter."""

    keys: Floats
    """(m, d) float64."""
    relevant: Ints
    """(s,) the planted ones, ascending."""
    leverage: float
    """What a planted key's leverage is expected to be, ``R^2 / (m noise^2 + R^2)``."""


def planted_keys(
    m: int, d: int, relevant: int, *, eps: float = 0.2, noise: float = 1.0, seed: int = 0
) -> Planted:
    """`relevant` keys in orthonormal directions among normal noise, at random places.

    Parameters
    ----------
    m, d : int
        Keys and channels.
    relevant : int
        Planted keys, at most d and m.
    eps : float
        Expected leverage of the planted keys: their length is ``R``, ``R^2 = eps m noise^2 /
        (1 - eps)``. They stand out if eps is well above ``d / m``, the leverage of the others.
    noise : float
        Standard deviation of the others' channels.
    seed : int
        Chooses everything.

    Returns
    -------
    Planted
        `keys`, `relevant` and `leverage`.

    Raises
    ------
    ValueError
        A number is outside its range.

    Notes
    -----
    Status: ours; [kannan2024] has a planted model of its own.
    """
    op = "planted_keys"
    m, d = _check.integer(op, "m", m, low=1), _check.integer(op, "d", d, low=1)
    s = _check.integer(op, "relevant", relevant, low=0, high=min(m, d))
    eps = _check.number(op, "eps", eps, positive=True)
    if eps >= 1:
        _check.fail(op, f"eps={eps}", "is not below 1")
    noise = _check.number(op, "noise", noise, positive=True)
    rng = np.random.default_rng(_check.integer(op, "seed", seed, low=0))
    keys: Array = noise * rng.standard_normal((m, d))
    places = np.sort(rng.choice(m, s, replace=False))
    directions = np.linalg.qr(rng.standard_normal((d, d)))[0][:s]
    keys[places] = noise * np.sqrt(eps * m / (1 - eps)) * directions
    return Planted(keys, places, eps)


def tight_keys(d: int, copies: int, *, dtype: DTypeLike = np.float64) -> Floats:
    """Each unit vector `copies` times, (d copies, d): all sensitivities are ``1 / copies``.

    For every p. With ``eps = 1 / copies`` all keys are needed, and they are as many as the bound
    ``d / eps`` allows for p <= 2: query e_l gives each copy of e_l that weight.
    """
    d = _check.integer("tight_keys", "d", d, low=1)
    copies = _check.integer("tight_keys", "copies", copies, low=1)
    return np.repeat(np.eye(d, dtype=dtype), copies, axis=0)


def spread_keys(d: int, p: int, *, seed: int = 0) -> Floats:
    """Normal keys, ``d^(p/2)`` of them, of which each is heavy for p > 2 though they are many.

    Query ``q = k_i`` gives key i a weight of about ``1 / (1 + (p-1)!!)``: 1/4 for p = 4.
    """
    d = _check.integer("spread_keys", "d", d, low=1)
    p = _check.integer("spread_keys", "p", p, low=2)
    rng = np.random.default_rng(_check.integer("spread_keys", "seed", seed, low=0))
    keys: Floats = rng.standard_normal((round(d ** (p / 2)), d))
    return keys
