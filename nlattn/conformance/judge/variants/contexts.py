"""The oracle's own formulas with contexts of less precision: ``Q (K.T v)`` for ``(Q K.T) v``.

Maps ``Q K.T`` remember their factors, through divisions of rows and causal masks, until they meet
the values; in gradients until they meet whatever they are multiplied with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nlattn._types import Array
from nlattn.conformance.judge.variants.formats import rounded
from nlattn.conformance.judge.variants.products import NOW, OfProducts


@dataclass(frozen=True)
class OfContexts(OfProducts):
    """Products of three matrices from the right, the product of the last two of less precision."""

    terms: int = 0
    """How many of its terms are added at a time; 0 for all, and every row sees all."""
    sums: bool = False
    """Whether row sums come from such a product with ones."""

    @property
    def name(self) -> str:
        """Completes "your output equals ours ..."."""
        words = f"added up in {self.form.name} in steps of {self.terms}"
        sums = " and row sums" if self.sums else ""
        return f"with contexts `K.T v`{sums} {words if self.terms else self.form.words}"

    def factor(self, x: Any) -> Any:
        """As it is."""
        return x

    def product(self, x: Any, y: Any) -> Any:
        """One that remembers its factors, or one of three."""
        if isinstance(x, _Map) and x.factors is not None:
            return self.of_three(*x.factors, np.asarray(y))
        made = np.asarray(np.asarray(x) @ np.asarray(y)).view(_Map)
        made.factors = _Factors(np.asarray(x), np.asarray(y))
        return made

    def of_three(self, left: Array, right: Array, divisor: float, causal: bool, y: Array) -> Array:
        """``left (right y)``; causal: what each row sees is rounded after as many terms."""
        if not self.terms:
            if causal:
                raise ValueError
            return left @ rounded(right @ y / divisor, self.form)
        context, rows = np.zeros(()), []
        for i in range(0, y.shape[-2], self.terms):
            some = slice(i, i + self.terms)
            before, context = context, right[..., some] @ y[..., some, :] + context
            context = rounded(context, self.form)
            if causal:
                mine = left[..., some, :]
                near = np.tri(mine.shape[-2], self.terms)[:, : y[..., some, :].shape[-2]]
                own = (near * (mine @ right[..., some])) @ y[..., some, :]
                rows.append(
                    mine @ (context if self.terms == 1 else before) + (own if self.terms > 1 else 0)
                )
        if not causal:
            return left @ context / divisor
        rows.append(left[..., y.shape[-2] :, :] @ context)
        return np.concatenate(rows, -2)


class _Factors(NamedTuple):
    """Of a product of two matrices."""

    left: Array
    right: Array
    divisor: float = 1.0
    """What their product is divided by."""
    causal: bool = False
    """Whether it is 0 above the diagonal."""


class _Map(np.ndarray):
    """A product of two matrices that remembers what these were."""

    factors: _Factors | None = None

    def _with(self, made: Array, factors: _Factors) -> _Map:
        x = made.view(_Map)
        x.factors = factors
        return x

    def swapaxes(self, a: Any, b: Any) -> Any:
        made, f = np.asarray(self).swapaxes(a, b), self.factors
        if f is None or f.causal or {a, b} != {-1, -2}:
            return made
        return self._with(made, _Factors(f.right.swapaxes(a, b), f.left.swapaxes(a, b), f.divisor))

    def __truediv__(self, by: Any) -> Any:
        made, f = np.asarray(self) / by, self.factors
        if f is None or (np.ndim(by) and np.shape(by)[-1] != 1):
            return made
        changed = (
            f._replace(left=f.left / by) if np.ndim(by) else f._replace(divisor=f.divisor * by)
        )
        return self._with(made, changed)

    def sum(self, axis: Any = None, **options: Any) -> Any:  # type: ignore[override]
        f, now = self.factors, NOW[0]
        if f is None or axis != -1 or not (isinstance(now, OfContexts) and now.sums):
            return np.asarray(self).sum(axis, **options)
        total = now.of_three(*f, np.ones((self.shape[-1], 1)))
        return total if options.get("keepdims") else total[..., 0]

    def __array_function__(self, function: Any, types: Any, some: Any, options: Any) -> Any:
        """Of `where` a causal map, if that is what is chosen; else what arrays give."""
        if function is np.swapaxes:
            return self.swapaxes(*some[1:])
        plain = [np.asarray(x) if isinstance(x, _Map) else x for x in some]
        made = function(*plain, **options)
        f = some[1].factors if function is np.where and isinstance(some[1], _Map) else None
        lower = f is not None and np.array_equal(some[0], np.tri(*self.shape[-2:]) > 0)
        return self._with(made, f._replace(causal=True)) if f is not None and lower else made
