"""Our oracles as a backend: in float64 the truth itself, in float32 the plain transcription."""

from __future__ import annotations

from nlattn._types import Array, JsonObject, Options, Result
from nlattn.conformance.truth.transcription import transcription


class Backend:
    """NumPy alone, literal and slow."""

    name = "numpy"

    def capabilities(self) -> Options:
        """Every operator, but in the two dtypes that NumPy computes in."""
        return {"dtypes": ["float64", "float32"], "forward_mode": True}

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Compute in the arrays' own dtype."""
        return transcription(op, arrays, options)
