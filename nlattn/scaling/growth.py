"""Laws of growth, ``n^a log2(n)^b``, by the names people write."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nlattn import _check
from nlattn._types import Floats

_FORM = re.compile(r"(?:n(?:\^(?P<power>\d+(?:\.\d+)?))?)?\s*(?:log(?:\^(?P<logs>\d+))? n)?")
_STEEPEST = 16
"""Largest power: of more, a float does not hold the work."""


class GrowthRate(NamedTuple):
    """``f(n) = n^power log2(n)^logs``."""

    power: float
    logs: int

    def log2(self, n: ArrayLike) -> Floats:
        """``log2 f(n)``."""
        x = np.log2(np.asarray(n, np.float64))
        value: Floats = self.power * x + self.logs * np.log2(x)
        return value

    def __call__(self, n: ArrayLike) -> Floats:
        """``f(n)``."""
        value: Floats = np.exp2(self.log2(n))
        return value

    def __str__(self) -> str:
        """As `growth` reads it."""
        power = "" if not self.power else "n" if self.power == 1 else f"n^{self.power:g}"
        logs = "" if not self.logs else "log n" if self.logs == 1 else f"log^{self.logs} n"
        return " ".join(filter(None, [power, logs])) or "1"


def growth(law: str) -> GrowthRate:
    """Read a law such as "n", "n log n", "n log^2 n", "n^1.5"; ValueError if it is none."""
    text = law.strip() if isinstance(law, str) else ""
    if text.startswith("O(") and text.endswith(")"):
        text = text[2:-1].strip()
    found = _FORM.fullmatch(text)
    if not text or found is None or float(found["power"] or 1) > _STEEPEST:
        expected = "expected n^a log^b n such as 'n', 'n log n' or 'n^2'"
        raise ValueError(f"growth: law={_check.quoted(law)}, {expected}")
    power = float(found["power"] or 1) if text.startswith("n") else 0.0
    return GrowthRate(power, int(found["logs"] or 1) if "log" in text else 0)


FAMILY = ("n", "n log n", "n log^2 n", "n^1.5", "n^2")
"""The laws that times are compared with."""
