"""``nlattn vectors``: the cases as files, and results that were made elsewhere."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable

from nlattn._types import JsonObject
from nlattn.cli.output import Output, to_json
from nlattn.conformance.case import DTYPES, Case
from nlattn.conformance.cases import suite
from nlattn.conformance.cases import vectors as files
from nlattn.conformance.judge.diagnosis import diagnose
from nlattn.conformance.judge.measure import Effort
from nlattn.conformance.judge.verdict import judge
from nlattn.conformance.runner import PATIENCE
from nlattn.conformance.truth import high_precision
from nlattn.conformance.truth.bounds import allowed, exact


def vectors(options: Namespace) -> int:
    """Write vectors, or check results; 1 if a result is missing or wrong."""
    return check(options) if options.action == "check" else write(options)


def write(options: Namespace) -> int:
    """The cases of a tier, whole or not at all."""
    if options.folder.exists():
        raise ValueError(f"{options.folder} exists; vectors are written to a new folder")
    for dtype in options.dtypes or ():
        if dtype not in DTYPES:
            raise ValueError(f"--dtypes {dtype}: no vectors of it, expected {', '.join(DTYPES)}")
    try:
        cases = list(suite.cases(options.tier, options.operators, options.dtypes))
    except KeyError as error:
        raise ValueError(f"--operators: {error.args[0]}") from None
    if not cases:
        raise ValueError("no case of this tier has such an operator and dtype")
    output = Output(options.folder, [], force=False)
    about: JsonObject = {"seed": suite.SEED, "tier": options.tier}
    if options.certificate:
        about["certificate"] = certificate(cases)
    output.write("", lambda draft: files.write(draft, cases, exact, allowed, about))
    output.commit()
    if options.json:
        print(to_json({"cases": len(cases), "folder": options.folder}))
    elif not options.quiet:
        print(f"{len(cases)} cases in {options.folder}")
    return 0


def certificate(cases: Iterable[Case]) -> JsonObject:
    """How far each case's truth is from 50 digits; ValueError where that is too far."""
    shares = {case.name: high_precision.share(case) for case in cases if not case.error}
    for name, share in shares.items():
        if not share < 1:
            raise ValueError(
                f"the truth of {name} is {share:.2g} bounds from {high_precision.DIGITS} digits"
            )
    return {"digits": high_precision.DIGITS, "error over bound": shares}


def check(options: Namespace) -> int:
    """Judge each case whose results there should be."""
    passed = failed = unsupported = 0
    efforts: dict[str, Effort] = {}
    wrong: dict[str, str] = {}
    for case, _, _ in files.read(options.folder):
        if case.error:
            continue
        try:
            got = files.result(options.results, case)
        except LookupError:
            unsupported += 1
            continue
        except ValueError as error:
            said = str(error)
        else:
            verdict = judge(case, got)
            said = verdict.detail or f"error {verdict.ratio:.3g} times the bound"
            if not verdict.failed:
                passed += 1
                continue
            effort = efforts.setdefault(case.op, Effort(PATIENCE))
            said = "; ".join(filter(None, [said, diagnose(case, got, effort=effort)]))
        failed += 1
        wrong[case.name] = said
        if not (options.quiet or options.json):
            print(f"{case.name}: {said}")
    if options.json:
        counts = {"passed": passed, "failed": failed, "without results": unsupported}
        print(to_json({**counts, "failures": wrong}))
    elif not options.quiet:
        print(f"{passed} passed, {failed} failed, {unsupported} without results")
    return 1 if failed or not passed else 0
