"""What single values on a command line may be; each is a type of argparse."""

from __future__ import annotations

import argparse

_SIDE = 1 << 24
"""The longest side of a grid: its points are counted in 64 bits."""


def tolerance(text: str) -> tuple[str, float]:
    """A pattern of cases and the factor on their bounds."""
    pattern, _, factor = text.rpartition("=")
    if not pattern:
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=FACTOR")
    return pattern, above_zero(factor)


def names(text: str) -> tuple[str, ...]:
    """Names between commas, at least one."""
    found = tuple(name for name in map(str.strip, text.split(",")) if name)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def count(text: str) -> int:
    """A whole number from 0 up."""
    return whole(text, 0)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    return whole(text, 1)


def some(text: str) -> int:
    """A whole number from 1 to 1000, of what takes its time each."""
    return whole(text, 1, 1000)


def whole(text: str, low: int, high: int = (1 << 63) - 1) -> int:
    """A whole number from `low` up, and at most `high`."""
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if number < low:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} up")
    if number > high:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {high}")
    return number


def above_zero(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def share(text: str) -> float:
    """A number between 0 and 1."""
    number = above_zero(text)
    if not number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return number


def grid(text: str) -> tuple[int, int]:
    """Height and width, such as 256x256."""
    try:
        height, width = (whole(part, 2, _SIDE) for part in text.split("x"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is no grid, such as 256x256") from None
    return height, width


def span(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The smallest and the largest grid, such as 32x32:256x256."""
    first, _, last = text.partition(":")
    ends = grid(first), grid(last or first)
    if ends[0][0] > ends[1][0] or ends[0][1] > ends[1][1]:
        raise argparse.ArgumentTypeError(f"{text!r} shrinks, expected such as 32x32:512x512")
    return ends


def point(text: str) -> tuple[int, int]:
    """Row and column, such as 120,88."""
    try:
        row, column = (count(part) for part in text.split(","))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COL, such as 120,88") from None
    return row, column


def n_bytes(text: str) -> float:
    """A size such as 4GB, in bytes."""
    low, units = text.lower().strip(), {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "b": 1.0}
    unit = next((u for u in units if low.endswith(u)), "")
    try:
        size = float(low.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 4GB")
    return size
