"""Ground truth for efficient non-local attention, on the CPU: NumPy arrays in, NumPy arrays out.

Names are resolved on first use, so ``import nlattn`` loads neither Numba nor SciPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlattn._types import Field as Field
    from nlattn._types import Support as Support
    from nlattn._types import Work as Work
    from nlattn.maps import AttentionMap as AttentionMap
    from nlattn.maps import load_map as load_map
    from nlattn.ops.dense import attention as attention
    from nlattn.ops.dense import attention_map as attention_map
    from nlattn.ops.dense import attention_vjp as attention_vjp
    from nlattn.ops.patchmatch import patchmatch as patchmatch
    from nlattn.ops.scram import scram as scram
    from nlattn.ops.scram import scram_map as scram_map
    from nlattn.ops.scram import scram_support as scram_support
    from nlattn.ops.scram import scram_vjp as scram_vjp
    from nlattn.ops.sparse import sparse_attention as sparse_attention
    from nlattn.ops.sparse import sparse_attention_map as sparse_attention_map
    from nlattn.ops.sparse import sparse_attention_vjp as sparse_attention_vjp
    from nlattn.ops.sparse import support as support
    from nlattn.ops.sparse import support_from_index as support_from_index
    from nlattn.quality import compare as compare

__version__ = "0.1.0"

_HOME = {
    "_types": ("Field", "Support", "Work"),
    "maps": ("AttentionMap", "load_map"),
    "ops.dense": ("attention", "attention_map", "attention_vjp"),
    "ops.patchmatch": ("patchmatch",),
    "ops.scram": ("scram", "scram_map", "scram_support", "scram_vjp"),
    "ops.sparse": (
        "sparse_attention",
        "sparse_attention_map",
        "sparse_attention_vjp",
        "support",
        "support_from_index",
    ),
    "quality": ("compare",),
}
_SUBMODULES = ("images", "oracle", "plots", "quality")
_ORIGIN = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_ORIGIN), *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _ORIGIN:
        value = getattr(importlib.import_module(f"nlattn.{_ORIGIN[name]}"), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"nlattn.{name}")
    else:
        raise AttributeError(f"module 'nlattn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
