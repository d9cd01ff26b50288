"""All that this package takes from inside Numba, where versions may differ.

Each part is looked for at import. Where this Numba has it not, `jit` does without: code is kept in
Numba's own way, as ``cache=True`` does, and compiled as Numba does by itself, on the thread that
calls. docs/architecture.md says what each part saves.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import Linkage
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import AnalysisPass, register_pass

from nlattn.runtime import address_space, cache, helpers

try:
    from numba.core.caching import FunctionCache, IndexDataCacheFile
except ImportError:  # pragma: no cover - no Numba of today's
    FunctionCache = IndexDataCacheFile = object
try:
    from numba.core.codegen import CPUCodegen, JITCodeLibrary
    from numba.core.registry import CPUDispatcher
    from numba.core.untyped_passes import IRProcessing
except ImportError:  # pragma: no cover - no Numba of today's
    CPUCodegen = JITCodeLibrary = CPUDispatcher = IRProcessing = object


def known() -> dict[str, bool]:
    """Whether this Numba has what each part of this file builds on."""
    called = {
        "cache": [
            (FunctionCache, "__init__", "self py_func"),
            (FunctionCache, "load_overload", "self sig target_context"),
            (FunctionCache, "_save_overload", "self sig data"),
            (FunctionCache, "_index_key", "self sig codegen"),
            (IndexDataCacheFile, "__init__", "self cache_path filename_base source_stamp"),
            (IndexDataCacheFile, "_load_data", "self name"),
            (IndexDataCacheFile, "_save_data", "self name data"),
            (IndexDataCacheFile, "_load_index", "self"),
            (IndexDataCacheFile, "_save_index", "self overloads"),
            (IndexDataCacheFile, "_dump", "self obj"),
        ],
        "compiler": [
            (CPUDispatcher, "get_call_template", "self args kws"),
            (CPUDispatcher, "_compile_for_args", "self args kws"),
            (JITCodeLibrary, "__init__", "self codegen name"),
            (JITCodeLibrary, "_optimize_functions", "self ll_module"),
            (JITCodeLibrary, "_optimize_final_module", "self"),
            (CPUCodegen, "_module_pass_manager", "self kwargs"),
        ],
    }
    return {
        part: all(
            hasattr(kind, name)
            and [*inspect.signature(getattr(kind, name)).parameters] == parameters.split()
            for kind, name, parameters in methods
        )
        for part, methods in called.items()
    }


KNOWN = known()


class _Library(JITCodeLibrary):
    """Compiled code whose calls stay inside: it runs the helpers that it holds, and no others.

    Numba shows helpers to the linker, which takes the first of a name. Where a helper has just been
    compiled that is the one of its own library; where all is read from the disk, the caller's. They
    are optimised differently, so bits may differ.
    """

    light = False
    """A helper: optimised a little, since LLVM does so again in every caller, which holds it."""

    def _optimize_functions(self, ll_module: Any) -> None:
        if self.light:
            ll_module.data_layout = self._codegen._data_layout
        else:
            super()._optimize_functions(ll_module)

    def _optimize_final_module(self) -> None:
        if self.light:
            made = self._codegen._module_pass_manager(opt=1)
            manager, *builder = made if isinstance(made, tuple) else (made,)  # older: it alone
            manager.run(self._final_module, *builder)
            return
        for one in self._final_module.functions:
            if one.linkage == Linkage.linkonce_odr:
                one.linkage = Linkage.internal
        super()._optimize_final_module()


@register_pass(mutates_CFG=False, analysis_only=True)
class _OwnLibrary(AnalysisPass):
    """Has a function lowered into a `_Library`."""

    _name = "nlattn_library"

    def __init__(self) -> None:
        AnalysisPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        """Numba makes a library where none is given."""
        state.library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.light = state.flags.no_cpython_wrapper
        state.library.enable_object_caching()
        return False


class _Compiler(CompilerBase):
    """Numba's compiler, but for the library."""

    def define_pipelines(self) -> list[Any]:
        """Numba's own passes, and one."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_OwnLibrary, IRProcessing)
        passes.finalize()
        return [passes]


class _Helper(CPUDispatcher):
    """Compiled for int64, where Numba would compile for int32 and for each constant too."""

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """What a compiled caller calls."""
        return super().get_call_template(tuple(map(_wide, args)), kws)


def _wide(kind: Any) -> Any:
    kind = numba.types.unliteral(kind)
    return numba.types.int64 if kind == numba.types.int32 else kind


class _Entry(_Helper):
    """Compiles, and reads from the disk, on a helping thread: neither can be resumed.

    But not for a module that is being imported: reading imports it, and would wait for this thread.
    """

    def _compile_for_args(self, *args: Any, **kws: Any) -> Any:
        if helpers.joined():
            raise helpers.LaterError
        module = self.py_func.__module__
        spec = getattr(sys.modules.get(module), "__spec__", None)
        call = helpers.here if getattr(spec, "_initializing", False) else helpers.undisturbed
        begun = time.perf_counter()
        result = call(helpers.whole(super()._compile_for_args), *args, **kws)
        _LOG.info(_FIRST, module, self.py_func.__name__, time.perf_counter() - begun)
        return result


def compiled(function: Callable[..., Any], entry: bool, options: Mapping[str, Any]) -> Any:
    """A function compiled by the classes above; None where this Numba is not known."""
    if not KNOWN["compiler"]:
        return None
    kind, told = _Entry if entry else _Helper, {**_NJIT, **options}
    return kind(py_func=function, targetoptions=told, pipeline_class=_Compiler)


_NJIT = {"nopython": True, "boundscheck": None}
_LOG = logging.getLogger("nlattn.runtime")  # Numba has imported the module
_FIRST = "%s.%s: ready for these types after %.2f s; compiled, or read from the cache"

_ready: set[tuple[Any, ...]] = set()


def ready(compiled: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether other threads may come to help: none of them must have to compile, or to wait for it.

    `undisturbed` sends them back; without it the first call of each signature is done alone.
    """
    if KNOWN["compiler"]:
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
            address_space.require()
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
