"""A run from its first stage to its last, or from where an earlier one was ended."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol, TypeAlias

from nlattn import _check
from nlattn._types import Options
from nlattn.tiled.executors import ThisProcess
from nlattn.tiled.folder import Folder
from nlattn.tiled.manifest import Manifest
from nlattn.tiled.task import Record, Stage, TileTask

Told: TypeAlias = Callable[[str, int, int], object] | None
"""Called with the name of a stage, its tasks done, and all of them."""


MAP = "map.json"
_LOG = logging.getLogger("nlattn.tiled")


class Executor(Protocol):
    """Who does tasks."""

    workers: int
    """Tasks that are done at the same time."""

    def perform(self, path: str, tasks: Sequence[TileTask]) -> Iterator[Record]:
        """Records of tasks as they are done, in any order."""
        ...

    def close(self) -> None:
        """End what was begun for the tasks."""
        ...


def run(
    path: str | os.PathLike[str],
    stages: Sequence[Stage],
    header: Options,
    executor: Executor | None = None,
    resume: bool = False,
    progress: Told = None,
    note: Callable[[Sequence[Record]], Options] | None = None,
) -> list[Record]:
    """Do all that is not done; returns the records of all tasks.

    `header` says what is computed from what: a folder is continued by the same alone. Whatever
    ends a run, a signal or a full disk, what is recorded stays done. `note` says what is to be
    known of the whole.
    """
    folder, who = Folder(path), ThisProcess() if executor is None else executor
    with closing(who), closing(Manifest(folder, header, resume=resume)) as manifest:
        _look(folder, stages, manifest)
        for stage in stages if not manifest.complete else ():
            if {*stage.reads, *stage.drops} & manifest.dropped:  # all of it is done
                _remove(folder, stage.drops)
                continue
            arrays, tasks = stage.begin(folder)
            left = [task for task in tasks if task.name not in manifest.records]
            for array in arrays if left else ():
                if not folder.file(array.name).exists():
                    folder.make(array)
            done = len(tasks) - len(left)
            _LOG.info("%s: %d tasks to do, %d done before", stage.name, len(left), done)
            if progress is not None and left:
                progress(stage.name, done, len(tasks))
            for record in who.perform(os.fspath(folder.path.resolve()), left) if left else ():
                manifest.add(record)
                done += 1
                if progress is not None:
                    progress(stage.name, done, len(tasks))
            if stage.drops:
                manifest.drop(stage.drops)
                _remove(folder, stage.drops)
        if not manifest.complete:
            if note is not None:
                folder.note(MAP, note(list(manifest.records.values())))
            manifest.finish()
        return list(manifest.records.values())


def _remove(folder: Folder, names: Iterable[str]) -> None:
    for name in names:
        folder.remove(name)


def _look(folder: Folder, stages: Sequence[Stage], manifest: Manifest) -> None:
    """Forget what is recorded but no longer there, and all that was made from it."""
    number = {name: i for i, stage in enumerate(stages) for name in stage.makes}
    told = {part.array for record in manifest.records.values() for part in record.parts}
    if told - {*number}:
        text = f"is damaged: no stage makes {_check.quoted(min(told - {*number}))}"
        _check.fail("tiled", str(manifest.path), f"{text}; another folder begins anew")
    damaged: dict[int, set[str]] = {}
    for record in manifest.records.values():
        for part in record.parts:
            if part.array not in manifest.dropped and not folder.holds(part):
                damaged.setdefault(number[part.array], set()).add(record.task)
    if not damaged:
        return
    first = min(damaged)
    if manifest.complete:
        text = f"is complete, but {' or '.join(stages[first].makes)} has changed since"
        _check.fail("tiled", str(folder.path), f"{text}; another folder begins anew")
    again, back = set(range(first + 1, len(stages))), set(manifest.dropped)
    for i in range(len(stages) - 1, -1, -1):
        if i in again or i == first:
            again |= {number[name] for name in stages[i].reads if name in back}
    lost = {
        record.task
        for record in manifest.records.values()
        if any(number[part.array] in again for part in record.parts)
    }
    manifest.dropped -= {name for i in again for name in stages[i].makes}
    for i in again:
        _remove(folder, stages[i].makes)
    for name in stages[first].makes:
        folder.mend(name)
    manifest.forget(lost | damaged[first])
