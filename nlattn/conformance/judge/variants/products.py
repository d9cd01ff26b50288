"""The oracle's own formulas with the factors of all matrix products in less precision, as TF32."""

from __future__ import annotations

import ast
import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from inspect import unwrap
from typing import Any

import numpy as np

from nlattn._types import Function, Result
from nlattn.conformance.judge.variants.base import Call, lock
from nlattn.conformance.judge.variants.formats import NarrowFormat, rounded
from nlattn.conformance.judge.variants.formulas import (
    OWN,
    compiled,
    functions_of,
    replaced,
    tree_of,
)
from nlattn.conformance.truth.transcription import transcription

_PRODUCT, _EINSUM = "_product_of_factors", "_einsum_of_factors"
NOW = list["OfProducts"]()
"""What products go through now."""


@dataclass(frozen=True)
class OfProducts:
    """Factors of less precision in all products of matrices."""

    form: NarrowFormat

    @property
    def name(self) -> str:
        """Completes "your output equals ours ..."."""
        return f"with the factors of all matrix products {self.form.words}"

    def __call__(self, op: str, c: Call) -> Result:
        """What a function of the table gives with it."""
        with lock, ExitStack() as stack:
            for function, instead in _hooked(op):
                stack.enter_context(replaced(function, instead))
            NOW[:] = [self]
            return transcription(op, c.arrays, c.options)

    def factor(self, x: Any) -> Any:
        """One factor of a product."""
        return rounded(np.asarray(x), self.form) if np.asarray(x).dtype == np.float64 else x

    def product(self, x: Any, y: Any) -> Any:
        """Of two arrays of matrices."""
        return self.factor(x) @ self.factor(y)


def multiplies(op: str) -> bool:
    """Whether a function of the table has products of matrices."""
    return bool(_hooked(op))


OWN |= {
    _PRODUCT: lambda x, y: NOW[0].product(x, y),
    _EINSUM: lambda how, *some: np.einsum(how, *map(NOW[0].factor, some)),
}


@cache
def _hooked(op: str) -> list[tuple[Function, Function]]:
    """Functions that an oracle needs, and what stands for them; empty if none has a product."""
    hooked = {f: _Hooks().visit(copy.deepcopy(tree_of(f))) for f in functions_of(op)}
    trees = {f: ast.fix_missing_locations(tree) for f, tree in hooked.items()}
    if not any(_EINSUM in text or _PRODUCT in text for text in map(ast.unparse, trees.values())):
        return []
    made = [(f, compiled(f, tree)) for f, tree in trees.items()]
    for _, instead in made:
        known = unwrap(instead).__globals__
        known |= {unwrap(f).__name__: x for f, x in made if known.get(unwrap(f).__name__) is f}
    return made


class _Hooks(ast.NodeTransformer):
    """Products of matrices go through hooks."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        return ast.Call(ast.Name(_PRODUCT, ast.Load()), [node.left, node.right], [])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != "np.einsum":
            return node
        return ast.Call(ast.Name(_EINSUM, ast.Load()), node.args, node.keywords)
