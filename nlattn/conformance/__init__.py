"""Operators against their oracles, and other people's backends against both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlattn.conformance.testing import assert_conforms, conformance_tests

__all__ = ["assert_conforms", "conformance_tests"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nlattn.conformance import testing

    return getattr(testing, name)
