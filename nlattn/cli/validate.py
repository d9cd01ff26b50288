"""``nlattn validate``: a backend against the truth, case by case."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from nlattn.cli.output import MachineError, table, to_json
from nlattn.conformance.backends.process import Process
from nlattn.conformance.case import Case
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.search import DTYPES, SEARCHES, searches, verdict_name
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.files import difference, junit, page
from nlattn.conformance.report.text import Report, as_data, failure, from_data, lines, summary
from nlattn.conformance.runner import run
from nlattn.conformance.sweep import sweep

SHOWN = 20
"""Failures that the terminal sees; files have all."""
NOTHING = "no case of this tier has such a name, operator and dtype"


def validate(options: Namespace) -> int:
    """Judge a backend; 1 if anything failed."""
    if options.diff:
        return compare(*options.diff)
    places = {"json": options.json, "junit": options.junit, "html": options.html}
    files = {name: Path(path) for name, path in places.items() if path and path != "-"}
    for path in files.values():
        if path.exists() and not options.force:
            raise ValueError(f"{path} exists; --force overwrites it")
    fixed = chosen(options)
    start = time.perf_counter()
    with Process(
        options.backend, options.op, timeout=options.timeout, memory=options.memory * 1e9
    ) as subject:
        found: Iterator[Verdict] = run(subject, fixed, dict(options.tolerance or ()))
        found = chain(found, searches(subject, searched(options), options.dtypes))
        if options.sweep:
            found = chain(found, drawn(subject, options))
        verdicts = list(shown(found, len(fixed), options.quiet))
        name = subject.name
    if not verdicts:
        raise ValueError(NOTHING)
    words = ["nlattn", "validate", options.backend, *(["--op", options.op] if options.op else [])]
    if options.tier != "smoke":
        words += ["--tier", options.tier]
    if options.sweep:
        words += ["--sweep", str(options.sweep), "--seed", str(options.seed)]
    seconds = time.perf_counter() - start
    report = Report(name, shlex.join(words), options.tier, verdicts, seconds)
    writers = {"json": lambda r: to_json(as_data(r)) + "\n", "junit": junit, "html": page}
    for kind, path in files.items():
        whole(path, writers[kind](report))
    say(report, options)
    return 1 if report.failed else 0


def compare(old: Path, new: Path) -> int:
    """Print what changed from one report to another; 1 if something fails that did not."""
    reports = []
    for path in (old, new):
        try:
            reports.append(from_data(json.loads(path.read_text())))
        except ValueError as error:
            raise ValueError(f"--diff {path}: {error}") from None
    for line in difference(*reports):
        print(line)
    failed = {v.case for v in reports[0].verdicts if v.failed}
    return 1 if any(v.failed and v.case not in failed for v in reports[1].verdicts) else 0


def whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MachineError(f"cannot write to {path}: {error.strerror}") from None


def asked(options: Namespace) -> tuple[str, ...] | None:
    """Operators that were asked for; None for all."""
    return options.operators if options.op is None else (options.op.removesuffix("_vjp"),)


def drawn(subject: Process, options: Namespace) -> Iterator[Verdict]:
    """Verdicts on cases that Hypothesis draws."""
    return sweep(
        subject,
        options.sweep,
        ops=asked(options),
        dtypes=options.dtypes,
        pattern=options.case or "*",
        seed=options.seed,
        overrides=dict(options.tolerance or ()),
    )


def searched(options: Namespace) -> tuple[str, ...]:
    """Operators whose search is asked for."""
    ops = (options.op,) if options.op else options.operators
    return tuple(
        op
        for op in SEARCHES
        if (ops is None or op in ops)
        and any(fnmatchcase(verdict_name(op, x), options.case or "*") for x in DTYPES)
    )


def chosen(options: Namespace) -> list[Case]:
    """Cases that were asked for; ValueError if there are none."""
    try:
        found = list(cases(options.tier, asked(options), options.dtypes, options.case or "*"))
    except KeyError as error:
        raise ValueError(f"--operators: {error.args[0]}") from None
    if not found and not searched(options) and not options.sweep:
        raise ValueError(NOTHING)
    return found


def shown(verdicts: Iterable[Verdict], count: int, quiet: bool) -> Iterator[Verdict]:
    """Verdicts as they come, counted on a terminal."""
    on = not quiet and sys.stderr.isatty()
    for i, verdict in enumerate(verdicts):
        if on:
            print(f"\r\x1b[K{i + 1}/{count} {verdict.case}", end="", file=sys.stderr, flush=True)
        yield verdict
    if on:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def say(report: Report, options: Namespace) -> None:
    """Print the report."""
    if options.json == "-":
        print(to_json(as_data(report)))
        return
    if options.quiet:
        return
    print(table(lines(report)))
    failures = [v for v in report.verdicts if v.failed]
    for verdict in failures[:SHOWN]:
        print("\n" + failure(report, verdict))
    if len(failures) > SHOWN:
        print(f"\n... and {len(failures) - SHOWN} more; --json and --html have all of them")
    print("\n" + summary(report))
