"""Reports as files: JUnit XML for machines, one page of HTML for people, and what changed."""

from __future__ import annotations

import html
import math
from xml.etree import ElementTree

from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.causes import causes, others
from nlattn.conformance.report.text import Report, failure, lines, summary

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:70rem;padding:1rem;color:#222;
background:#fff;overflow-wrap:anywhere}h1{font-size:1.4rem}.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #ccc;white-space:nowrap}
pre{white-space:pre-wrap;background:#f4f4f4;padding:.6rem}
.fail,.crash,.timeout{color:#b00020;font-weight:600}.suspicious{color:#8a5a00}.pass{color:#1b6e2c}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}
th,td{border-color:#444}.fail,.crash,.timeout{color:#ff6b6b}.suspicious{color:#e0b050}
.pass{color:#6fcf86}}
"""


def junit(report: Report) -> str:
    """JUnit XML: a test for each case."""
    failed = sum(v.failed for v in report.verdicts)
    skipped = sum(v.status == "unsupported" for v in report.verdicts)
    suite = ElementTree.Element(
        "testsuite", name=f"nlattn validate {report.backend}", tests=str(len(report.verdicts)),
        failures=str(failed), skipped=str(skipped), time=f"{report.seconds:.3f}",
    )  # fmt: skip
    for v in report.verdicts:
        group, _, name = v.case.rpartition("/")
        test = ElementTree.SubElement(
            suite, "testcase", classname=group.replace("/", "."), name=name, time=f"{v.seconds:.3f}"
        )
        if v.failed:
            text = _printable(failure(report, v))
            said = v.detail or v.diagnosis or f"error {v.ratio:.3g} times its bound"
            ElementTree.SubElement(test, "failure", message=_printable(said)).text = text
        elif v.status == "unsupported":
            ElementTree.SubElement(test, "skipped", message=_printable(v.detail))
    return "<?xml version='1.0' encoding='utf-8'?>\n" + ElementTree.tostring(
        suite, encoding="unicode"
    )


def _printable(text: str) -> str:
    """Without what XML cannot hold."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c for c in text if c in "\t\n" or c >= " ")


def page(report: Report) -> str:
    """One page of HTML that needs nothing else."""
    title = html.escape(f"{report.backend}: nlattn validate")
    heads, *rows = lines(report)
    table = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    failures = "".join(
        f'<h2 class="{cause.worst.status}">{html.escape(cause.worst.case)}</h2>'
        f"<pre>{html.escape(_printable(failure(report, cause.worst)))}\n"
        f"{html.escape(others(cause, 1000))}</pre>"
        for cause in causes(report.verdicts)
    )
    covered = "".join(f"<li>{html.escape(_printable(line))}</li>" for line in report.covered)
    every = "".join(
        f'<tr><td>{html.escape(v.case)}</td><td class="{v.status}">{v.status}</td>'
        f"<td>{_figure(v)}</td><td>{html.escape(v.detail)}</td></tr>"
        for v in report.verdicts
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p class="{"fail" if report.failed else "pass"}">'
        f"{html.escape(report.empty or summary(report))}</p><ul>{covered}</ul>"
        f'<div class="wide"><table id="operators"><tr>{_cells(heads, "th")}</tr>{table}</table>'
        f"</div>{failures}<details><summary>All {len(report.verdicts)} cases</summary>"
        f'<div class="wide"><table>{every}</table></div></details></body></html>\n'
    )


def _cells(row: tuple[str, ...], tag: str = "td") -> str:
    return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)


def _figure(v: Verdict) -> str:
    return f"{v.ratio:.3g}" if v.status in ("pass", "suspicious", "fail") else ""


def difference(old: Report, new: Report) -> list[str]:
    """A line for each case whose status changed, or whose error grew more than tenfold."""
    before, after = ({v.case: v for v in r.verdicts} for r in (old, new))
    found = []
    for name in dict.fromkeys([*before, *after]):
        a, b = before.get(name), after.get(name)
        if a is None or b is None:
            found.append(f"{name}: {a.status if a else 'not there'} -> {b.status if b else 'gone'}")
        elif a.status != b.status:
            found.append(f"{name}: {a.status} -> {b.status} {b.detail}".rstrip())
        elif math.isfinite(a.ratio + b.ratio) and b.ratio > max(10 * a.ratio, 0.1):
            found.append(f"{name}: {b.status}, error/bound {a.ratio:.3g} -> {b.ratio:.3g}")
    return found
