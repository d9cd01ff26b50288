"""Linear attention whose queries and keys are normalised apart from each other, or not at all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Work
from nlattn.engines import factored_fit, factored_jvp
from nlattn.engines.factored import KeyGradient, KeySums
from nlattn.engines.factored_fit import Factors, Hidden, few_at_once
from nlattn.engines.features import ColumnExp, Identity, RowSoftmax


class Separate(NamedTuple):
    """``out = Q (K.T v)``: both factors softmax along their own axis, or ``q (k.T v) / m``."""

    queries: Identity
    keys: Identity
    hidden: Hidden

    @classmethod
    def of(cls, fit: _check.Fit, hidden: Hidden | None = None, *, soft: bool = False) -> Separate:
        """The feature maps for the arrays of one call."""
        queries, keys = (RowSoftmax(), ColumnExp()) if soft else (Identity(), Identity())
        return cls(queries, keys, hidden or Hidden.checked(fit, None))

    @property
    def soft(self) -> bool:
        """Whether the factors are softmaxed."""
        return isinstance(self.keys, ColumnExp)

    def scale(self, sums: KeySums) -> Floats:
        """(batch, d) what the sums over keys are multiplied by; 0 where there is no key."""
        total = sums.features
        if not self.soft:
            total = np.broadcast_to(sums.kept[:, None], total.shape)
        return np.divide(1, total, where=total != 0, out=np.zeros(total.shape))

    def context(self, fit: _check.Fit) -> tuple[Floats, KeySums]:
        """``K.T v`` (batch, d, e), float64, and the sums it is made of."""
        sums = factored_fit.key_sums(fit, self.keys, self.hidden)
        return sums.values * self.scale(sums)[:, :, None], sums

    @few_at_once
    def attend(self, fit: _check.Fit) -> Floats:
        """Output of q, k and v."""
        context, _ = self.context(fit)
        return fit.unfold(factored_fit.read(fit, self.queries, context)[0])

    @few_at_once
    def vjp(self, fit: _check.Fit) -> tuple[Floats, Floats, Floats]:
        """Gradients of q, k and v."""
        context, sums = self.context(fit)
        dq, dcontext, _ = factored_fit.queries_vjp(fit, self.queries, context)
        along = np.zeros(context.shape[:2])
        if self.soft:
            along = -np.einsum("bcf,bcf->bc", context, dcontext)
        g = KeyGradient(sums.top, self.scale(sums), dcontext, along, sums.first)
        dk, dv = factored_fit.keys_vjp(fit, self.keys, self.hidden, g)
        return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)

    @few_at_once
    def jvp(self, fit: _check.Fit) -> Floats:
        """Change of the output along dq, dk and dv."""
        context, sums = self.context(fit)
        change = factored_jvp.key_sums(fit, self.keys, self.hidden, sums)
        moved = change.values
        if self.soft:
            moved = moved - context * change.features[:, :, None]
        moved = moved * self.scale(sums)[:, :, None]
        return fit.unfold(factored_jvp.read(fit, self.queries, context, moved))

    def factors(self, fit: _check.Fit) -> Factors:
        """The factors of one head's map."""
        _check.one_head(fit)
        sums = factored_fit.key_sums(fit, self.keys, self.hidden)
        left = factored_fit.write(fit, self.queries, "q")[0]
        right = factored_fit.write(fit, self.keys, "k", sums.top, self.scale(sums), self.hidden)[0]
        lse = np.full(len(left), 0.0 if sums.kept[0] else -np.inf) if self.soft else None
        numbers = left.size + right.size
        work = Work(0, numbers, 2 * numbers * fit.dtype.itemsize)
        return Factors(left, right, lse, work)
