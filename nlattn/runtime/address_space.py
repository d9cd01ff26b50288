"""Whether a limit of address space (``ulimit -v``) leaves enough of it to compile in.

LLVM ends the process where it gets no memory, so this is asked before.
"""

from __future__ import annotations

import os
from pathlib import Path

NEEDED = 256 << 20
"""Bytes that the first call of an operator may take: 140 MB were measured at most."""


def left() -> float:
    """Bytes of address space that this process may still take; infinity without a limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return float("inf")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        return float(limit - used)
    except (ImportError, OSError, ValueError, IndexError):  # another system
        return float("inf")


def require() -> None:
    """MemoryError where there is too little to compile in."""
    room = left()
    if room < NEEDED:
        raise MemoryError(
            f"nlattn: compiling may take {NEEDED >> 20} MB of address space, and the limit leaves "
            f"{max(0, int(room)) >> 20} MB; raise it (ulimit -v), or run nlattn warmup without it, "
            "which fills the cache"
        )
