"""What a process does that ends at once: it leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

_actions: list[Callable[[], object]] = []


def before(action: Callable[[], object]) -> None:
    """Have `action` done when the process is about to end at once."""
    _actions.append(action)


def clear() -> None:
    """Do all that is to be done before the end; what fails keeps nothing else from it."""
    for action in list(_actions):
        with suppress(Exception):
            action()
