"""All that this package takes from inside Numba, where versions may differ.

Each part is looked for at import. Where this Numba has it not, `jit` does without: code is kept in
Numba's own way, as ``cache=True`` does, helpers are compiled as Numba does by itself, and on
the thread that calls. Results are the same; docs/architecture.md says what each part saves.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from nlattn.runtime import cache, helpers, space

try:
    from numba.core.caching import FunctionCache, IndexDataCacheFile
except ImportError:  # pragma: no cover - no Numba of today's
    FunctionCache = IndexDataCacheFile = object


def known() -> dict[str, bool]:
    """Whether this Numba has what each part of this file builds on."""
    called = {
        (Dispatcher, "get_call_template"): ["self", "args", "kws"],
        (Dispatcher, "_compile_for_args"): ["self", "args", "kws"],
        (FunctionCache, "__init__"): ["self", "py_func"],
        (FunctionCache, "load_overload"): ["self", "sig", "target_context"],
        (FunctionCache, "_save_overload"): ["self", "sig", "data"],
        (FunctionCache, "_index_key"): ["self", "sig", "codegen"],
        (IndexDataCacheFile, "__init__"): ["self", "cache_path", "filename_base", "source_stamp"],
        (IndexDataCacheFile, "_load_data"): ["self", "name"],
        (IndexDataCacheFile, "_save_data"): ["self", "name", "data"],
        (IndexDataCacheFile, "_load_index"): ["self"],
        (IndexDataCacheFile, "_save_index"): ["self", "overloads"],
        (IndexDataCacheFile, "_dump"): ["self", "obj"],
    }
    wrong = {
        (kind, name)
        for (kind, name), parameters in called.items()
        if not hasattr(kind, name)
        or list(inspect.signature(getattr(kind, name)).parameters) != parameters
    }
    level = getattr(numba.config, "OPT", None)
    return {
        "cache": not wrong & {key for key in called if key[0] is not Dispatcher},
        "helpers": (Dispatcher, "get_call_template") not in wrong and isinstance(level, int),
        "threads": (Dispatcher, "_compile_for_args") not in wrong,
    }


KNOWN = known()


def lightly(compiled: Any) -> None:
    """How callers compile a helper: for int64, where Numba would for int32 and each constant too.

    And optimised a little, since callers, which hold its code, are optimised with it. The level is
    Numba's global one, changed while its compiler's lock is held: nothing else compiles meanwhile.
    """
    if not KNOWN["helpers"]:
        return
    template = compiled.get_call_template

    def number(kind: Any) -> Any:
        kind = numba.types.unliteral(kind)
        return numba.types.int64 if kind == numba.types.int32 else kind

    def light(arguments: Any, options: Any) -> Any:
        level = numba.config.OPT
        numba.config.OPT = type(level)(min(level, 1))
        try:
            return template(tuple(map(number, arguments)), options)
        finally:
            numba.config.OPT = level

    compiled.get_call_template = light


def undisturbed(compiled: Any) -> None:
    """Leave compiling, and reading from the disk, to a helping thread: it cannot be resumed.

    But not for a module that is being imported: reading imports it, and would wait for this thread.
    """
    if not KNOWN["threads"]:
        return
    compile_for, module = compiled._compile_for_args, compiled.py_func.__module__

    def elsewhere(*arguments: Any, **options: Any) -> Any:
        if helpers.joined():
            raise helpers.LaterError
        spec = getattr(sys.modules.get(module), "__spec__", None)
        call = helpers.here if getattr(spec, "_initializing", False) else helpers.undisturbed
        begun = time.perf_counter()
        result = call(helpers.whole(compile_for), *arguments, **options)
        _LOG.info(_FIRST, module, compiled.py_func.__name__, time.perf_counter() - begun)
        return result

    compiled._compile_for_args = elsewhere


_LOG = logging.getLogger("nlattn.runtime")  # Numba has imported the module
_FIRST = "%s.%s: ready for these types after %.2f s; compiled, or read from the cache"

_ready: set[tuple[Any, ...]] = set()


def ready(compiled: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether other threads may come to help: none of them must have to compile, or to wait for it.

    `undisturbed` sends them back; without it the first call of each signature is done alone.
    """
    if KNOWN["threads"]:
        return True
    signature = (compiled, *map(numba.typeof, arguments))
    if signature in _ready:
        return True
    _ready.add(signature)
    return False


def keep(compiled: Any, function: Callable[..., Any], variant: str) -> None:
    """Keep what is compiled on disk; as Numba does by itself where its cache is not known."""
    try:
        if KNOWN["cache"]:
            compiled._cache = Cache(function, variant)
        else:
            compiled.enable_caching()
    except (RuntimeError, OSError) as error:
        cache.no_cache(error)


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
        self._digest = cache.sources(Path(function.__code__.co_filename))
        if os.name == "posix" and cache.others_can_write(self.cache_path):
            raise PermissionError(f"{self.cache_path} can be written by other users")
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file: Any = _Files(self.cache_path, self._impl.filename_base, stamp)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple(), self._variant, self._digest

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """What was kept for a signature, or None; then MemoryError if it cannot be compiled."""
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # whole, but not what this Numba can read
            found = None
        if found is None:
            space.require()
        return found

    def _save_overload(self, sig: Any, data: Any) -> None:
        self._impl.locator.ensure_cache_path()
        with cache.alone(self.cache_path):  # two that save at once might swap their code
            super()._save_overload(sig, data)

    @contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, pickle.PickleError) as error:
            self.disable()
            cache.no_cache(error)
