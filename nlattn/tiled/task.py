"""What a run is made of: tasks, pure functions of files, and stages, lists of tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from numpy.typing import ArrayLike

from nlattn.tiled.folder import ArraySpec, Folder, Written

Blocks: TypeAlias = Mapping[str, ArrayLike]
"""Rows of some arrays, by name."""
Done: TypeAlias = tuple[Blocks, int]
"""What a task returns: blocks, and how many scores they took."""


class TileTask(NamedTuple):
    """One piece of work: ``function(folder, *arguments)`` gives the rows it owns."""

    name: str
    function: Callable[..., Done]
    arguments: tuple[object, ...]
    starts: Mapping[str, int]
    """First row of the block of each array."""


class Record(NamedTuple):
    """A task that is done."""

    task: str
    parts: tuple[Written, ...]
    scores: int
    seconds: float


class Cost(NamedTuple):
    """What one stage takes."""

    tasks: int
    nbytes: int
    """Memory of one task at most, beside files that are mapped."""
    disk: int
    """Bytes of the arrays it makes, at most."""
    scores: int = 0
    """Scores of all tasks, at most."""


class Stage(NamedTuple):
    """Tasks that may run at the same time; the next stage begins when all are done."""

    name: str
    reads: tuple[str, ...]
    """Arrays of earlier stages."""
    makes: tuple[str, ...]
    """Arrays that these tasks write, and nobody else."""
    begin: Callable[[Folder], tuple[list[ArraySpec], list[TileTask]]]
    """Arrays and tasks, worked out when all earlier stages are done."""
    cost: Cost
    drops: tuple[str, ...] = ()
    """Arrays that nobody needs any more."""


def perform(path: str, task: TileTask) -> Record:
    """Do a task and write what it gives."""
    begun, folder = time.perf_counter(), Folder(path)
    blocks, scores = task.function(folder, *task.arguments)
    if set(blocks) != set(task.starts):
        raise AssertionError(f"{task.name} gives {sorted(blocks)}, not {sorted(task.starts)}")
    parts = tuple(folder.write(name, task.starts[name], block) for name, block in blocks.items())
    return Record(task.name, parts, scores, time.perf_counter() - begun)
