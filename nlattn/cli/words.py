"""What errors of the library say, in the words of the command."""

from __future__ import annotations

import re

_OPTIONS = {
    ("nl_means", "patch_size"): "--patch",
    ("nl_means", "patch_distance"): "--distance",
    ("nl_means", "topk"): "--topk",
    ("nl_means", "sigma"): "--sigma",
    ("nl_means", "h"): "--strength",
    ("patch_features", "patch"): "--patch",
    ("patch_features", "channels"): "--channels",
    ("queries_and_keys", "gain"): "--gain",
    ("softmax_scale", "keys"): "--keys",
    ("patchmatch", "iterations"): "--iterations",
    ("patchmatch", "topk"): "--topk",
    ("scram_support", "window"): "--window",
    ("scram_support", "kind"): "--support",
    ("tiled", "kind"): "--support",
    ("tiled", "dask"): "--dask",
    **{
        ("tiled", name): f"--{name}"
        for name in ("channels", "gain", "iterations", "keys", "patch", "tile", "topk", "window")
    },
    ("lev_keys", "keys"): "--kept",
    ("nonlocal_mean", "weight"): "--weight",
    ("nonlocal_mean_map", "weight"): "--weight",
}
_SCALE = re.compile(r"^(\w+): scale=")
_NAMED = re.compile(r"^(\w+): (\w+)(=| )")
_REMEDIES = (
    (re.compile(r"; name one of (\d+) to (\d+) as the page"), r"; --page \1 to --page \2 name one"),
    (re.compile(r"; nonfinite='propagate' lets them pass"), ""),
    (re.compile(r"; convert it with \S+\.astype\(np\.(\w+)\)"), r"; save it as \1"),
    (re.compile(r"; resume=True"), "; --resume"),
    (re.compile(r"; np\.load reads it"), "; --tile reads it"),
    (
        re.compile(r"above max_bytes=(\d[^;]*); tile=(\d+) fits"),
        r"above the \1 of --memory; --tile \2 fits",
    ),
    (
        re.compile(r"above max_bytes=(\d[^;]*); (no tile is small enough)"),
        r"above the \1 of --memory; \2",
    ),
    (re.compile(r"above max_bytes=(\d[^;]*);.*"), r"above the \1 that a command takes"),
    (re.compile(r"; (use|pass|ask for|make it with) [^;]*[(=_][^;]*$"), ""),
)


def of_command(text: str) -> str:
    """An error on one line, with the options of a command for arguments, without their remedies."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    line = _SCALE.sub("--scale ", line)
    if (named := _NAMED.match(line)) and (option := _OPTIONS.get((named[1], named[2]))):
        line = f"{option} {line[named.end() :]}"
    for pattern, better in _REMEDIES:
        line = pattern.sub(better, line)
    return line


def printable(text: object) -> str:
    """A name that a terminal and a picture can show."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def span(seconds: float) -> str:
    """A time that people can read."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
