"""Operators against their oracles, and other people's backends against both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlattn.conformance.backends.backend import Unsupported
    from nlattn.conformance.backends.capabilities import capable
    from nlattn.conformance.judge.selection import judge_selection
    from nlattn.conformance.testing import assert_conforms, conformance_tests

__all__ = [
    "Unsupported", "assert_conforms", "capable", "conformance_tests", "judge_selection",
]  # fmt: skip
_HOMES = {
    "Unsupported": "backends.backend",
    "capable": "backends.capabilities",
    "judge_selection": "judge.selection",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"nlattn.conformance.{_HOMES.get(name, 'testing')}")
    return getattr(home, name)
