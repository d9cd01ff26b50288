"""``nlattn validate``: a backend against the truth, case by case."""

from __future__ import annotations

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from nlattn.cli.output import MachineError, free, say, table, to_json
from nlattn.conformance.backends.capabilities import Capabilities
from nlattn.conformance.backends.compiling import compiling
from nlattn.conformance.backends.process import Process
from nlattn.conformance.case import Case
from nlattn.conformance.cases.large import large
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.eight_bit import QUANTISED
from nlattn.conformance.judge.search import DTYPES, SEARCHES, searches, verdict_name
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import coverage, raised, unjudged
from nlattn.conformance.report.common import in_common
from nlattn.conformance.report.files import difference, junit, page
from nlattn.conformance.report.text import Report, as_data, from_data, lines, told
from nlattn.conformance.runner import run
from nlattn.conformance.sweep import sweep
from nlattn.conformance.table import JUDGED, TABLE, owner
from nlattn.files.untrusted import open_regular, parse_json
from nlattn.files.whole import whole

_REPORT = 1 << 28  # bytes
SHOWN = 20
"""Causes of failures that the terminal sees; files have all cases."""
NARROW = (("float16", "bfloat16"), tuple(QUANTISED))
MEMORY = 8.0
TIMEOUT = {"large": 600.0}
"""Seconds for a case of a tier, 120 of others: large ones write gigabytes, which others slow."""
NOTHING = "no case of this tier has such a name, operator and dtype"


def validate(options: Namespace) -> int:
    """Judge a backend; 1 if anything failed."""
    if options.diff:
        return compare(*options.diff)
    places = {"json": options.json, "junit": options.junit, "html": options.html}
    files = {name: Path(path) for name, path in places.items() if path and path != "-"}
    for path in files.values():
        free(path, force=options.force, inputs=[Path(options.backend.partition(":")[0])])
    if len({os.path.abspath(path) for path in files.values()}) < len(files):
        raise ValueError("--json, --junit and --html name one file twice, expected one for each")
    check(options)
    start = time.perf_counter()
    with Process(
        options.backend, options.op, timeout=limit(options), memory=options.memory * 1e9,
        words=arithmetic(options),
    ) as subject:  # fmt: skip
        fixed = chosen(options, subject.capabilities)
        slow = None if options.case or options.tier == "large" else compiling(subject.ask, fixed)
        if slow is not None:
            fixed = chosen(options, subject.capabilities, sparing=True)
        found: Iterator[Verdict] = run(subject, fixed, dict(options.tolerance or ()))
        found = chain(found, searches(subject, searched(options), options.dtypes))
        if options.sweep:
            found = chain(found, drawn(subject, options))
        verdicts = list(counted(found, len(fixed), options.quiet))
        name, able = subject.name, subject.capabilities
    if not verdicts:
        raise ValueError(NOTHING)
    covered = [
        *coverage(fixed, verdicts),
        *raised(fixed, verdicts),
        *in_common(fixed, verdicts),
        *([f"{name} {slow}"] if slow else []),
    ]
    report = Report(
        name, shlex.join(again(options)), options.tier, verdicts, time.perf_counter() - start,
        covered, unasked(options, able), unjudged(able.operators, verdicts),
    )  # fmt: skip
    writers = {"json": lambda r: to_json(as_data(r)) + "\n", "junit": junit, "html": page}
    for kind, path in files.items():
        save(path, writers[kind](report))
    show(report, options)
    return 1 if report.failed else 0


def again(options: Namespace) -> list[str]:
    """The command, but for what chooses cases."""
    words = ["nlattn", "validate", options.backend, *(["--op", options.op] if options.op else [])]
    if options.tier != "smoke":
        words += ["--tier", options.tier]
    if options.dtypes:
        words += ["--dtypes", ",".join(options.dtypes)]
    if options.timeout is not None:
        words += ["--timeout", f"{options.timeout:g}"]
    if options.memory != MEMORY:
        words += ["--memory", f"{options.memory:g}"]
    for name, word in arithmetic(options).items():
        words += [f"--{name}", word]
    for pattern, factor in options.tolerance or ():
        words += ["--tolerance", f"{pattern}={factor:g}"]
    if options.sweep:
        words += ["--sweep", str(options.sweep), "--seed", str(options.seed)]
    return words


def limit(options: Namespace) -> float:
    """Seconds for one case."""
    return float(options.timeout or TIMEOUT.get(options.tier, 120.0))


def arithmetic(options: Namespace) -> dict[str, str]:
    """How sums and products are made, where that is said in place of the backend."""
    words = {name: getattr(options, name) for name in ("accumulate", "products")}
    return {name: word for name, word in words.items() if word is not None}


def unasked(options: Namespace, able: Capabilities) -> list[str]:
    """Operators that nobody asked for, since the backend does not name them."""
    if asked(options) is not None:
        return []
    return [spec.name for spec in TABLE if not able.claims(spec.name)]


def compare(old: Path, new: Path) -> int:
    """Print what changed from one report to another; 1 if something fails that did not."""
    reports = []
    for path in (old, new):
        try:
            with open_regular("validate", path, links=True) as file:
                data = file.read(_REPORT + 1)
            if len(data) > _REPORT:
                raise ValueError(f"it is longer than {_REPORT} bytes, which no report is")
            reports.append(from_data(parse_json(data)))
        except ValueError as error:
            raise ValueError(f"--diff {path}: {error}") from None
    for line in difference(*reports):
        print(line)
    failed = {v.case for v in reports[0].verdicts if v.failed}
    return 1 if any(v.failed and v.case not in failed for v in reports[1].verdicts) else 0


def save(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with whole(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MachineError(f"cannot write to {path}: {error.strerror}") from None


def asked(options: Namespace) -> tuple[str, ...] | None:
    """Operators that were asked for; None for all."""
    return options.operators if options.op is None else (owner(options.op),)


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
    if options.tier == "large":
        return ()
    ops = (options.op,) if options.op else options.operators
    return tuple(
        op
        for op in SEARCHES
        if (ops is None or op in ops)
        and any(fnmatchcase(verdict_name(op, x), options.case or "*") for x in DTYPES)
    )


def check(options: Namespace) -> None:
    """ValueError where no backend could have a case; none is made but the first."""
    some = offered(options, Capabilities())
    for narrow in NARROW:  # a backend of these alone is asked for more
        some = chain(some, offered(options, Capabilities(), narrow))
    try:
        if next(some, None) is None and not searched(options) and not options.sweep:
            raise ValueError(NOTHING)
    except KeyError as error:
        raise ValueError(f"--operators: {error.args[0]}") from None


def chosen(options: Namespace, able: Capabilities, sparing: bool = False) -> list[Case]:
    """Cases that were asked for, of what a backend names; ValueError if there are none.

    `sparing` as for `suite.cases`.
    """
    found = list(offered(options, able, sparing=sparing))
    if not found and not searched(options) and not options.sweep:
        raise ValueError(NOTHING)
    return [c for c in found if able.asked(c.kind, c.function)] or found


def offered(
    options: Namespace,
    able: Capabilities,
    dtypes: tuple[str, ...] | None = None,
    sparing: bool = False,
) -> Iterator[Case]:
    """Cases that were asked for, of a backend's operators, dtypes and sizes."""
    ops = asked(options) or tuple(spec.name for spec in JUDGED if able.claims(spec.name))
    pattern = options.case or "*"
    own = tuple(x for x in options.dtypes or able.dtypes if x in able.dtypes)
    if options.tier == "large":
        wanted = own if options.dtypes or "float32" not in own else ("float32",)
        return large(ops, wanted, pattern, able.shapes)
    dtypes = dtypes or own or options.dtypes
    narrow = able.narrow
    return cases(
        options.tier, ops, dtypes, pattern, able.shapes, able.scales, able.results, sparing, narrow
    )


def counted(verdicts: Iterable[Verdict], count: int, quiet: bool) -> Iterator[Verdict]:
    """Verdicts as they come, counted on a terminal."""
    on = not quiet and sys.stderr.isatty()
    for i, verdict in enumerate(verdicts):
        if on:
            say(f"{i + 1}/{count} {verdict.case}")
        yield verdict
    if on:
        say("")


def show(report: Report, options: Namespace) -> None:
    """Print the report."""
    if options.json == "-":
        print(to_json(as_data(report)))
        return
    if options.quiet:
        return
    print(table(lines(report)))
    print("\n" + told(report, SHOWN))
