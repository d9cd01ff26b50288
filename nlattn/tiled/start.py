"""How worker processes start: from one that has imported what tasks need, while others still do."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import BaseContext

_NEEDED = ("nlattn.tiled.scram", "nlattn.tiled.nl_means")


def prepare() -> BaseContext:
    """The way to start workers; begins to import for them, if that is not under way."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_NEEDED])
    forkserver.ensure_running()
    return context
