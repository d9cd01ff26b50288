"""What can be typed after ``nlattn``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nlattn import __version__
from nlattn.cli import tile_options, together
from nlattn.cli.values import (
    above_zero,
    count,
    grid,
    names,
    point,
    positive,
    share,
    some,
    span,
    tolerance,
)
from nlattn.files.untrusted import one_line


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        told = one_line(message).removesuffix(".")
        self.exit(2, f"{self.prog}: {told}; {self.prog} --help lists what there is\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help, where argparse does not say that it could not."""
        if file is sys.stdout:
            file.write(message)
        else:
            super()._print_message(message, file)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of a command line; SystemExit if it cannot be understood."""
    parser = _Parser(prog="nlattn", description="Attention maps of images and arrays, on the CPU.")
    parser.add_argument("--version", action="version", version=f"nlattn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the attention map of the built-in photograph")
    demo.set_defaults(module="attend", function="demo")
    demo.add_argument("--size", type=positive, metavar="PIXELS", help="use a centre crop so wide")
    _attention(demo)
    demo.set_defaults(every=True)
    _common(demo, writes=True)

    one = commands.add_parser("map", help="the attention map of an image, or of arrays")
    one.set_defaults(module="attend", function="one_map", size=None)
    one.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE",
        help="PNG, JPEG or TIFF; with --tile also .npy, zarr or OME-Zarr",
    )  # fmt: skip
    _page(one)
    for name, what in (
        ("q", "queries, (Hq, Wq, d) or (n, d)"),
        ("k", "keys, (Hk, Wk, d) or (m, d); the queries if omitted"),
        ("v", "values, (Hk, Wk, e) or (m, e); with them out.npy is written"),
    ):
        one.add_argument(f"--{name}", type=Path, metavar="FILE.npy", help=what)
    _attention(one)
    tile_options.add(one)
    _common(one, writes=True)

    ahead = commands.add_parser("plan", help="what a map by tiles will take, before it is begun")
    ahead.set_defaults(module="tiled", function="plan", q=None, k=None, v=None, seed=0)
    ahead.add_argument("image", type=Path, metavar="IMAGE", help="as for map --tile")
    ahead.add_argument(
        "--workers", type=positive, default=16, help="a cluster of so many of one thread each (16)"
    )
    _page(ahead)
    _attention(ahead)
    tile_options.add(ahead, runs=False)
    _common(ahead, writes=False)

    look = commands.add_parser("explore", help="a page in which any pixel shows where it looks")
    look.set_defaults(module="explore", function="explore")
    look.add_argument(
        "maps",
        nargs="+",
        type=Path,
        metavar="DIR|MAP.npz",
        help="one or two: folders that demo or map wrote, or saved maps",
    )
    look.add_argument(
        "--image", type=Path, help="picture of the queries, if no folder's report names it"
    )
    look.add_argument("--keys-image", type=Path, metavar="IMAGE", help="of the keys, if another")
    look.add_argument("--top", type=positive, default=9, help="keys shown of each pixel (9)")
    look.add_argument("--open", action="store_true", help="open the page in the browser")
    _page(look)
    _common(look, writes=False, json=False)
    look.add_argument(
        "--out", type=Path, default=Path("explorer.html"), help="page to write (explorer.html)"
    )
    look.add_argument("--force", action="store_true", help="overwrite it")

    clean = commands.add_parser("denoise", help="a picture without its noise")
    clean.set_defaults(module="denoise", function="denoise")
    clean.add_argument("image", type=Path, metavar="IMAGE", help="PNG, JPEG or TIFF")
    clean.add_argument(
        "--sigma",
        type=above_zero,
        required=True,
        help="deviation of the noise: levels of 0 to 255 or, below 1, a fraction of the range",
    )
    clean.add_argument(
        "--bits", type=int, choices=(8, 16), help="of the result (as many as the picture has)"
    )
    _page(clean)
    clean.add_argument("--strength", type=above_zero, help="bandwidth over sigma (0.6)")
    clean.add_argument("--patch", type=positive, default=5, help="odd width of a patch (5)")
    clean.add_argument("--distance", type=count, default=5, help="reach of the window (5)")
    clean.add_argument(
        "--search",
        choices=("window", "patchmatch", "union"),
        default="window",
        help="where pixels are compared with: near by, the best anywhere, or both (window)",
    )
    clean.add_argument("--topk", type=positive, help="how many of them are kept")
    tile_options.add(clean)
    _common(clean, writes=True)

    _scaling(commands.add_parser("scaling", help="how the cost of operators grows with n"))
    check = commands.add_parser("validate", help="another backend against the truth")
    check.set_defaults(module="validate", function="validate")
    _validate(check)
    _common(check, writes=False, json=False)

    files = commands.add_parser("vectors", help="the cases as files, and results made elsewhere")
    files.set_defaults(module="vectors", function="vectors")
    files.add_argument("action", choices=("write", "check"))
    files.add_argument("folder", type=Path, metavar="DIR", help="of the vectors")
    files.add_argument("results", type=Path, nargs="?", metavar="RESULTS", help="to be checked")
    files.add_argument("--tier", choices=("smoke", "standard", "exhaustive"), default="smoke")
    files.add_argument("--operators", type=names, metavar="NAME,...", help="only these")
    files.add_argument("--dtypes", type=names, metavar="NAME,...", help="only these")
    files.add_argument(
        "--no-certificate",
        dest="certificate",
        action="store_false",
        help="do not compute the truth again in 50 digits, which needs mpmath, and time",
    )
    _common(files, writes=False)

    for name, what in (
        ("list", "the operators"),
        ("doctor", "what this machine computes with, and whether it computes right"),
        ("warmup", "compile everything now, so that nothing compiles later"),
    ):
        command = commands.add_parser(name, help=what)
        command.set_defaults(module="about", function=f"{name}_")
        _common(command, writes=False)
        if name == "warmup":
            command.add_argument(
                "--dtype",
                choices=("float32", "float64"),
                help="compile for this one; a process uses one core, so two may go side by side",
            )
    words = sys.argv[1:] if argv is None else [*argv]
    together.refuse_empty(parser, words)
    options = parser.parse_args(words)
    parsers = {"map": one, "denoise": clean, "explore": look, "validate": check, "vectors": files}
    tile_options.resolve(options, {name: parsers[name] for name in ("map", "denoise")})
    together.check(options, parsers)
    if getattr(options, "support", None) and options.window is None:
        options.window = 1 if options.support == "neighbours" else 3
    return options


def _scaling(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="scaling", function="scaling")
    parser.add_argument(
        "operators",
        nargs="+",
        metavar="OPERATOR",
        help="a name of nlattn list or a short one such as lev; attention@BACKEND; "
        "module:function, file.py:function",
    )
    parser.add_argument(
        "--sizes",
        type=span,
        metavar="HxW:HxW",
        help="smallest and largest grid (32x32:256x256; certified_attention 80x80:384x384)",
    )
    parser.add_argument("--points", type=some, help="sizes in between (9; or 14)")
    parser.add_argument("--runs", type=some, default=5, help="samples of each time (5)")
    parser.add_argument("--count", action="store_true", help="count work only, time nothing")
    parser.add_argument(
        "--budget",
        type=above_zero,
        default=float("inf"),
        metavar="SECONDS",
        help="begin nothing that would end later than this",
    )
    parser.add_argument(
        "--predict", type=grid, metavar="HxW", help="foretell time and memory of this grid"
    )
    parser.add_argument(
        "--claim",
        metavar="LAW",
        help="what work is judged against, or time where work is not known (n log n); exit code 1 "
        "if it is outgrown",
    )
    parser.add_argument("--claim-memory", metavar="LAW", help="the same for peak memory")
    parser.add_argument("--channels", type=positive, default=32, help="of the features (32)")
    _common(parser, writes=True)


def _attention(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        choices=(
            *("scram", "lev", "hamming", "permutohedral", "dense", "nonlocal", "efficient"),
            *("refined", "enla", "certified"),
        ),
        default="scram",
    )
    parser.add_argument(
        "--query",
        action="append",
        type=point,
        metavar="ROW,COL",
        help="a query whose attention is drawn; may be repeated",
    )
    parser.add_argument(
        "--pairwise",
        choices=("gaussian", "embedded_gaussian", "dot_product", "concatenation"),
        default="embedded_gaussian",
        help="how --method nonlocal compares a query with a key (embedded_gaussian)",
    )
    parser.add_argument(
        "--weight",
        type=Path,
        metavar="FILE.npy",
        help="weights (2 d,) of --pairwise concatenation, those of queries first",
    )
    parser.add_argument("--scale", type=float, help="factor on the scores q . k")
    parser.add_argument(
        "--candidates",
        choices=("random", "tree"),
        default="tree",
        help="what the search tries: random keys, or leaves of trees over the keys (tree)",
    )
    parser.add_argument(
        "--iterations", type=count, help="of the search (1, or 5 with --candidates random)"
    )
    parser.add_argument("--topk", type=positive, default=1, help="matches kept per query (1)")
    parser.add_argument(
        "--support",
        choices=("window", "neighbours", "topk", "local", "union"),
        default="neighbours",
        help="which keys are attended to, given the matches (neighbours)",
    )
    parser.add_argument(
        "--window", type=positive, help="odd width of boxes (3, or 1 with --support neighbours)"
    )
    parser.add_argument(
        "--rows", type=positive, default=256, help="queries compared with exact attention (256)"
    )
    parser.add_argument(
        "--kept",
        type=positive,
        default=32,
        help="keys that --method lev or hamming attends to (32)",
    )
    parser.add_argument(
        "--select",
        choices=("leverage", "norm", "random", "oracle"),
        default="leverage",
        help="what --method lev chooses them by (leverage)",
    )
    parser.add_argument(
        "--mass",
        type=share,
        metavar="SHARE",
        help="with --method scram: choose search and support until they hold this share of exact "
        "attention",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="with --method certified or --every: share of each row's weight that may be "
        "misplaced (0.001)",
    )
    parser.add_argument(
        "--every",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="with --method scram or lev: recall and mass over all queries, as demo tells",
    )
    parser.add_argument(
        "--only-shown",
        action="store_true",
        help="with --method dense: compute the queries that are drawn, not the output of all",
    )
    image = parser.add_argument_group("features of an image")
    image.add_argument("--patch", type=positive, default=7, help="odd width of a patch (7)")
    image.add_argument("--channels", type=positive, default=32, help="components kept (32)")
    image.add_argument(
        "--gain", type=float, default=1.5, help="how much stronger a patch is looked for (1.5)"
    )
    image.add_argument(
        "--keys",
        type=float,
        default=16.0,
        help="keys that the median query spreads over, if --scale is not given (16)",
    )


def _page(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--page", type=count, metavar="N", help="of a picture with several pages or frames, from 0"
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "backend",
        nargs="?",
        metavar="BACKEND",
        help="numpy, nlattn, torch, jax, onnxruntime; FILE.py[:NAME], MODULE:NAME or exec:PROGRAM",
    )
    parser.add_argument("--op", metavar="NAME", help="the operator that a plain function computes")
    parser.add_argument(
        "--tier",
        choices=("smoke", "standard", "exhaustive", "large"),
        default="smoke",
        help="how much is tried: smoke (the default) takes about a minute, standard ten, "
        "exhaustive as long as it takes; large: only arrays past the limits of 32 bits",
    )
    parser.add_argument("--operators", type=names, metavar="A,B", help="only these (all)")
    parser.add_argument("--dtypes", type=names, metavar="A,B", help="only these (all four)")
    parser.add_argument("--case", metavar="PATTERN", help="only cases of a name such as '*/causal'")
    parser.add_argument(
        "--sweep",
        type=positive,
        default=0,
        metavar="N",
        help="draw N cases more for each function and dtype, and shrink what fails",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases drawn (0)")
    parser.add_argument(
        "--timeout", type=above_zero, help="seconds for one case (120; of large ones 600)"
    )
    parser.add_argument("--memory", type=above_zero, default=8.0, help="gigabytes it may hold (8)")
    parser.add_argument(
        "--accumulate",
        choices=("float32", "float16", "bfloat16", "own"),
        help="format of sums of narrow numbers, in place of what the backend says (float32)",
    )
    parser.add_argument(
        "--products",
        choices=("own", "tf32", "3xtf32"),
        help="of float32 matrices, in place of what the backend says (own)",
    )
    parser.add_argument(
        "--tolerance",
        action="append",
        type=tolerance,
        metavar="PATTERN=FACTOR",
        help="widen the bounds of some cases; may be repeated",
    )
    parser.add_argument(
        "--diff", nargs=2, type=Path, metavar=("OLD.json", "NEW.json"), help="what changed"
    )
    files = parser.add_argument_group("reports")
    files.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="as data; printed without a FILE"
    )
    files.add_argument("--junit", metavar="FILE", help="as JUnit XML")
    files.add_argument("--html", metavar="FILE", help="as one page, for people")
    files.add_argument("--force", action="store_true", help="overwrite them")


def _common(parser: argparse.ArgumentParser, *, writes: bool, json: bool = True) -> None:
    common = parser.add_argument_group("common")
    if json:
        common.add_argument("--json", action="store_true", help="print the report as JSON")
    common.add_argument("--threads", type=positive, help="threads to compute with (all)")
    common.add_argument("--quiet", action="store_true", help="print errors only")
    common.add_argument("--verbose", action="store_true", help="say what is compiled and resumed")
    common.add_argument("--debug", action="store_true", help="show where an error comes from")
    if writes:
        common.add_argument("--seed", type=count, default=0, help="of everything random (0)")
        common.add_argument(
            "--out", type=Path, default=Path("nlattn-out"), help="folder to write (nlattn-out)"
        )
        common.add_argument("--force", action="store_true", help="overwrite files in --out")
