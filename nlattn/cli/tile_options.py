"""Options of runs beyond memory, which several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from nlattn.cli.values import n_bytes, positive
from nlattn.tiled import start

_RUNS = ("memory", "processes", "dask", "picture", "resume")


def add(parser: argparse.ArgumentParser, *, runs: bool = True) -> None:
    """Add them to the parser of a command."""
    tiles = parser.add_argument_group("beyond memory: arrays on disk, in the folder --out")
    tiles.add_argument(
        "--tile",
        type=positive,
        metavar="PIXELS",
        help="compute in bands of whole rows of about PIXELS by PIXELS",
    )
    if not runs:
        return
    tiles.add_argument(
        "--memory", type=n_bytes, metavar="SIZE", help="most memory of all workers (4GB)"
    )
    who = tiles.add_mutually_exclusive_group()
    who.add_argument("--processes", type=positive, metavar="N", help="workers on this machine")
    who.add_argument("--dask", metavar="ADDRESS", help="scheduler of a Dask cluster")
    tiles.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="write the picture too: a tiled BigTIFF (.tif) or OME-Zarr (.zarr), with smaller "
        "copies and the bits of the source",
    )
    tiles.add_argument("--resume", action="store_true", help="go on where a run was ended")


def resolve(options: argparse.Namespace, parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Settle what depends on whether there are tiles."""
    tiled = options.command == "plan" or getattr(options, "tile", None) is not None
    if options.command in parsers:
        if tiled:
            options.function = "one_map" if options.command == "map" else "denoise"
            options.module = "tiled"
            if options.processes:  # they import while this process does
                sys.warnoptions.append("ignore:resource_tracker")  # which cleans up if this is cut
                start.prepare()
        elif any(getattr(options, name) for name in _RUNS):
            text = "--memory, --processes, --dask, --picture and --resume go with --tile"
            parsers[options.command].error(text)
