"""The suite inside other people's tests: one pytest test per case, or one call for a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from nlattn.conformance.backends.backend import FunctionBackend
from nlattn.conformance.case import Case, Tier, suite
from nlattn.conformance.report.text import Report, failure
from nlattn.conformance.runner import Here, attempt


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
    backend: Any,
    *,
    tier: Tier = "smoke",
    operators: tuple[str, ...] | None = None,
    dtypes: tuple[str, ...] | None = None,
    deviations: str | Path | None = None,
) -> dict[str, Callable[..., None]]:
    """Test functions by name: ``globals().update(conformance_tests(Backend()))``.

    Parameters
    ----------
    backend : object
        With `run` or a method per operator, as for `nlattn validate`; runs in this process.
    tier, operators, dtypes
        Which cases.
    deviations : path, optional
        JSON list of objects of ``pattern``, ``reason`` and ``link``. Cases that match are expected
        to fail.

    Raises
    ------
    ValueError
        A pattern matches no case, or the file is no such list.
    """
    import pytest

    cases = {case.name: case for case in suite(tier, operators, dtypes)}
    entries = [] if deviations is None else _read(deviations)
    known = matched(entries, cases)
    subject = Here(backend)
    parameters = [
        pytest.param(
            case,
            id=name,
            marks=[pytest.mark.xfail(reason=f"{known[name].reason} ({known[name].link})",
                                     strict=False)] if name in known else [],
        )
        for name, case in cases.items()
    ]  # fmt: skip

    @pytest.mark.parametrize("case", parameters)
    def test_conformance(case: Case) -> None:
        verdict, _ = attempt(subject, case)
        if verdict.status == "unsupported":
            pytest.skip(verdict.detail)
        if verdict.failed:
            pytest.fail(_told(subject.name, tier, verdict), pytrace=False)

    return {"test_conformance": test_conformance}


_read = deviations


def assert_conforms(
    function: Any,
    *,
    op: str,
    tier: Tier = "smoke",
    dtypes: tuple[str, ...] | None = None,
) -> None:
    """AssertionError tells the cases that a function, or a backend, gets wrong.

    Parameters
    ----------
    function : callable or object
        ``function(q, k, v, **options)`` that computes `op`, or a backend. Options that it does not
        name are not tried.
    op : str
        Name of the operator, or of its gradient: ``qna_vjp``.
    """
    named = any(callable(getattr(function, name, None)) for name in ("run", op))
    subject = Here(function if named else FunctionBackend(function, op))
    wrong, judged = [], 0
    for case in suite(tier, (op.removesuffix("_vjp"),), dtypes):
        if case.function != op:
            continue
        verdict, _ = attempt(subject, case)
        judged += verdict.status != "unsupported"
        if verdict.failed:
            wrong.append(_told(subject.name, tier, verdict))
    if wrong:
        more = [f"... and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        raise AssertionError("\n".join([f"{len(wrong)} of {judged} cases fail", *wrong[:5], *more]))
    if not judged:
        raise AssertionError(f"{subject.name} computed no case of {op}")


def _told(name: str, tier: Tier, verdict: Any) -> str:
    return failure(Report(name, f"nlattn validate {name}", tier, [verdict]), verdict)
