"""Instructions of a call, where Linux lets the counters of the processor be read."""

from __future__ import annotations

import contextvars
import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable

from nlattn.runtime import threads

_CALL = {"x86_64": 298, "aarch64": 241}
"""Number of ``perf_event_open``, by machine."""
_SIZE = 128  # bytes of its description of an event, in the version from Linux 5.8 on
_HARDWARE, _INSTRUCTIONS = 0, 1
_INHERIT, _NO_KERNEL, _NO_HYPERVISOR = 1 << 1, 1 << 5, 1 << 6
_OWN, _ANY_PROCESSOR, _NO_GROUP = 0, -1, -1


def of_call(call: Callable[[], object]) -> int | None:
    """Instructions of a call outside the kernel, on one thread; None if they cannot be read.

    Counted are this thread and those that the call starts, not those that were there before.
    """
    counter = _open()
    if counter is None:
        return None
    try:
        before = _read(counter)
        contextvars.copy_context().run(_alone, call)
        return _read(counter) - before
    finally:
        os.close(counter)


def _alone(call: Callable[[], object]) -> None:
    threads.set_threads(1)
    call()


def _open() -> int | None:
    """A file that counts from now on; None where there is none, or not for us."""
    number = _CALL.get(platform.machine())
    if not sys.platform.startswith("linux") or number is None:
        return None
    event = bytearray(_SIZE)
    struct.pack_into("IIQ", event, 0, _HARDWARE, _SIZE, _INSTRUCTIONS)
    struct.pack_into("Q", event, 40, _INHERIT | _NO_KERNEL | _NO_HYPERVISOR)
    given = (ctypes.c_char * _SIZE).from_buffer(event)
    file: int = ctypes.CDLL(None, use_errno=True).syscall(
        number, given, _OWN, _ANY_PROCESSOR, _NO_GROUP, 0
    )
    return file if file >= 0 else None


def _read(counter: int) -> int:
    held = os.read(counter, 8)
    if len(held) != 8:
        raise OSError(errno.EIO, "the counter of instructions gave no number")
    return int.from_bytes(held, sys.byteorder)
