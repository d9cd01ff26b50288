"""What can be typed after ``nlattn``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from nlattn import __version__


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help lists what there is\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of a command line; SystemExit if it cannot be understood."""
    parser = _Parser(prog="nlattn", description="Attention maps of images and arrays, on the CPU.")
    parser.add_argument("--version", action="version", version=f"nlattn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the attention map of the built-in photograph")
    demo.set_defaults(module="attend", function="demo")
    demo.add_argument("--size", type=_positive, metavar="PIXELS", help="use a centre crop so wide")
    _attention(demo)
    _common(demo, writes=True)

    one = commands.add_parser("map", help="the attention map of an image, or of arrays")
    one.set_defaults(module="attend", function="one_map", size=None)
    one.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="PNG, JPEG or TIFF")
    for name, what in (
        ("q", "queries, (Hq, Wq, d) or (n, d)"),
        ("k", "keys, (Hk, Wk, d) or (m, d); the queries if omitted"),
        ("v", "values, (Hk, Wk, e) or (m, e); with them out.npy is written"),
    ):
        one.add_argument(f"--{name}", type=Path, metavar="FILE.npy", help=what)
    _attention(one)
    _common(one, writes=True)

    for name, what in (
        ("list", "the operators"),
        ("doctor", "what this machine computes with, and whether it computes right"),
        ("warmup", "compile everything now, so that nothing compiles later"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(module="about", function=f"{name}_")
        _common(command, writes=False)
    options = parser.parse_args(argv)
    if options.command == "map" and (options.image is None) == (options.q is None):
        one.error("give an IMAGE or --q FILE.npy, one of them")
    if options.command == "map" and options.image is not None and (options.k or options.v):
        one.error("--k and --v go with --q, not with an IMAGE")
    return options


def _attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", choices=("scram", "dense"), default="scram")
    parser.add_argument(
        "--query",
        action="append",
        type=_point,
        metavar="ROW,COL",
        help="a query whose attention is drawn; may be repeated",
    )
    parser.add_argument("--scale", type=float, help="factor on the scores q . k")
    parser.add_argument("--iterations", type=_count, default=5, help="of the search (5)")
    parser.add_argument("--topk", type=_positive, default=1, help="matches kept per query (1)")
    parser.add_argument(
        "--support",
        choices=("window", "neighbours", "topk", "local", "union"),
        default="window",
        help="which keys are attended to, given the matches (window)",
    )
    parser.add_argument("--window", type=_positive, default=3, help="odd width of boxes (3)")
    parser.add_argument(
        "--rows", type=_positive, default=256, help="queries compared with exact attention (256)"
    )
    image = parser.add_argument_group("features of an image")
    image.add_argument("--patch", type=_positive, default=7, help="odd width of a patch (7)")
    image.add_argument("--channels", type=_positive, default=32, help="components kept (32)")
    image.add_argument(
        "--gain", type=float, default=1.5, help="how much stronger a patch is looked for (1.5)"
    )
    image.add_argument(
        "--keys",
        type=float,
        default=16.0,
        help="keys that the median query spreads over, if --scale is not given (16)",
    )


def _common(parser: argparse.ArgumentParser, *, writes: bool) -> None:
    common = parser.add_argument_group("common")
    common.add_argument("--json", action="store_true", help="print the report as JSON")
    common.add_argument("--threads", type=_positive, help="threads to compute with (all)")
    common.add_argument("--quiet", action="store_true", help="print errors only")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    if writes:
        common.add_argument("--seed", type=_count, default=0, help="of everything random (0)")
        common.add_argument(
            "--out", type=Path, default=Path("nlattn-out"), help="folder to write (nlattn-out)"
        )
        common.add_argument("--force", action="store_true", help="overwrite files in --out")


def _count(text: str) -> int:
    return _whole(text, 0)


def _positive(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, low: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} up")
    return number


def _point(text: str) -> tuple[int, int]:
    try:
        row, column = (_count(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COL, such as 120,88") from None
    return row, column
