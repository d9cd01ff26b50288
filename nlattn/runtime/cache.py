"""Where compiled code is kept: for one state of its sources, in folders of this user alone."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IMPORT = re.compile(r"^from nlattn\.kernels(?:\.(\w+))? import (\([^)]*\)|.*)", re.MULTILINE)
_warned = False


@functools.cache
def sources(file: Path) -> str:
    """Digest of `file` and of all kernel files it calls: a change of a callee makes it stale."""
    package = Path(__file__).parent.parent
    folder = package / "kernels"
    found = {package / "runtime" / name for name in ("jit.py", "private.py")}
    open_ends = {file}
    while open_ends:
        found |= open_ends
        names = set().union(*map(imported, open_ends))
        open_ends = {folder / f"{name}.py" for name in names} - found
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def imported(file: Path) -> set[str]:
    """Stems of the kernel files that a source file imports."""
    names = set()
    for stem, listed in _IMPORT.findall(file.read_text(encoding="utf-8")):
        names |= {stem} if stem else set(re.findall(r"(\w+)(?: as \w+)?", listed))
    return names


def no_cache(reason: object) -> None:
    """Warn, once, that nothing is kept, and why."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"nlattn: compiled code is not kept on disk ({reason}); every process compiles anew. "
            "Set NUMBA_CACHE_DIR to a private writable folder.",
            RuntimeWarning,
            stacklevel=4,
        )


def others_can_write(folder: str) -> bool:
    """Whether somebody else may put files into a folder: Numba's are pickles, which are run.

    A group of the user alone, as many systems give everybody, is nobody else.
    """
    status = os.stat(folder)
    if not hasattr(os, "geteuid"):
        return False
    foreign = status.st_uid not in (0, os.geteuid())
    shared = bool(status.st_mode & stat.S_IWGRP) and not _own_group(status.st_gid)
    return foreign or shared or bool(status.st_mode & stat.S_IWOTH)


def _own_group(number: int) -> bool:
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    named = group.gr_name == user.pw_name and number == user.pw_gid
    return named and set(group.gr_mem) <= {user.pw_name}


_PATIENCE = 20.0
"""Seconds to wait for another process that writes; then nothing is kept this time."""


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Wait for other processes that write to a folder, where the system can lock files."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with Path(folder, "nlattn.lock").open("a") as file:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child of a fork may hold the file open
