"""The photograph at every size, as arguments of any operator."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nlattn import images
from nlattn._types import Floats, JsonObject
from nlattn.runtime.helpers import remembered

_LEARNED = {"t": 2, "f": 4, "r": 128}  # queries, phases and features of operators that have such


class Scene:
    """One size of the built-in photograph: its features, and queries and keys made of them.

    Parameters
    ----------
    grid : (height, width)
        The photograph is scaled to it.
    channels : int
        Features of 7 x 7 patches; queries and keys have a channel more.
    seed : int
        Of what an operator learns or draws.
    """

    def __init__(self, grid: tuple[int, int], channels: int = 32, seed: int = 0):
        self.grid, self.channels, self.seed = grid, channels, seed
        self.n = grid[0] * grid[1]

    @remembered
    def image(self) -> Floats:
        """(H, W, 3) float32."""
        return images.resize(images.photograph(), *self.grid)

    @remembered
    def features(self) -> Floats:
        """(H, W, channels) float32."""
        return images.patch_features(self.image, patch=7, channels=self.channels)

    @remembered
    def pair(self) -> tuple[Floats, Floats]:
        """Queries and keys."""
        return images.queries_and_keys(self.features)

    @remembered
    def scale(self) -> float:
        """Factor on scores at which the median query spreads over 16 keys."""
        return images.softmax_scale(*self.pair, keys=min(16.0, self.n / 4), seed=self.seed)

    def arrays(self, shapes: Mapping[str, str]) -> JsonObject:
        """Arrays by name, for names and dimensions as the table of operators writes them."""
        return {name: self._array(name, dims.split()) for name, dims in shapes.items()}

    def _array(self, name: str, dims: list[str]) -> Floats:
        if dims[0] not in ("n", "m", "Hq", "Hk", "Hv", "H"):
            sizes = [_LEARNED.get(dim, self.channels + 1) for dim in dims]
            rng = np.random.default_rng([self.seed, len(name)])
            return rng.standard_normal(sizes).astype(np.float32)
        found = self._picture(name)
        return found.reshape(-1, found.shape[-1]) if dims[0] in ("n", "m") else found

    def _picture(self, name: str) -> Floats:
        if name == "image":
            return self.image
        return self.features if name == "v" else self.pair["qk".index(name)]
