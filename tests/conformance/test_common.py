"""What failing cases share is said where it tells them from those that pass, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from nlattn.conformance.case import Case
from nlattn.conformance.cases import suite
from nlattn.conformance.judge.verdict import Verdict
from nlattn.conformance.report.common import in_common

pytestmark = pytest.mark.plain

CASES = [
    c for c in suite.cases("smoke", ("attention",), ("float32", "float16")) if c.kind == "forward"
]


def said(fails: Callable[[Case], bool]) -> list[str]:
    verdicts = [Verdict(c.name, "fail" if fails(c) else "pass", 1.0) for c in CASES]
    return list(in_common(CASES, verdicts))


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (lambda c: "softcap" in c.options, "softcap"),
        (lambda c: c.options.get("window_about") == "offset", "window_about='offset'"),
        (lambda c: "bias" in c.arrays and "mask" in c.arrays, "mask with bias"),
        (lambda c: "key_lengths" in c.arrays, "key_lengths"),
        (lambda c: c.sizes()["m"] > 256, "m above 256"),
        (lambda c: c.sizes()["d"] % 4 != 0, "d no multiple of 4"),
        (lambda c: c.dtype == "float16", "dtype float16"),
        (lambda c: "reversed" in c.name, "arrays that lie reversed"),
        (lambda c: "causal" in c.options and c.sizes()["n"] > 64, "causal with n above 64"),
        (
            lambda c: c.sizes()["m"] > 64 and c.sizes()["m"] % 64 > 0,
            "m above 64 and no multiple of 64",
        ),
        (lambda c: "mask" in c.arrays and "bias" not in c.arrays, "mask without bias"),
        (lambda c: "integers" in c.name, "small integers"),
        (
            lambda c: 1 in c.arrays["v"].shape[:-2] != c.arrays["q"].shape[:-2],
            "v of one head, along an axis of 1",
        ),
    ],
)
def test_a_trait_that_tells_failing_cases_is_named(
    fails: Callable[[Case], bool], words: str
) -> None:
    failing, passing = sum(map(fails, CASES)), sum(not fails(c) for c in CASES)
    all_ = f"all {failing} failing cases have" if failing > 1 else "the case that fails has"
    whole = f"attention: {all_} {words}"
    assert said(fails)[0].startswith(whole)
    assert said(fails)[0].endswith(f", none of the {passing} that pass")


def test_what_some_that_pass_have_too_is_counted() -> None:
    some = [c for c in CASES if "bias" in c.arrays]
    fails = {c.name for c in some[::2]}
    assert said(lambda c: c.name in fails) == [
        f"attention: all {len(fails)} failing cases have bias; "
        f"of the {len(CASES) - len(fails)} that pass {len(some) - len(fails)} have it"
    ]


def test_nothing_is_said_without_a_reason() -> None:
    assert not said(lambda c: bool(c.name))
    assert not said(lambda c: not c.name)
    assert not said(lambda c: sum(map(ord, c.name)) % 3 == 0)
