"""Tensors of other libraries in and out: read without a copy, and answered in kind.

Whatever speaks DLPack or the array API standard and lies in the memory of the CPU is read where it
lies; arrays that a function returns become tensors of the library of its first tensor.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import numpy as np

from nlattn import _check
from nlattn._types import Array

P = ParamSpec("P")
R = TypeVar("R")
_CPU = (1, 3)  # device types of DLPack whose memory a CPU reads: its own, and pinned for CUDA
_REMEDIES = {"torch": "{}.cpu()", "cupy": "{}.get()", "jax": "jax.device_get({})"}


class _Library(NamedTuple):
    """Where a tensor comes from, and how an array becomes one of its like."""

    name: str
    like: Callable[[Array], Any]


def accepting(function: Callable[P, R], public: str) -> Callable[P, R]:
    """The function `nlattn.<public>`, with tensors where it takes and returns arrays."""

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name.startswith("return_"):
                _check.flag(public, name, options[name])
        if not any(map(is_tensor, args)) and not any(map(is_tensor, options.values())):
            return function(*args, **options)
        library: _Library | None = None
        names = list(inspect.signature(function).parameters)
        arrays: dict[Any, Any] = {}
        for key, value in (*enumerate(args), *options.items()):
            arrays[key] = value
            if is_tensor(value):
                name = names[key] if isinstance(key, int) and key < len(names) else str(key)
                arrays[key], mine = taken(public, name, value)
                library = library or mine
                if mine.name != library.name:
                    text = f"is a tensor of {mine.name} beside one of {library.name}"
                    _refuse(public, name, text, "tensors of one library")
        positional = (arrays[i] for i in range(len(args)))
        named = {name: arrays[name] for name in options}
        result: Any = function(*positional, **named)
        answer: R = given(result, library)
        return answer

    call.__module__ = "nlattn"  # where it is found again, by pickle and by readers
    return call


def is_tensor(x: object) -> bool:
    """Whether this is an array of another library than NumPy."""
    kind = type(x)
    if kind is np.ndarray or kind in (float, int, str, bool, type(None)):
        return False
    foreign = hasattr(kind, "__dlpack__") or hasattr(kind, "__array_namespace__")
    return foreign and not isinstance(x, (np.ndarray, np.generic))


def taken(op: str, name: str, x: Any) -> tuple[Array, _Library]:
    """The numbers of a tensor as an array over the same memory, and the library it is of."""
    library = type(x).__module__.split(".")[0].removesuffix("lib")
    torch = sys.modules.get("torch")
    of_torch = torch is not None and isinstance(x, torch.Tensor)
    if of_torch and x.requires_grad:
        remedy = f"nlattn.torch.{op} differentiates, {name}.detach() does not"
        _refuse(op, name, "requires a gradient", f"one without; {remedy}")
    if not _of_cpu(x, of_torch):
        remedy = _REMEDIES.get(library, "its copy on the CPU").format(name)
        where = x.device if hasattr(x, "device") else "another device"
        _refuse(op, name, f"lies on {where}", f"the memory of the CPU; pass {remedy}")
    if of_torch:
        return _of_torch(op, name, torch, x), _Library(library, _to_torch)
    namespace = x.__array_namespace__() if hasattr(x, "__array_namespace__") else None
    like = namespace.asarray if namespace is not None else type(x)
    try:
        return np.from_dlpack(x), _Library(library, like)
    except (AttributeError, BufferError, RuntimeError, TypeError):  # of a dtype without a code
        return np.asarray(x), _Library(library, like)


def _of_cpu(x: Any, of_torch: bool) -> bool:
    if of_torch:
        return bool(x.device.type == "cpu")
    return not hasattr(x, "__dlpack_device__") or x.__dlpack_device__()[0] in _CPU


def given(result: Any, library: _Library | None) -> Any:
    """Arrays of a result, alone or in a plain tuple, as tensors; everything else as it is."""
    if library is None:
        return result
    if type(result) is np.ndarray:
        return library.like(result)
    if type(result) is tuple:
        return tuple(given(part, library) for part in result)
    return result


def _of_torch(op: str, name: str, torch: Any, x: Any) -> Array:
    if x.layout is not torch.strided or x.is_conj() or x.is_neg():
        _refuse(op, name, f"is {x.layout} or a lazy view", f"a plain tensor; pass {name}.clone()")
    if x.dtype != torch.bfloat16:
        try:
            array: Array = x.numpy()
        except (TypeError, RuntimeError):  # float8, quantised, or traced by PyTorch
            kind = f"is a {type(x).__name__} of {x.dtype} without numbers that NumPy knows"
            _refuse(op, name, kind, f"plain float32 or float64; pass {name}.float()")
        return array
    halves: Array = x.view(torch.uint16).numpy()
    return halves.view(bfloat16(op, name))


def _to_torch(x: Array) -> Any:
    torch = sys.modules["torch"]
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(np.ascontiguousarray(x).view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def bfloat16(op: str, name: str) -> np.dtype:
    """NumPy's dtype of that name, which a package of its own brings."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        _refuse(op, name, "is of bfloat16", "ml_dtypes to be installed: pip install ml_dtypes")
    found: np.dtype = np.dtype(ml_dtypes.bfloat16)
    return found


def _refuse(op: str, name: str, what: str, expected: str) -> NoReturn:
    raise TypeError(f"{op}: {name} {what}, expected {expected}")
