"""Softmax attention in CUDA C++, `attention.cu`, for nlattn validate.

    nlattn validate docs/examples/cuda_attention.py
    nlattn validate docs/examples/cuda_attention.py:Unscaled

Built by nvcc where there is a GPU, else by g++ for the CPU. Each of `FLAWS` makes it wrong.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FLAWS = {"": 0, "tail": 1, "rescale": 2, "diagonal": 4, "sentinel": 8, "both": 12, "short": 16}
"""The last block's tail counts; the accumulator is not rescaled when the maximum rises; causality
leaves the diagonal out; -1e30 stands for -inf; these two; sums of outputs in the arrays' format."""
SOURCE = Path(__file__).with_name("attention.cu")
NVCC = ["nvcc", "-O2", "-arch=native", "-Xcompiler", "-fPIC"]
GCC = ["g++", "-O2", "-x", "c++", "-fPIC"]


@cache
def library() -> Any:
    """The compiled file."""
    folder = tempfile.mkdtemp(prefix="nlattn-")
    command = NVCC if Path("/dev/nvidiactl").exists() else GCC
    subprocess.run([*command, "-shared", "-o", f"{folder}/attention.so", SOURCE], check=True)
    return ctypes.CDLL(f"{folder}/attention.so")


class Backend:
    """What nlattn validate is told, and the call."""

    name = "cuda"
    flaw = ""
    capabilities = {  # noqa: RUF012
        "operators": ["attention"],
        "gradients": False,
        "dtypes": ["float32", "float16", "bfloat16"],
        "options": {"attention": ["causal", "causal_offset", "scale", "return_lse"]},
        "shapes": {"attention": {"d": {"least": 1, "most": 256}, "e": "d"}},
    }

    def attention(
        self, q: Any, k: Any, v: Any, *,
        causal: bool = False, causal_offset: Any = 0, scale: float | None = None,
        return_lse: bool = False,
    ) -> Any:  # fmt: skip
        """Softmax attention."""
        if causal_offset == "bottom-right":
            causal_offset = k.shape[-2] - q.shape[-2]
        if not isinstance(causal_offset, int):
            raise ValueError("heads of different causality are not supported")
        if k.shape[-2:] != v.shape[-2:] or q.shape[-1] != k.shape[-1]:
            raise ValueError("shapes do not fit each other")
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q, k, v = (
            np.array(np.broadcast_to(x, (*lead, *x.shape[-2:])), order="C") for x in (q, k, v)
        )
        out, lse = np.empty_like(q), np.empty(q.shape[:-1], np.float32)
        (n, d), m, heads = q.shape[-2:], k.shape[-2], int(np.prod(lead, dtype=int))
        error = getattr(library(), f"attend_{q.dtype.name}")(
            *(ctypes.c_void_p(x.ctypes.data) for x in (q, k, v, out, lse)), heads, n, m, d,
            ctypes.c_float(d**-0.5 if scale is None else scale),
            causal_offset if causal else m, FLAWS[self.flaw],
        )  # fmt: skip
        if error:
            raise RuntimeError(f"CUDA error {error}")
        return (out, lse) if return_lse else out


class Tail(Backend):  # noqa: D101
    flaw = "tail"


class Unscaled(Backend):  # noqa: D101
    flaw = "rescale"


class Diagonal(Backend):  # noqa: D101
    flaw = "diagonal"


class Sentinel(Backend):  # noqa: D101
    flaw = "sentinel"


class DiagonalSentinel(Backend):  # noqa: D101
    flaw = "both"


class Short(Backend):  # noqa: D101
    flaw = "short"
