"""Which words and options of a command line go with which: said before anything is done."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence

_ALWAYS = ("command", "quiet", "verbose", "debug", "threads")
_NAMES = {"certificate": "--no-certificate"}
_METHODS = {
    "mass": ("scram",),
    "only_shown": ("dense", "nonlocal"),
    "weight": ("nonlocal",),
}
"""Methods of `map` without which an option would change nothing that it is for."""


def refuse_empty(parser: ArgumentParser, words: Sequence[str]) -> None:
    """An empty word means nothing: it comes of a variable of the shell that is not set."""
    for before, word in zip(["nlattn", *words], words, strict=False):
        name, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value.strip():
            parser.error(f"there is an empty word after {name}, expected a value")


def check(options: Namespace, parsers: Mapping[str, ArgumentParser]) -> None:
    """SystemExit where two parts of a command line contradict each other, or one is missing."""
    check_one = _CHECKS.get(options.command)
    said = check_one and check_one(options, parsers[options.command])
    if said:
        parsers[options.command].error(said)


def _map(options: Namespace, parser: ArgumentParser) -> str | None:
    if (options.image is None) == (options.q is None):
        return "give an IMAGE or --q FILE.npy, one of them"
    if options.image is not None and (options.k or options.v):
        return "--k and --v go with --q, not with an IMAGE"
    for name, methods in _METHODS.items():
        given = getattr(options, name) != parser.get_default(name)
        if given and options.method not in methods:
            return f"{_option(name)} goes with --method {' or '.join(methods)}"
        if given and options.tile is not None:
            return f"{_option(name)} does not go with --tile"
    return None


def _explore(options: Namespace, _: ArgumentParser) -> str | None:
    if len(options.maps) > 2:
        return f"{len(options.maps)} maps are given, expected one or two"
    return None


def _validate(options: Namespace, parser: ArgumentParser) -> str | None:
    if (options.backend is None) == (options.diff is None):
        return "give a BACKEND or --diff OLD.json NEW.json, one of them"
    return None if options.diff is None else _alone(options, parser, "diff")


def _vectors(options: Namespace, parser: ArgumentParser) -> str | None:
    if options.action == "write":
        return "RESULTS go with vectors check" if options.results is not None else None
    if options.results is None:
        return "vectors check: expected DIR and RESULTS"
    return _alone(options, parser, "action", "folder", "results", "json")


def _alone(options: Namespace, parser: ArgumentParser, *kept: str) -> str | None:
    """What would change nothing beside what is `kept`."""
    for name, value in vars(options).items():
        if name not in (*kept, *_ALWAYS) and value != parser.get_default(name):
            beside = "vectors check" if kept[0] == "action" else f"--{kept[0]}"
            return f"{_option(name)} does not go with {beside}"
    return None


def _option(name: str) -> str:
    return _NAMES.get(name, f"--{name.replace('_', '-')}")


_CHECKS: dict[str, Callable[[Namespace, ArgumentParser], str | None]] = {
    "map": _map,
    "explore": _explore,
    "validate": _validate,
    "vectors": _vectors,
}
