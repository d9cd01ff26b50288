"""Types of what `numba.extending.intrinsic` is given: code that writes LLVM's instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from llvmlite import ir
from numba.core.base import BaseContext as Context
from numba.core.types import Array as ArrayKind
from numba.core.types import Type as Kind
from numba.core.typing import Signature

Builder: TypeAlias = ir.IRBuilder
Value: TypeAlias = ir.Value
Values: TypeAlias = Sequence[Value]
Emit: TypeAlias = Callable[[Context, Builder, Signature, Values], Value]

__all__ = ["ArrayKind", "Builder", "Context", "Emit", "Kind", "Signature", "Value", "Values"]
