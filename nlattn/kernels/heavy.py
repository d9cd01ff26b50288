"""Polynomial attention weights ``|q.k|^p / Z``: normalisers, and the entries of at least eps.

Queries come scaled by a power of two each, which no weight sees, and powers are relative to a
power of two above the largest score: nothing over- or underflows. All sums are float64. A
normaliser is four rows of `norm` (4, n): Z is ``norm[1] (norm[0] 2^norm[2])^p``, with relative
error at most ``norm[3]``.
"""

from __future__ import annotations

import math

import numpy as np

from nlattn._types import Floats, Ints
from nlattn.kernels.gemm import aligned, multiply, width
from nlattn.runtime import jit

KEYS = 256
"""Keys of a block: its scores against one panel of queries fit the first-level cache."""


@jit.device
def above(x: float) -> float:
    """A power of two above x, exponent within +-1000; 1 for 0 and what is not finite."""
    if not 0 < x < np.inf:
        return 1.0
    return math.ldexp(1.0, min(max(math.frexp(x)[1], -1000), 1000))


@jit.device
def power(x: float, p: float) -> float:
    """``x^p``, by products where they do."""
    if p == 2:
        return x * x
    if p == 1:
        return x
    if p == 4:
        return x * x * (x * x)
    if p == 3:
        return x * x * x
    if p == 6:
        return x * x * x * (x * x * x)
    if p == 1.5:
        return x * math.sqrt(x)
    return x**p


@jit.device
def pack(q: Floats, rows: Ints, first: int, panel: Floats, size: Floats) -> None:
    """Scaled queries side by side, ``panel[c, l] = q[row_l, c] / size[l]``."""
    w, d = width(panel), q.shape[1]
    for l in range(w):
        size[l] = 1
        if first + l < rows.size:
            i, top = rows[first + l], 0.0
            for c in range(d):
                top = max(top, abs(np.float64(q[i, c])))
            size[l] = above(top)
            for c in range(d):
                panel[c * w + l] = q[i, c] / size[l]
        else:
            for c in range(d):
                panel[c * w + l] = 0


@jit.kernel
def normalise(
    a: int,
    q: Floats,
    k: Floats,
    rows: Ints,
    p: float,
    causal: bool,
    error: float,
    norm: Floats,
) -> None:
    """Sums over all keys k (m, d), float64, for the queries `rows`; causal: keys up to the row."""
    m, d, w = k.shape[0], k.shape[1], width(k)
    first, last = a * w, min(a * w + w, rows.size)
    panel, s, size = aligned(d * w, k), aligned(KEYS * w, k), aligned(w, k)
    top, total, part = aligned(w, k), aligned(w, k), aligned(w, k)
    pack(q, rows, first, panel, size)
    for l in range(w):
        top[l], total[l] = 0, 0
    for j0 in range(0, min(m, rows[last - 1] + 1) if causal else m, KEYS):
        count = min(KEYS, m - j0)
        multiply(k, j0 * d, d, 1, panel, 0, w, s, 0, w, count, d)
        for l in range(w):
            part[l] = 0
        for j in range(count):
            for l in range(w):
                x = abs(s[j * w + l])
                if causal and first + l < last and j0 + j > rows[first + l]:
                    x = 0.0
                s[j * w + l] = x
                part[l] = x if x > part[l] else part[l]
        for l in range(w):
            if part[l] > top[l]:
                new = above(part[l])
                total[l] *= power(top[l] / new, p)
                top[l] = new
            part[l] = 0
        for j in range(count):
            for l in range(w):
                part[l] += power(s[j * w + l] / (top[l] if top[l] > 0 else 1.0), p)
        for l in range(w):
            total[l] += part[l]
    for l in range(last - first):
        i = rows[first + l]
        norm[0, i], norm[1, i] = top[l], total[l]
        norm[2, i], norm[3, i] = math.frexp(size[l])[1] - 1, error


@jit.function
def squares(x: Floats) -> float:
    """Sum of the squares of a matrix."""
    total = 0.0
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            total += x[i, c] * x[i, c]
    return total


@jit.kernel
def quadratic(a: int, q: Floats, root: Floats, whole: float, seen: int, norm: Floats) -> None:
    """``Z = |root q|^2`` for a factor (r, d) of the keys' Gram matrix, with its own error.

    `whole` is ``|root|^2``. The first `seen` rows are for all queries, and then one more for each
    next query.
    """
    r, d, w = root.shape[0], root.shape[1], width(root)
    rows = np.arange(a * w, min(a * w + w, q.shape[0]))
    panel, s, size = aligned(d * w, root), aligned(max(r, 1) * w, root), aligned(w, root)
    pack(q, rows, 0, panel, size)
    if r:
        multiply(root, 0, d, 1, panel, 0, w, s, 0, w, r, d)
    for l in range(rows.size):
        top, total, length = 0.0, 0.0, 0.0
        own = min(r, seen + rows[l] + 1)
        for c in range(own):
            top = max(top, abs(s[c * w + l]))
        scale = above(top)
        for c in range(own):
            total += (s[c * w + l] / scale) * (s[c * w + l] / scale)
        for c in range(d):
            length += panel[c * w + l] * panel[c * w + l]
        i = rows[l]
        norm[0, i], norm[1, i] = scale, total
        norm[2, i] = math.frexp(size[l])[1] - 1
        lost = math.sqrt(whole * length) / (scale * math.sqrt(total)) if total > 0 else np.inf
        norm[3, i] = 4 * (d + r) * 2.0**-53 * lost


@jit.kernel
def entries(
    a: int,
    q: Floats,
    k: Floats,
    keys: Ints,
    norm: Floats,
    options: Floats,
    start: int,
    count: Ints,
    index: Ints,
    value: Floats,
    score: Floats,
) -> None:
    """Entries of at least eps among some keys, rows k (u, d) float64 at places `keys`, ascending.

    `options` p, eps, and whether causal; results for the queries from `start`: `count` (rows,),
    `index`, `value` and `score` (rows, most).
    """
    u, d, w = k.shape[0], k.shape[1], width(k)
    p, eps, causal = options[0], options[1], options[2] != 0
    rows = np.arange(start + a * w, start + min(a * w + w, count.size))
    panel, s, size = aligned(d * w, k), aligned(KEYS * w, k), aligned(w, k)
    bound = aligned(w, k)
    pack(q, rows, 0, panel, size)
    for l in range(w):
        bound[l] = np.inf
        if l < rows.size:
            i = rows[l]
            count[i - start] = 0
            if norm[1, i] > 0:
                least = eps * norm[1, i] * (1 - norm[3, i])
                bound[l] = norm[0, i] * least ** (1 / p) * (1 - 1e-12)
    for j0 in range(0, u, KEYS):
        block = min(KEYS, u - j0)
        multiply(k, j0 * d, d, 1, panel, 0, w, s, 0, w, block, d)
        for j in range(block):
            found = False
            for l in range(w):
                found = found or abs(s[j * w + l]) >= bound[l]
            if not found:
                continue
            for l in range(rows.size):
                x, i, key = s[j * w + l], rows[l], keys[j0 + j]
                if not abs(x) >= bound[l] or (causal and key > i):
                    continue
                weight = power(abs(x) / norm[0, i], p) / norm[1, i]
                at = count[i - start]
                if weight >= eps * (1 - norm[3, i]) and at < index.shape[1]:
                    index[i - start, at], value[i - start, at] = key, min(weight, 1.0)
                    score[i - start, at] = x * size[l]
                    count[i - start] = at + 1
