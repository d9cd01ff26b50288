"""What is said of a run: a line for each operator and dtype, and every failure."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice

from nlattn import __version__
from nlattn._types import JsonObject
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import causes, doubts, others

STATUSES = ("pass", "suspicious", "fail", "crash", "timeout", "unsupported")


@dataclass(frozen=True)
class Report:
    """All verdicts of one backend."""

    backend: str
    command: str
    """``nlattn validate my.py``, to which a case is added to replay it."""
    tier: str
    verdicts: Sequence[Verdict]
    seconds: float = 0.0
    covered: Sequence[str] = ()
    """A line for each operator, `causes.coverage`."""
    unasked: Sequence[str] = ()
    """Operators that the backend does not name."""
    empty: str = ""
    """A sentence where nothing was judged of what it names."""

    @property
    def failed(self) -> bool:
        """Whether anything failed, or nothing was judged."""
        return bool(self.empty) or any(v.failed for v in self.verdicts)

    def counts(self) -> dict[str, int]:
        """How many verdicts of each status."""
        found = Counter[str](v.status for v in self.verdicts)
        return {status: found[status] for status in STATUSES if found[status]}

    def replay(self, verdict: Verdict) -> str:
        """The command that runs one case alone; of behaviour, the case that it is seen on."""
        op, kind, dtype, *label = verdict.case.split("/")
        shown = verdict.case
        if label == ["bias"]:
            shown = f"{op}/forward/{dtype}/*"
        elif kind == "behaviour":
            shown = f"{op}/forward/{dtype}/{'heads' if label == ['heads'] else 'primes'}"
        return f"{self.command} --case {shlex.quote(shown)}"


def lines(report: Report) -> list[tuple[str, ...]]:
    """A row for each operator and dtype, under a row of heads."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in report.verdicts:
        op, _, dtype, *_ = verdict.case.split("/")
        groups.setdefault((op, dtype), []).append(verdict)
    rows: list[tuple[str, ...]] = []
    rows += [
        ("operator", "dtype", "passed", "suspicious", "failed", "unsupported", "worst", "where")
    ]
    for (op, dtype), found in groups.items():
        count = Counter(v.status for v in found)
        failed = sum(v.failed for v in found)
        judged = [v for v in found if v.status in ("pass", "suspicious", "fail")]
        bad = [v for v in judged if v.failed]
        worst = max(bad or judged, key=lambda v: v.ratio, default=None)
        if worst is None:
            reasons = Counter(v.detail for v in found)
            figure, where = "", reasons.most_common(1)[0][0]
        else:
            figure, where = number(worst.ratio), f"{worst.case} {place(worst)}".rstrip()
        cells = (count["pass"], count["suspicious"], failed, count["unsupported"])
        rows.append((op, dtype, *(str(n) if n else "-" for n in cells), figure, where))
    return rows


def place(verdict: Verdict) -> str:
    """Such as ``dq[0, 3]``."""
    index = f"[{', '.join(map(str, verdict.index))}]" if verdict.output and verdict.index else ""
    return f"{verdict.output}{index}"


def number(x: float) -> str:
    """Three digits; what is not finite in words."""
    return f"{x:.3g}" if math.isfinite(x) else str(x)


def failure(report: Report, verdict: Verdict) -> str:
    """All there is to say of a case that failed."""
    text = [f"{verdict.status.upper()} {verdict.case}"]
    if verdict.detail:
        text.append(f"  {verdict.detail}")
    if verdict.output and not (math.isnan(verdict.want) and math.isnan(verdict.got)):
        text.append(
            f"  {place(verdict)}: got {verdict.got:.17g}, want {verdict.want:.17g}"
            + (
                ""
                if math.isnan(verdict.bound)
                else f", bound {verdict.bound:.3g}, error/bound {number(verdict.ratio)}, "
                f"{verdict.digits:.1f} digits right, {number(verdict.rival)} times NumPy's error"
            )
        )
    if verdict.diagnosis:
        text.append(f"  {verdict.diagnosis}")
    if verdict.ran:
        text.append(f"  computed by {verdict.ran}")
    text.append(f"  seed {verdict.seed}; again: {report.replay(verdict)}")
    return "\n".join(text)


def told(report: Report, most: int) -> str:
    """What was judged and what was not, then a block for each cause of failures."""
    text = list(report.covered)
    if report.unasked:
        names = ", ".join(report.unasked[:3]) + ", ..." * (len(report.unasked) > 3)
        text.append(f"not asked: {len(report.unasked)} operators that it does not name ({names})")
    text += islice(doubts(report.verdicts), most)
    found = causes(report.verdicts)
    for cause in found[:most]:
        text += ["", failure(report, cause.worst)]
        text += [f"  {line}" for line in [others(cause)] if line]
    if len(found) > most:
        text.append(f"\n... and {len(found) - most} causes more; --json and --html have all cases")
    if report.empty:
        text += ["", f"FAIL {report.empty}"]
    return "\n".join([*text, "", summary(report)])


def summary(report: Report) -> str:
    """The last line."""
    said = ", ".join(f"{count} {status}" for status, count in report.counts().items())
    return f"{report.backend}, {report.tier}: {said or 'no cases'} in {report.seconds:.1f} s"


def as_data(report: Report) -> dict[str, object]:
    """The report as JSON values."""
    return {
        "nlattn": __version__,
        "backend": report.backend,
        "command": report.command,
        "tier": report.tier,
        "seconds": report.seconds,
        "counts": report.counts(),
        "covered": list(report.covered),
        "unasked": list(report.unasked),
        "empty": report.empty,
        "verdicts": [_as_data(v) for v in report.verdicts],
    }


def _as_data(verdict: Verdict) -> JsonObject:
    """All but what is pooled over the run, which has a verdict of its own."""
    return {name: x for name, x in asdict(verdict).items() if name != "lean"}


def from_data(data: JsonObject) -> Report:
    """The report of `as_data`; ValueError if it is none."""
    try:
        names = {f.name for f in fields(Verdict)}
        verdicts = []
        for entry in data["verdicts"]:
            known: JsonObject = {
                n: math.nan if x is None else x for n, x in entry.items() if n in names
            }
            verdicts.append(Verdict(**{**known, "index": tuple(known.get("index", ()))}))
        return Report(
            data["backend"], data["command"], data["tier"], verdicts, data["seconds"],
            data.get("covered", ()), data.get("unasked", ()), str(data.get("empty", "")),
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"is no report of nlattn validate: {error!r}") from None
