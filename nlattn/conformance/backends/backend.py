"""What a backend is, and how one is found: an adapter of ours, a class, a function, a program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from nlattn._types import Function, JsonObject, Options, Result
from nlattn.conformance.case import Array
from nlattn.conformance.table import FUNCTIONS, owner

ADAPTERS = (
    "numpy", "nlattn", "torch", "jax", "onnxruntime", "faiss", "flash_attn", "xformers"
)  # fmt: skip


class Unsupported(Exception):  # noqa: N818  it is an answer, not an error
    """A backend does not do this; its text says why."""


class Backend(Protocol):
    """Somebody's operators. `capabilities` may be left out; a method per operator replaces `run`.

    `capabilities`, a dict or a method that returns one, has the words of
    `capabilities.Capabilities`.
    """

    name: str

    def capabilities(self) -> Options:
        """What it can do."""

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Compute one call: an array, a tuple in the order of `Case.outputs`, or a dict."""


def load(spec: str, op: str | None = None) -> Any:
    """Return the backend that `spec` names.

    Parameters
    ----------
    spec : str
        An adapter ("torch", "torch:math"), a file ("my.py", "my.py:Name"), "package.module:Name",
        or "exec:./program". A file without a name holds a class or object called Backend.
    op : str, optional
        The operator that a plain function computes.

    Raises
    ------
    ValueError
        There is nothing of that name, or it is no backend.
    """
    if op is not None and op not in FUNCTIONS:
        raise ValueError(f"--op {op}: no such operator; nlattn list names them")
    if spec.startswith("exec:"):
        module = importlib.import_module("nlattn.conformance.backends.adapters.program")
        return module.Program(spec[len("exec:") :])
    place, _, name = spec.partition(":")
    if place in ADAPTERS:
        module = importlib.import_module(f"nlattn.conformance.backends.adapters.{place}")
        return module.Backend(*filter(None, [name]))
    thing = _named(spec, _module(spec, place), name or "Backend")
    if inspect.isclass(thing):
        thing = thing()
    elif op is not None or inspect.isfunction(thing):
        thing = wrap(thing, op)
    if not callable(getattr(thing, "run", None)) and not any(
        callable(getattr(thing, function, None)) for function in FUNCTIONS
    ):
        raise ValueError(f"{spec} has neither run() nor a method named after an operator")
    return thing


def wrap(function: Function, op: str | None) -> Any:
    """A backend of one function."""
    if op is None:
        raise ValueError(f"{function.__name__} is a function: --op says which operator it computes")
    return FunctionBackend(function, op)


class FunctionBackend:
    """One operator, computed by a function of its arrays and keyword options."""

    def __init__(self, function: Function, op: str):
        self.name = getattr(function, "__name__", type(function).__name__)
        self.function, self.op = function, op

    def capabilities(self) -> Options:
        """The one operator, and what `capable` says of the function."""
        own = {"operators": [self.op], "gradients": self.op != owner(self.op)}
        return {**own, **getattr(self.function, "capabilities", {})}

    def run(self, op: str, arrays: dict[str, Array], options: JsonObject) -> Result:
        """Call the function."""
        if op != self.op:
            raise Unsupported(f"computes {self.op} only")
        return call(self.function, op, arrays, options)


def told(backend: object) -> JsonObject:
    """A backend's own words, the operators that it has methods for, and what these name."""
    words = getattr(backend, "capabilities", None)
    words = dict(words() if callable(words) else words or {})
    if "operators" not in words and not callable(getattr(backend, "run", None)):
        methods = [op for op in FUNCTIONS if callable(getattr(backend, op, None))]
        words["operators"] = methods or None
        functions = {op: getattr(backend, op) for op in methods}
    elif isinstance(backend, FunctionBackend):
        functions = {backend.op: backend.function}
    else:
        functions = {}
    words.setdefault("options", {op: x for op, f in functions.items() if (x := _options(f))})
    return {name: x for name, x in words.items() if x is not None}


def _options(function: Function) -> list[str]:
    """What a function can be given by name, a support for its arrays, too; [] if anything."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # it does not say
        return []
    return [] if _any(parameters) else sorted({x for n in parameters for x in (n, n.split("_")[0])})


def _any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def run(backend: Any, op: str, arrays: Mapping[str, Array], options: Options) -> Any:
    """Ask a backend for one call, by `run` or by the method of the operator's name."""
    if callable(getattr(backend, "run", None)):
        return backend.run(op, dict(arrays), dict(options))
    method = getattr(backend, op, None)
    if not callable(method):
        raise Unsupported(f"has no method {op}")
    return call(method, op, arrays, options)


_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call(function: Function, op: str, arrays: Mapping[str, Array], options: Options) -> Any:
    """``function(q, k, v, **rest)``; Unsupported names what it does not take.

    Where parameters have the arrays' names in another order, arrays go by name. Of a support that
    is given in two forms a function may take one.
    """
    spec = FUNCTIONS[op.removesuffix("_stages")]
    first = [*spec.arrays]
    if op.endswith("_vjp"):
        first.append(f"d{spec.cases.outputs[0]}")
    if op.endswith("_jvp"):
        first += [f"d{name}" for name in spec.arrays]
    first = [name for name in first if name in arrays]
    first = [name for name in first if name not in spec.optional]
    rest = {name: x for name, x in arrays.items() if name not in first}
    rest = {name.replace(".", "_"): x for name, x in rest.items()} | dict(options)
    parameters = inspect.signature(function).parameters
    if not _any(parameters):
        spare = _other_form(parameters) if "support_index" in rest else ()
        rest = {name: x for name, x in rest.items() if name in parameters or name not in spare}
        missing = [name for name in rest if name not in parameters]
        if missing:
            raise Unsupported(f"takes no {', '.join(missing)}")
    named = [n for n, p in parameters.items() if p.kind in _BY_NAME]
    if named[: len(first)] != first and {*first} <= {*named}:
        return function(**{name: arrays[name] for name in first}, **rest)
    return function(*(arrays[name] for name in first), **rest)


def _other_form(parameters: Container[str]) -> tuple[str, ...]:
    """What a function need not take of a support that is both a table and lists of keys."""
    lists = ("support_indptr", "support_indices")
    if "support_index" in parameters:
        return (*lists, "support_shape")
    return ("support_index",) if all(name in parameters for name in lists) else ()


def _module(spec: str, place: str) -> ModuleType:
    if not place.endswith(".py"):
        unknown = (
            f"{spec}: no module {place}, expected an adapter ({', '.join(ADAPTERS)}), "
            "FILE.py[:NAME], MODULE:NAME or exec:PROGRAM"
        )
        if not all(map(str.isidentifier, place.split("."))):
            raise ValueError(unknown)
        if "" not in sys.path:  # the folder in which this is run, as python -m has it
            sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise ValueError(unknown) from None
            raise
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"{place}: no such file")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent))
    found.loader.exec_module(module)
    return module


def _named(spec: str, module: ModuleType, name: str) -> Any:
    thing: Any = module
    for part in name.split("."):
        thing = getattr(thing, part, None)
    if thing is None:
        raise ValueError(f"{spec}: {module.__name__} holds no {name}")
    return thing
