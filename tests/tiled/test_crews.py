"""Every job by two worker processes: the bytes that this process makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlattn.tiled.arrays import scram_arrays
from nlattn.tiled.certified import certified_attention
from nlattn.tiled.executors import Processes
from nlattn.tiled.gradients import scram_vjp
from nlattn.tiled.leverage import leverage_scores
from nlattn.tiled.lewis import lewis_weights
from nlattn.tiled.nl_means import nl_means

pytestmark = pytest.mark.jit


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays, a picture, and a map."""
    path = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for name, channels in (("q", 4), ("k", 4), ("v", 2), ("dout", 2), ("image", 1)):
        x = rng.random((60, 300, channels), np.float32)
        np.save(path / f"{name}.npy", x)
    np.save(path / "keys.npy", np.load(path / "k.npy").reshape(-1, 4))
    scram_arrays(path / "q.npy", path / "k.npy", None, path / "map", iterations=1)
    return path


def jobs(x: Path) -> dict[str, Callable[..., Any]]:
    q, k, v, dout = (x / f"{name}.npy" for name in ("q", "k", "v", "dout"))
    means: dict[str, Any] = {"sigma": 0.2, "patch_size": 3, "patch_distance": 1}
    return {
        "certified": lambda out, **how: certified_attention(q, k, v, out, scale=30.0, **how),
        "gradients": lambda out, **how: scram_vjp(x / "map", q, k, v, dout, out, **how),
        "leverage": lambda out, **how: leverage_scores(x / "keys.npy", out, **how),
        "lewis": lambda out, **how: lewis_weights(x / "keys.npy", 1.0, out, steps=2, **how),
        "means": lambda out, **how: nl_means(
            x / "image.npy", out, search="union", topk=3, iterations=1, **means, **how
        ),
    }


@pytest.mark.parametrize("name", ["certified", "gradients", "leverage", "lewis", "means"])
def test_workers_make_the_same_bytes(tmp_path: Path, given: Path, name: str) -> None:
    do = jobs(given)[name]
    records = do(tmp_path / "one", tile=200)
    again = do(tmp_path / "two", tile=50, executor=Processes(2), max_bytes=1e10)
    assert len(again) > len(records)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == names
    assert any(n.endswith(".npy") for n in names)
    for n in names:
        if n.endswith(".npy") and n != "residual.npy":  # which is by tasks
            assert (tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes(), n


class EndedError(Exception):
    """The run is over before it is done."""


@pytest.mark.parametrize("name", ["certified", "gradients", "lewis", "means"])
def test_jobs_go_on_where_they_were_ended(tmp_path: Path, given: Path, name: str) -> None:
    do, done = jobs(given)[name], [0]

    def stop(_: str, count: int, *__: int) -> None:
        done[0] += count > 0
        if done[0] == at:
            raise EndedError

    tasks, at = len(do(tmp_path / "whole", tile=200)), 0
    for at in (tasks // 2, tasks):
        out, done[0] = tmp_path / str(at), 0
        with pytest.raises(EndedError):
            do(out, tile=200, progress=stop)
        do(out, tile=200, resume=True)
        names = sorted(path.name for path in out.iterdir())
        assert names == sorted(path.name for path in (tmp_path / "whole").iterdir())
        for n in names:
            if n.endswith(".npy"):
                assert (out / n).read_bytes() == (tmp_path / "whole" / n).read_bytes(), n
