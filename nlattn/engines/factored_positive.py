"""Linear attention through positive features, whose rows are divided by their sum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nlattn import _check
from nlattn._types import Floats, Work
from nlattn.engines import factored_fit, factored_jvp
from nlattn.engines.factored import KeyGradient, KeySums, offset, relative
from nlattn.engines.factored_fit import Factors, Hidden, few_at_once
from nlattn.engines.features import Identity, Random, Relu


class Positive(NamedTuple):
    """``out_i = phi(q_i).(sum_j phi(k_j) v_j.T) / phi(q_i).(sum_j phi(k_j))``."""

    queries: Identity
    keys: Identity

    def sums(self, fit: _check.Fit) -> tuple[Floats, Floats, KeySums]:
        """Sums over keys with eps: (batch, r, e) with values and (batch, r) alone, float64."""
        sums = factored_fit.key_sums(fit, self.keys, Hidden.checked(fit, None))
        eps = self._eps(sums)[:, None]
        context = sums.values + eps[:, :, None] * sums.rows[:, None]
        norm = sums.features + eps * sums.kept[:, None]
        norm[sums.kept == 0] = 1  # nothing to attend to: 0 is divided by something
        return context, norm, sums

    def _eps(self, sums: KeySums) -> Floats:
        """(batch,) what eps is in the units of the sums."""
        eps = self.keys.eps if isinstance(self.keys, (Random, Relu)) else 0.0
        if isinstance(self.keys, Random) and self.keys.stabilizer == "neutral" and eps:
            return np.asarray(np.exp(np.log(eps) - sums.top[:, 0]))
        return np.full(len(sums.top), eps)

    @few_at_once
    def attend(self, fit: _check.Fit) -> Floats:
        """Output of q, k and v."""
        context, norm, _ = self.sums(fit)
        return fit.unfold(factored_fit.read(fit, self.queries, context, norm)[0])

    @few_at_once
    def vjp(self, fit: _check.Fit) -> tuple[Floats, Floats, Floats]:
        """Gradients of q, k and v. What values share changes none, but for what rounding leaves."""
        fit = fit.replaced("v", relative(fit["v"], offset(fit["v"])))
        context, norm, sums = self.sums(fit)
        dq, dcontext, dnorm = factored_fit.queries_vjp(fit, self.queries, context, norm)
        g = KeyGradient(sums.top, np.ones_like(norm), dcontext, dnorm, sums.first)
        dk, dv = factored_fit.keys_vjp(fit, self.keys, Hidden.checked(fit, None), g)
        return fit.reduce("q", dq), fit.reduce("k", dk), fit.reduce("v", dv)

    @few_at_once
    def jvp(self, fit: _check.Fit) -> Floats:
        """Change of the output along dq, dk and dv."""
        context, norm, sums = self.sums(fit)
        change = factored_jvp.key_sums(fit, self.keys, Hidden.checked(fit, None), sums)
        norms = norm, change.features
        return fit.unfold(factored_jvp.read(fit, self.queries, context, change.values, norms))

    def factors(self, fit: _check.Fit) -> Factors:
        """The factors of one head's map; those of queries are divided by their row's sum."""
        _check.one_head(fit)
        _, norm, sums = self.sums(fit)
        left = factored_fit.write(fit, self.queries, "q")[0]
        right = factored_fit.write(fit, self.keys, "k", sums.top)[0]
        _, log = factored_fit.read(fit, self.queries, norm[:, :, None], norm)
        left /= (left.astype(float) @ norm[0])[:, None]
        lse = log[0] + (sums.top[0, 0] if isinstance(self.keys, Random) else 0)
        if isinstance(self.keys, Random):
            lse -= np.log(len(self.keys.projection))
        if not sums.kept[0]:
            lse = np.full(len(left), -np.inf)
        multiply_adds = (left.size + right.size) * fit.dims["d"]
        work = Work(0, multiply_adds, (left.size + right.size) * fit.dtype.itemsize)
        return Factors(left, right, lse, work)
