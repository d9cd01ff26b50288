"""Compiled code on disk: valid for one state of its sources, private, never a reason to fail."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import pickle
import re
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile

_IMPORT = re.compile(r"^from nlattn\.kernels(?:\.(\w+))? import (\([^)]*\)|.*)", re.MULTILINE)
_warned = False


@functools.cache
def sources(file: Path) -> str:
    """Digest of `file` and of all kernel files it calls: a change of a callee makes it stale."""
    package = Path(__file__).parent.parent
    folder = package / "kernels"
    found, open_ends = {package / "runtime" / "jit.py"}, {file}
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


def _others_can_write(folder: str) -> bool:
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


class _Files(IndexDataCacheFile):
    """The files of one function. Each begins with its digest; a damaged one counts as missing."""

    def _load_index(self) -> Any:
        try:
            version, stamp, overloads = _opened(self._index_path)
        except Exception:  # not there yet, of Numba's own kind, or damaged
            return {}
        known = (version, stamp) == (self._version, self._source_stamp)
        return overloads if known else {}

    def _save_index(self, overloads: Any) -> None:
        self._write(self._index_path, (self._version, self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        try:
            return _opened(self._data_path(name))
        except Exception:
            return None

    def _save_data(self, name: str, data: Any) -> None:
        self._write(self._data_path(name), data)

    def _write(self, path: str, content: Any) -> None:
        data = self._dump(content)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(data).digest() + data)


def _opened(path: str) -> Any:
    blob = Path(path).read_bytes()
    if hashlib.sha256(blob[32:]).digest() != blob[:32]:
        raise pickle.UnpicklingError(f"{path} is damaged")
    return pickle.loads(blob[32:])


class Cache(FunctionCache):
    """Numba's cache, which here never fails a computation and never trusts a shared folder.

    Its key is the state of the sources, since Numba's own misses callees in other files.
    """

    def __init__(self, function: Callable[..., Any], variant: str) -> None:
        super().__init__(function)
        self._variant = variant
        self._digest = sources(Path(function.__code__.co_filename))
        if os.name == "posix" and _others_can_write(self.cache_path):
            raise PermissionError(f"{self.cache_path} can be written by other users")
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file: Any = _Files(self.cache_path, self._impl.filename_base, stamp)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._variant, self._digest

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept for a signature, or None."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whole, but not what this Numba can read
            return None

    def _save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with alone(self.cache_path):  # two that save at once might swap their code
            super()._save_overload(sig, data)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.PickleError) as error:
            self.disable()
            no_cache(error)


def keep(compiled: Any, function: Callable[..., Any], variant: str) -> None:
    """Keep what is compiled on disk; as Numba does by itself where it is not one that is known."""
    try:
        if KNOWN:
            compiled._cache = Cache(function, variant)
        else:
            compiled.enable_caching()
    except (RuntimeError, OSError) as error:
        no_cache(error)


def _known() -> bool:
    """Whether Numba has what this file builds on."""
    parts = {
        FunctionCache: ("load_overload", "_save_overload", "_index_key", "cache_path"),
        IndexDataCacheFile: ("_load_index", "_save_index", "_load_data", "_save_data", "_dump"),
    }
    there = all(hasattr(kind, name) for kind, names in parts.items() for name in names)
    return there and list(inspect.signature(IndexDataCacheFile).parameters) == [
        "cache_path",
        "filename_base",
        "source_stamp",
    ]


KNOWN = _known()
