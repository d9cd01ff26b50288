"""Switches that hold for every test."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("interpreted", deadline=None, max_examples=8, derandomize=True)

NO_JIT = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
settings.load_profile("interpreted" if NO_JIT else "ci" if os.environ.get("CI") else "default")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run behind it
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else children ignore it, too
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes too long here, and in CI what its run without the JIT tells."""
    for item in items:
        plain = "plain" in item.keywords or item.path.parent.name == "oracle"
        if NO_JIT and "jit" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs compiled kernels to finish in time"))
        if plain and "CI" in os.environ and not NO_JIT:
            item.add_marker(pytest.mark.skip(reason="nothing is compiled: CI runs it without JIT"))


collect_ignore = ["toy"]  # what test_contributing.py copies into a project
