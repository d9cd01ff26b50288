"""Arrays and a picture in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def arrays(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    shapes = {"q": (6, 5, 3), "k": (4, 7, 3), "v": (4, 7, 2)}
    paths = {}
    for name, shape in shapes.items():
        paths[name] = tmp_path / f"{name}.npy"
        np.save(paths[name], rng.standard_normal(shape).astype(np.float32))
    return paths


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    from PIL import Image

    x = np.random.default_rng(1).integers(0, 255, (9, 11, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "x.png")
    return tmp_path / "x.png"
