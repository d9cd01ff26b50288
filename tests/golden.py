"""Inputs, weights, outputs and gradients of the papers' published modules."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.helpers import published

FORWARD = {"rtol": 1e-9, "atol": 1e-10}
GRADIENT = {"rtol": 1e-8, "atol": 1e-10}


class Golden(NamedTuple):
    """One file; images are channels-last."""

    meta: dict[str, Any]
    arrays: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        x = self.arrays[key]
        if key.split(".")[-1] not in ("x", "y") or "sn_" in self.meta["system"]:
            return x
        return np.moveaxis(x, 1, -1)

    @property
    def weights(self) -> dict[str, Any]:
        """Parameters and buffers by their published names."""
        return {key[2:]: x for key, x in self.arrays.items() if key.startswith("w.")}

    def gradients(self, kind: str = "grad") -> dict[str, Any]:
        """Gradients of weights by name."""
        start = f"{kind}.w."
        found = {k[len(start) :]: x for k, x in self.arrays.items() if k.startswith(start)}
        assert found
        return found


def load(name: str) -> Golden:
    """The file `name`.npz."""
    arrays, meta = published(name)
    return Golden(meta, arrays)


def assert_gradients(got: tuple[Any, dict[str, Any]], golden: Golden, kind: str = "grad") -> None:
    """A layer's gradients are those of the published module: of the input and of every weight."""
    dx, dweights = got
    np.testing.assert_allclose(dx, golden[f"{kind}.in.x"], **GRADIENT)
    want = golden.gradients(kind)
    assert dweights.keys() == want.keys()
    for name, gradient in want.items():
        assert dweights[name].shape == gradient.shape
        np.testing.assert_allclose(dweights[name], gradient, **GRADIENT, err_msg=name)
