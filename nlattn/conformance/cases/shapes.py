"""Sizes that a backend takes, in its own words, and those nearest to the sizes of a recipe.

A kernel of blocks wants channels from a set, lengths that are multiples, values as wide as keys:

    {"d": (64, 128), "e": "d", "n": {"multiple": 64, "most": 4096}, "m": "n", "group": (1, 4)}

Names are those of the table's dimensions, and ``heads``, ``batch`` and ``group`` (heads of queries
for each head of keys). A value is a number, a collection of numbers (a ``range`` is one), a dict of
some of ``multiple``, ``least`` and ``most``, or the name of the dimension that it equals.
``layouts`` lists those of memory: "C", "read-only", "strided", "reversed", "Fortran" and
"heads-last", (n, h, d) seen as (h, n, d), and "broadcast", heads of stride 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nlattn._types import Array

LAYOUTS = ("C", "read-only", "strided", "reversed", "Fortran", "heads-last", "broadcast")
_LEADING = ("heads", "batch", "group")


@dataclass(frozen=True)
class Sizes:
    """What one dimension may be; by default anything."""

    among: tuple[int, ...] = ()
    """All that it may be; empty where the rest tells."""
    multiple: int = 1
    least: int = 0
    most: int | None = None

    def __contains__(self, n: int) -> bool:
        if self.among:
            return n in self.among
        return n % self.multiple == 0 and self.least <= n <= (n if self.most is None else self.most)

    def nearest(self, n: int) -> int:
        """The least legal size that is not below `n`; the largest there is where all are."""
        if self.among:
            return min((x for x in self.among if x >= n), default=self.among[-1])
        step = self.multiple
        up = -(-max(n, self.least) // step) * step
        return up if self.most is None or up <= self.most else self.most // step * step

    def __str__(self) -> str:
        if self.among:
            few = ", ".join(map(str, self.among[:6])) + ", ..." * (len(self.among) > 6)
            return f"one of {few}" if len(self.among) > 1 else few
        said = [f"a multiple of {self.multiple}"] * (self.multiple > 1)
        said += [f"at least {self.least}"] * (self.least > 0)
        said += [f"at most {self.most}"] * (self.most is not None)
        return ", ".join(said)


@dataclass(frozen=True)
class Shapes:
    """What the arrays of one operator may be; by default anything."""

    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    equal: Mapping[str, str] = field(default_factory=dict)
    """Dimensions that are as long as another."""
    layouts: tuple[str, ...] = LAYOUTS

    @classmethod
    def of(cls, told: object, names: Collection[str]) -> Shapes:
        """From a backend's words; ValueError for a dimension that is none of `names`."""
        if not isinstance(told, Mapping):
            raise ValueError(f"shapes are {told!r}, expected a dict of dimensions")
        sizes, equal, layouts = dict[str, Sizes](), dict[str, str](), LAYOUTS
        for name, x in told.items():
            if name == "layouts":
                layouts = tuple(x)
                if not {*layouts} <= {*LAYOUTS}:
                    raise ValueError(f"layouts are {x!r}, expected some of {', '.join(LAYOUTS)}")
            elif name not in {*names, *_LEADING}:
                known = ", ".join([*names, *_LEADING, "layouts"])
                raise ValueError(f"shapes name {name!r}, expected some of {known}")
            elif isinstance(x, str):
                if x not in names:
                    raise ValueError(f"{name} equals {x!r}, expected one of {', '.join(names)}")
                equal[name] = x
            else:
                sizes[name] = _sizes(name, x)
        return cls(sizes, equal, layouts)

    def fit(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Legal sizes like those that are wanted: none of these made smaller unless it must be.

        A dimension of 0 stays 0: a case without keys is no case of few keys.
        """
        found = {
            name: self.sizes[name].nearest(n) if name in self.sizes and n else n
            for name, n in wanted.items()
        }
        for name, other in self.equal.items():
            if found.get(name) and found.get(other):
                found[name] = found[other]
        return found

    def fault(self, sizes: Mapping[str, int]) -> str:
        """Why some sizes are not taken; empty if they are."""
        for name, legal in self.sizes.items():
            if name in sizes and sizes[name] not in legal:
                return f"takes no {name} of {sizes[name]}: {name} is {legal}"
        for name, other in self.equal.items():
            if name in sizes and other in sizes and sizes[name] != sizes[other]:
                return f"takes {name} equal to {other} only"
        return ""

    def fit_lead(self, lead: tuple[int, ...]) -> tuple[int, ...]:
        """Leading axes, (..., batch, heads), of legal sizes."""
        sizes = self.fit(dict(zip(("heads", "batch"), reversed(lead), strict=False)))
        fitted = [sizes[name] for name in ("batch", "heads") if name in sizes]
        return (*lead[: len(lead) - len(fitted)], *fitted)


def _sizes(name: str, x: Array) -> Sizes:
    known = {"multiple", "least", "most"}
    if isinstance(x, Mapping):
        if not {*x} <= known or not all(_whole(n) for n in x.values()):
            raise ValueError(
                f"{name} is {x!r}, expected numbers for some of {', '.join(sorted(known))}"
            )
        return Sizes(**x)
    among = tuple(x) if isinstance(x, Collection) else (x,)
    if not among or not all(_whole(n) for n in among):
        raise ValueError(
            f"{name} is {x!r}, expected a number, several, a dict of some of "
            f"{', '.join(sorted(known))}, or the name of another dimension"
        )
    return Sizes(tuple(sorted(among)))


def _whole(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0
