"""The suite inside other people's tests: one pytest test per case, or one call for a function."""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from nlattn.conformance.backends.backend import FunctionBackend
from nlattn.conformance.case import Case, Tier
from nlattn.conformance.cases.suite import cases
from nlattn.conformance.judge.behaviour import RULES, behaved
from nlattn.conformance.judge.search import DTYPES as WIDE
from nlattn.conformance.judge.search import SEARCHES, searches, verdict_name
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import doubts, unjudged
from nlattn.conformance.report.common import in_common
from nlattn.conformance.report.text import Report, failure
from nlattn.conformance.runner import Here, attempt, run
from nlattn.conformance.table import JUDGED, owner


class Deviation(NamedTuple):
    """A difference that is known and accepted."""

    pattern: str
    """Of names of cases, as in file names: ``attention/*/float16/*``."""
    reason: str
    link: str


def deviations(path: str | Path) -> list[Deviation]:
    """Read a deviations file: a JSON list of objects of ``pattern``, ``reason`` and ``link``."""
    try:
        entries = json.loads(Path(path).read_text())
        found = [Deviation(x["pattern"], x["reason"], x["link"]) for x in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"deviations: {path} is not a list of objects of pattern, reason and link: {error!r}"
        ) from None
    for entry in found:
        if not all(isinstance(x, str) and x for x in entry):
            raise ValueError(f"deviations: {path}: {entry.pattern!r} needs a reason and a link")
    return found


def matched(entries: Iterable[Deviation], names: Iterable[str]) -> dict[str, Deviation]:
    """The deviation of each case that has one; ValueError for a pattern that matches nothing."""
    names, found = list(names), dict[str, Deviation]()
    for entry in entries:
        own = [name for name in names if fnmatchcase(name, entry.pattern)]
        if not own:
            raise ValueError(f"deviations: {entry.pattern!r} matches no case")
        found |= dict.fromkeys(own, entry)
    return found


def conformance_tests(
    backend: object,
    *,
    tier: Tier = "smoke",
    operators: tuple[str, ...] | None = None,
    dtypes: tuple[str, ...] | None = None,
    deviations: str | Path | None = None,
) -> dict[str, Callable[..., None]]:
    """Test functions by name: ``globals().update(conformance_tests(Backend()))``.

    One test for each case, and one for the behaviour and the search of each operator and dtype.

    Parameters
    ----------
    backend : object
        With `run` or a method per operator, as for `nlattn validate`; runs in this process.
    tier, operators, dtypes
        Which cases.
    deviations : path, optional
        JSON list of objects of ``pattern``, ``reason`` and ``link``. Cases, rules of behaviour and
        searches that match are expected to fail.

    Raises
    ------
    ValueError
        A pattern matches no case, or the file is no such list.
    """
    import pytest

    subject = Here(backend)
    able = subject.capabilities
    chosen = operators or tuple(spec.name for spec in JUDGED if able.claims(spec.name))
    wanted = tuple(x for x in dtypes or able.dtypes if x in able.dtypes) or dtypes
    every = cases(
        tier, chosen, wanted, "*", able.shapes, able.scales, able.results, takes=able.narrow
    )
    fixed = {c.name: c for c in every if c.kind != "jvp" or able.asked("jvp", c.function)}
    rest = list(dict.fromkeys((c.op, c.dtype) for c in fixed.values()))
    found = [(op, x) for op in SEARCHES if op in chosen for x in WIDE if x in (dtypes or WIDE)]
    names = [*fixed, *(f"{op}/behaviour/{x}/{rule}" for op, x in rest for rule in RULES)]
    names += [verdict_name(*one) for one in found]
    known = matched([] if deviations is None else _read(deviations), names)

    def judged(verdicts: Iterable[Verdict]) -> None:
        """Skip, fail or pass for all of them together; known deviations do not count."""
        every = [v for v in verdicts if v.case in fixed or v.case not in known]
        wrong = [_told(backend, tier, v) for v in every if v.failed]
        if wrong:
            pytest.fail("\n".join(wrong), pytrace=False)
        if all(v.status == "unsupported" for v in every):
            pytest.skip(every[0].detail if every else "known deviations alone")
        _warn(every)

    def marked(name: str) -> Any:
        reason = f"{known[name].reason} ({known[name].link})" if name in known else ""
        return [pytest.mark.xfail(reason=reason, strict=False)] if reason else []

    @pytest.mark.parametrize(
        "case", [pytest.param(c, id=name, marks=marked(name)) for name, c in fixed.items()]
    )
    def test_conformance(case: Case) -> None:
        judged([attempt(subject, case)[0]])

    @pytest.mark.parametrize(("op", "dtype"), rest)
    def test_behaviour(op: str, dtype: str) -> None:
        own = [c for c in fixed.values() if (c.op, c.dtype) == (op, dtype)]
        judged(v for v in run(subject, behaved(own)) if "/behaviour/" in v.case)

    @pytest.mark.parametrize(("op", "dtype"), found)
    def test_search(op: str, dtype: str) -> None:
        judged(searches(subject, (op,), (dtype,)))

    return {
        "test_conformance": test_conformance,
        "test_behaviour": test_behaviour,
        "test_search": test_search,
    }


_read = deviations


def assert_conforms(
    function: Any,
    *,
    op: str,
    tier: Tier = "smoke",
    dtypes: tuple[str, ...] | None = None,
) -> None:
    """AssertionError tells what a function, or a backend, gets wrong: as `nlattn validate` does.

    Its results, how it behaves, and what it finds where it searches by itself. What is suspicious
    is a UserWarning.

    Parameters
    ----------
    function : callable or object
        ``function(q, k, v, **options)`` that computes `op`, or a backend. Options that it does not
        name are not tried.
    op : str
        Name of the operator, or of its gradient: ``qna_vjp``.
    """
    named = any(callable(getattr(function, name, None)) for name in ("run", op))
    backend = function if named else FunctionBackend(function, op)
    subject = Here(backend)
    able = subject.capabilities
    wanted = tuple(x for x in dtypes or able.dtypes if x in able.dtypes) or dtypes
    every = cases(
        tier, (owner(op),), wanted, "*", able.shapes, able.scales, able.results, takes=able.narrow
    )
    fixed = [case for case in every if case.function == op]
    verdicts = [*run(subject, fixed), *searches(subject, (op,) if op in SEARCHES else (), dtypes)]
    judged = [v for v in verdicts if v.status != "unsupported"]
    wrong = [_told(backend, tier, v) for v in judged if v.failed]
    if wrong:
        more = [f"... and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        text = [f"{len(wrong)} of {len(judged)} cases fail", *in_common(fixed, verdicts)]
        raise AssertionError("\n".join([*text, *wrong[:5], *more]))
    if not judged:
        why = f"{subject.name} computed no case of {op}"
        raise AssertionError(": ".join(filter(None, [why, unjudged((op,), verdicts)])))
    _warn(verdicts)


def _warn(verdicts: Iterable[Verdict]) -> None:
    """What is suspicious, as a warning to whoever called the caller."""
    if said := list(doubts(verdicts)):
        warnings.warn("\n".join(said), stacklevel=3)


def _told(backend: object, tier: Tier, verdict: Verdict) -> str:
    words = ["nlattn", "validate", *spelt(backend), *(["--tier", tier] if tier != "smoke" else [])]
    return failure(Report("", shlex.join(words), tier, [verdict]), verdict)


def spelt(backend: object) -> list[str]:
    """The words by which `nlattn validate` finds a backend: a file, what is in it, an operator."""
    if isinstance(backend, FunctionBackend):
        name = getattr(backend.function, "__qualname__", backend.name)
        return [_held(backend.function, name), "--op", backend.op]
    return [_held(type(backend), type(backend).__qualname__)]


def _held(thing: Any, name: str) -> str:
    """The file that holds it, and its name there; the name alone if no module does.

    What wraps a function has that one's name, in a file where nothing or something else has it.
    """
    for module in [sys.modules.get(thing.__module__), *sys.modules.values()]:
        names = dict(getattr(module, "__dict__", {}))  # asking a lazy module would load more
        own = [x for x, held in names.items() if held is thing]
        first, *rest = name.split(".")
        inner = reduce(lambda x, part: getattr(x, part, None), rest, names.get(first))
        file = names.get("__file__")
        if file and (own or inner is thing):
            return f"{file}:{name if inner is thing else own[0]}"
    return name
