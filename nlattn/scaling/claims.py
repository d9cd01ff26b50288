"""Growth as an assertion, for the tests of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nlattn import _check
from nlattn.scaling.judge import GrowthVerdict, judge
from nlattn.scaling.work import number_of, of_result

_SIZES = tuple(2**i for i in range(6, 13))


def assert_complexity(
    fn: Callable[[int], object],
    law: str,
    *,
    sizes: Sequence[int] = _SIZES,
    unit: str = "multiply_adds",
) -> GrowthVerdict:
    """Assert that counted work grows no faster than a law.

    Parameters
    ----------
    fn : callable
        ``fn(n)`` returns the work at size n: a number, a `Work`, or what has one as ``.work``.
    law : str
        Such as "n log n"; ``n^a log^b n``.
    sizes : integers
        Five or more over at least four octaves.
    unit : {"multiply_adds", "scores", "bytes"}
        Which figure of a `Work` is meant.

    Returns
    -------
    GrowthVerdict
        "consistent", with the constant c of ``work <= c law(n)``.

    Raises
    ------
    AssertionError
        The verdict is another.
    TypeError
        `fn` returned no work.

    Examples
    --------
    >>> nlattn.assert_complexity(lambda n: n * (n - 1) // 2, "n^2").verdict
    'consistent'
    """
    op = "assert_complexity"
    if not callable(fn):
        _check.fail_type(op, "fn", f"is a {type(fn).__name__}, expected a function of n")
    _check.instance(op, "sizes", sizes, Iterable, "integers")
    sizes = [_check.integer(op, f"sizes[{i}]", n, low=2) for i, n in enumerate(sizes)]
    amounts = [_amount(fn(n), unit) for n in sizes]
    found = judge(sizes, amounts, law, cliffs=False)
    if found.verdict != "consistent":
        pairs = ", ".join(f"{n}: {a:g}" for n, a in zip(sizes, amounts, strict=True))
        raise AssertionError(f"work is {found.verdict} with {law}: {found.reason} ({pairs})")
    return found


def _amount(result: object, unit: str) -> float:
    work = of_result(result)
    if work is not None:
        _check.choice("assert_complexity", "unit", unit, ("multiply_adds", "scores", "bytes"))
        return float(getattr(work, unit))
    number = number_of(result)
    if number is None:
        raise TypeError(
            f"assert_complexity: fn returned a {type(result).__name__}, expected a count, a Work, "
            "or something that has one as .work"
        )
    return number
