"""What can be swept: operators of the table by name, and functions of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from nlattn._types import Function, JsonObject, Work
from nlattn.conformance.backends.backend import load, run
from nlattn.conformance.table import TABLE, OpSpec
from nlattn.conformance.table.row import Growth
from nlattn.ops.features import orthogonal_features
from nlattn.ops.sparse import support_from_index
from nlattn.scaling.quality import compared
from nlattn.scaling.scene import Scene
from nlattn.scaling.work import Counted, count, number_of, of_result

_FEATURES = 128
_GIVEN = ("q", "k", "v", "image", "n", "grid", "seed")


class CostSubject(Protocol):
    """Something whose cost grows with n."""

    name: str
    separable: bool
    """Whether a share of the queries takes that share of the time."""
    sides: tuple[int, int, int]
    """Sides of the smallest and the largest grid, and how many, that show how its work grows."""

    def call(self, scene: Scene, rows: int | None = None) -> Callable[[], object]:
        """The call to time, its arguments made; of the first `rows` queries."""

    def count(self, scene: Scene) -> Counted | None:
        """Its work; None if it does not say."""

    def quality(self, scene: Scene) -> JsonObject | None:
        """How well it stands for dense attention; None if it does not mean to."""


class Operator:
    """A row of the table."""

    def __init__(self, spec: OpSpec):
        self.spec, self.name = spec, spec.name
        self.separable, self.sides = spec.growth.separable, spec.growth.sides

    def arguments(self, scene: Scene) -> tuple[JsonObject, JsonObject]:
        """Arrays, and options."""
        spec = self.spec
        needed = {name: dims for name, dims in spec.arrays.items() if name not in spec.optional}
        arrays = scene.arrays(needed)
        if spec.growth.channels:
            some = slice(spec.growth.channels)
            points = {name: scene.scale**0.5 * arrays[name][:, some] for name in "qk"}
            arrays |= {name: x.astype(np.float32) for name, x in points.items()}
        if spec.growth.coarser_keys:
            arrays["k"] = arrays["k"][::2, ::2]
        options = {**spec.options, **spec.growth.options}
        if "projection" in spec.extras:
            d = arrays["q"].shape[-1]
            projection = orthogonal_features(d, _FEATURES, seed=scene.seed)
            arrays["projection"] = projection.astype(np.float32)
        if spec.cases.given == "support" and "n" in spec.out.split():
            rng = np.random.default_rng(scene.seed)
            options["support"] = support_from_index(
                rng.integers(0, scene.n, (scene.n, 9)), n_keys=scene.n
            )
        if spec.growth.scaled:
            options["scale"] = scene.scale
        return arrays, options

    def call(self, scene: Scene, rows: int | None = None) -> Callable[[], object]:
        """The forward function."""
        arrays, options = self.arguments(scene)
        if rows is not None:
            arrays["q"] = arrays["q"][:rows]
        return self._bound(arrays, options)

    def _bound(self, arrays: JsonObject, options: JsonObject) -> Callable[[], object]:
        function = self.spec.function()
        return lambda: function(**arrays, **options)

    def count(self, scene: Scene) -> Counted | None:
        """Its work, counted or by its law."""
        return count(self.spec, *self.arguments(scene))

    def quality(self, scene: Scene) -> JsonObject | None:
        """Recall, mass and output error against dense attention in float64, on sampled queries."""
        return compared(self.spec, *self.arguments(scene), seed=scene.seed)


class Backed(Operator):
    """An operator as somebody's backend computes it, ``attention@torch``."""

    def __init__(self, spec: OpSpec, backend: str):
        super().__init__(spec)
        self.name, self._backend = f"{spec.name}@{backend}", load(backend, spec.name)

    def _bound(self, arrays: JsonObject, options: JsonObject) -> Callable[[], object]:
        if "support" in options:
            parts = options.pop("support")._asdict().items()
            arrays |= {f"support.{name}": np.asarray(x) for name, x in parts}
        return lambda: run(self._backend, self.spec.name, arrays, options)

    def count(self, scene: Scene) -> Counted | None:
        """The operator's law; what a backend counts is not known."""
        return super().count(scene) if self.spec.growth.law else None

    def quality(self, scene: Scene) -> JsonObject | None:  # noqa: ARG002  it has no map
        """None: a backend gives outputs, not maps."""
        return None


class Own:
    """A function of the user's: its parameters' names say what it gets.

    ``q``, ``k`` (n, d) and ``v`` (n, e) float32, ``image`` (H, W, 3), ``n``, ``grid``, ``seed``.
    It may return a `Work`, a tuple with one, something that has one as ``.work``, or its work as a
    number.
    """

    def __init__(self, name: str, function: Function):
        self.name, self._function, self.separable = name, function, False
        self.sides = Growth().sides
        parameters = inspect.signature(function).parameters.values()
        needed = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        unknown = [p.name for p in needed if p.default is p.empty and p.name not in _GIVEN]
        if unknown:
            raise ValueError(
                f"scaling: {name} takes {unknown[0]!r}, expected parameters among "
                f"{', '.join(_GIVEN)}, or defaults"
            )
        self._needed = [p.name for p in needed if p.name in _GIVEN]

    def call(self, scene: Scene, rows: int | None = None) -> Callable[[], object]:  # noqa: ARG002
        """The function with its arguments."""
        given: JsonObject = {"n": scene.n, "grid": scene.grid, "seed": scene.seed}
        shapes = {"q": "n d", "k": "m d", "v": "m e", "image": "H W e"}
        arrays = scene.arrays({name: shapes[name] for name in self._needed if name in shapes})
        arguments = {name: {**given, **arrays}[name] for name in self._needed}

        def call() -> object:
            try:
                return self._function(**arguments)
            except MemoryError:
                raise
            except Exception as error:
                text = f"scaling: {self.name} raised {type(error).__name__}: {error}"
                raise ValueError(text) from error

        return call

    def count(self, scene: Scene) -> Counted | None:
        """The work it returns, if it does: a `Work`, what has one, or a number."""
        result = self.call(scene)()
        work, number = of_result(result), number_of(result)
        if work is not None:
            return Counted(work, "count", "")
        return None if number is None else Counted(Work(0, round(number), 0), "number", "")

    def quality(self, scene: Scene) -> JsonObject | None:  # noqa: ARG002
        """None: what it should equal is not known."""
        return None


def find(name: str) -> CostSubject:
    """A subject: an operator or its short name, ``operator@backend``, ``module:function``."""
    operator, at, backend = name.partition("@")
    if at:
        return Backed(_row(operator), backend)
    return Own(name, _load(name)) if ":" in name else Operator(_row(name))


def _row(name: str) -> OpSpec:
    alike = (
        [spec for spec in TABLE if spec.name == name]
        or [spec for spec in TABLE if spec.stem == name]
        or [spec for spec in TABLE if spec.name.startswith(name)]
    )
    if len(alike) == 1:
        return alike[0]
    known = ", ".join(spec.name for spec in alike or TABLE)
    what = "is several operators" if alike else "is no operator"
    raise ValueError(f"scaling: {name!r} {what}, expected one of {known}; or module:function")


def _load(text: str) -> Function:
    place, _, name = text.rpartition(":")
    if place.endswith(".py") and not Path(place).is_file():
        raise ValueError(f"scaling: {place} is no file")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else import_module(place)
    except Exception as error:  # whatever the code of others raises
        text = f"scaling: cannot import {place!r}: {type(error).__name__}: {error}"
        raise ValueError(text) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"scaling: {place} has no function {name!r}")
    return function


def _module_of_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
