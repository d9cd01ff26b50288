"""What is done in a folder: lines of JSON, each written before anyone relies on it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable

from nlattn import _check
from nlattn._types import JsonObject, Options
from nlattn.files.untrusted import one_line, open_regular, parse_json
from nlattn.tiled.folder import Folder, Written
from nlattn.tiled.task import Record

NAME = "manifest.jsonl"
_FORMAT = "nlattn run 1"
_SYNC = 0.5
"""Seconds of work that a machine without power may lose; a process that ends loses none."""


class Manifest:
    """Records of one run; holds the folder until it is closed, or nobody knows of it."""

    _lock = -1

    def __init__(self, folder: Folder, header: Options, *, resume: bool):
        self.folder, self.path = folder, folder.path / NAME
        self.records: dict[str, Record] = {}
        self.dropped: set[str] = set()
        """Arrays that were made, used, and removed."""
        self.complete = False
        self._synced = 0.0
        self._header = {"format": _FORMAT, **header}
        os.makedirs(folder.path, exist_ok=True)
        self._lock = os.open(folder.path, os.O_RDONLY)
        try:
            self._hold()
            if self.path.exists():
                if not resume:
                    text = "holds a run; resume=True continues it, another folder begins anew"
                    _check.fail("tiled", str(folder.path), text)
                self._read()
            elif {*folder.path.iterdir()} - {*folder.path.glob(f".{NAME}.tmp")}:
                text = "holds files of others, expected an empty folder or none"
                _check.fail("tiled", str(folder.path), text)
            else:
                self.rewrite()
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let others have the folder."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def add(self, record: Record) -> None:
        """Note that a task is done."""
        self.records[record.task] = record
        self._append(_line(record), sync=time.monotonic() - self._synced > _SYNC)

    def drop(self, names: Iterable[str]) -> None:
        """Note that arrays are used up."""
        self.dropped |= {*names}
        self._append({"dropped": sorted(names)})

    def finish(self) -> None:
        """Note that all is done."""
        self.complete = True
        self._append({"complete": True})

    def forget(self, tasks: Iterable[str]) -> None:
        """Take back that tasks are done."""
        for name in tasks:
            self.records.pop(name, None)
        self.rewrite()

    def rewrite(self) -> None:
        """The whole file anew, under another name first."""
        draft = self.path.with_name(f".{NAME}.tmp")
        lines = [self._header, *map(_line, self.records.values())]
        lines += [{"dropped": sorted(self.dropped)}] * bool(self.dropped)
        lines += [{"complete": True}] * self.complete
        with open(draft, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.path)
        os.fsync(self._lock)

    def _append(self, line: Options, *, sync: bool = True) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            if sync:
                os.fsync(file.fileno())
                self._synced = time.monotonic()

    def _hold(self) -> None:
        try:
            import fcntl
        except ModuleNotFoundError:  # not on this system
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = "is written to by another run; another folder is free"
            _check.fail("tiled", str(self.folder.path), text)
        except OSError:  # a file system without locks
            pass

    def _read(self) -> None:
        """Records of an earlier run of the same header; a last line cut short is dropped."""
        with open_regular("tiled", self.path) as file:
            lines = file.read().decode(errors="replace").split("\n")
        try:
            header = self._take(lines[:-1])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"is damaged: {one_line(error)}; another folder begins anew"
            _check.fail("tiled", str(self.path), text)
        differs = _differences(header, self._header)
        if differs:
            text = f"was begun with {differs}; another folder begins anew"
            _check.fail("tiled", str(self.folder.path), text)
        for draft in self.folder.path.glob(".*.tmp"):
            draft.unlink(missing_ok=True)
        if lines[-1]:
            self.rewrite()

    def _take(self, lines: list[str]) -> JsonObject:
        """Take in what lines say, and return the first; an error if they are not those of a run."""
        if not lines:
            raise ValueError("it has no whole line")
        header, *rest = (parse_json(line.encode()) for line in lines)
        for line in rest:
            if "task" in line:
                parts = tuple(
                    Written(str(array), int(first), int(last), str(digest))
                    for array, first, last, digest in line["parts"]
                )
                record = Record(line["task"], parts, int(line["scores"]), float(line["seconds"]))
                self.records[record.task] = record
            self.dropped |= {*line.get("dropped", ())}
            self.complete |= bool(line.get("complete", False))
        return {**header}


def _line(record: Record) -> JsonObject:
    return {
        "task": record.task,
        "parts": [list(part) for part in record.parts],
        "scores": record.scores,
        "seconds": round(record.seconds, 4),
    }


def _differences(before: Options, now: Options) -> str:
    """What was asked for otherwise, in words."""
    was, asked = _flat(before), _flat(json.loads(json.dumps(now)))
    names = [name for name in {**was, **asked} if was.get(name) != asked.get(name)]
    return ", ".join(f"{n}={was.get(n)!r} and not {asked.get(n)!r}" for n in names[:4])


def _flat(x: Options, above: str = "") -> JsonObject:
    flat: JsonObject = {}
    for name, value in x.items():
        own = f"{above}{name}"
        flat |= _flat(value, f"{own}.") if isinstance(value, dict) else {own: value}
    return flat
