"""The shape of the house: every operator is complete, and every import is where it may be."""

from __future__ import annotations

import ast
import functools
import graphlib
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import nlattn
from nlattn import _modes, layers
from nlattn.conformance.cases import arrays as made
from nlattn.conformance.cases.recipes import recipes
from nlattn.conformance.judge.variants import VARIANTS
from nlattn.conformance.judge.variants import of as variants_of
from nlattn.conformance.table import JUDGED, PARTS, TABLE, OpSpec, find
from nlattn.conformance.table.row import Growth
from tests.faults.generated import mutants

pytestmark = pytest.mark.plain

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "nlattn").rglob("*.py"))
OPTIONAL = {"matplotlib", "PIL", "tqdm", "ml_dtypes", "torch", "jax", "onnxruntime", "skimage"}
OPTIONAL |= {"dask", "distributed", "tifffile", "xarray", "zarr"}
MAY_USE_OPTIONAL = (
    "plots",
    "images",
    "files/picture",
    "files/png",
    "files/tiff",
    "cli",
    "conformance/backends/adapters",
    "conformance/case",
    "tiled/executors",
    "tiled/exports",
    "tiled/lazy",
    "tiled/sources",
    "_check",
)
MAY_USE_OPTIONAL += ("scaling/figure", "tensors", "torch")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """A file, parsed once for all tests."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "nlattn").with_suffix("").as_posix()


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def modules(tree: ast.AST, names: set[str]) -> set[str]:
    """Those of `names` that a file imports anywhere, also inside functions, but not for types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = imports(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            below = {f"{node.module}.{alias.name}" for alias in node.names} & names
            found = found | below
            if len(below) == len(node.names):  # of a package whose own names are not asked for
                found -= {node.module or ""}
    return found & names


def test_no_files_import_each_other_in_a_circle() -> None:
    dotted = {
        f"nlattn.{name_of(p).replace('/', '.')}".removesuffix(".__init__"): p for p in SOURCES
    }
    graph = {
        name: modules(ast.parse(path.read_text()), {*dotted}) - {name}
        for name, path in dotted.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names a circle


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_an_operator_is_complete(spec: OpSpec) -> None:
    for path in (
        f"nlattn/oracle/{spec.stem}.py",
        f"nlattn/ops/{spec.stem}.py",
        f"tests/oracle/test_{spec.stem}.py",
        f"tests/ops/test_{spec.stem}.py",
        f"docs/algorithms/{spec.stem}.md",
    ):
        assert (ROOT / path).is_file(), f"{spec.name} lacks {path}"
        texts = [p.read_text() for p in ROOT.glob(path.replace(spec.stem, f"{spec.stem}*"))]
        assert any(spec.name in text for text in texts), f"{path} says nothing of {spec.name}"
    assert callable(spec.oracle())
    if spec.has_vjp:
        assert callable(spec.oracle("vjp"))
    if spec.has_jvp:
        assert callable(spec.oracle("jvp"))
        assert callable(getattr(nlattn, f"{spec.name}_jvp"))


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_an_operator_is_called_as_all_are(spec: OpSpec) -> None:
    kinds = ["", *(["map"] if spec.has_map else []), *(["vjp"] if spec.has_vjp else [])]
    for kind in kinds:
        function = spec.function(kind)  # type: ignore[arg-type]
        public = getattr(nlattn, function.__name__, None)
        assert public is not None, f"nlattn/__init__.py lacks {function.__name__}"
        assert public.__wrapped__ is function  # tensors.accepting
        doc = inspect.getdoc(function) or ""
        for section in ("Parameters", "Returns", "Raises", "Notes"):
            assert f"{section}\n---" in doc or kind, (
                f"{function.__name__} says nothing of {section}"
            )
        for parameter in list(inspect.signature(function).parameters.values()):
            positional = parameter.name in {*spec.arrays, *spec.options, "dout", "support"}
            assert positional or parameter.kind is parameter.KEYWORD_ONLY, parameter


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_a_row_says_all_there_is_to_say(spec: OpSpec) -> None:
    searched = spec.cases.search is not None
    assert spec.cases.search_only <= searched
    families = {family for variant in VARIANTS for family in variant.families}
    assert {*spec.wrong} <= families, f"{spec.name}: no family of {sorted(families)}"
    own = [v for v in variants_of(spec.name) if set(v.families) & set(spec.wrong)]
    assert len(own) >= 5 or spec.cases.search_only, f"{spec.name}: fewer than 5 wrong variants"
    paired = any("+" in recipe.label for recipe in recipes(spec))
    assert bool(spec.cases.choices) <= paired, f"{spec.name}: its options are never paired"
    assert len(list(islice(mutants(spec), 10))) == 10, (
        f"{spec.name}: an oracle without faults to generate"
    )
    timed_alone = spec.growth == Growth()
    assert timed_alone <= spec.summary.startswith(("what each key", "what one key")), "no law"
    assert bool(spec.growth.counted) == bool(spec.growth.follows)


@pytest.mark.parametrize("spec", PARTS, ids=lambda spec: spec.name)
def test_a_part_is_complete(spec: OpSpec) -> None:
    """Beside operators it has no map, no page and no law of cost; all else it has."""
    for folder in ("nlattn/oracle/", "nlattn/ops/", "tests/oracle/test_", "tests/ops/test_"):
        assert spec.name in (ROOT / f"{folder}{spec.stem}.py").read_text()
    kinds: list[Any] = ["", *["vjp"] * spec.has_vjp]
    for kind in kinds:
        assert callable(spec.oracle(kind))
        assert getattr(nlattn, spec.function(kind).__name__).__wrapped__ is spec.function(kind)
    assert len([v for v in variants_of(spec.name) if {*v.families} & {*spec.wrong}]) >= 5
    assert len(list(islice(mutants(spec), 5))) == 5
    assert spec.source in (ROOT / "docs/references.md").read_text()


def test_every_operator_has_a_row() -> None:
    """An oracle, and a file of `ops` with functions, are of an operator that a row names."""
    stems = {spec.stem for spec in JUDGED}
    for path in sorted((ROOT / "nlattn/oracle").glob("[a-z]*.py")):
        op = ROOT / "nlattn/ops" / path.name
        functions = op.is_file() and re.search(r"^def [a-z]", op.read_text(), re.M)
        if functions:
            assert path.stem in stems, (
                f"nlattn/oracle/{path.name}: no row of the table has its stem"
            )


def test_names_of_maps_and_gradients_are_those_of_functions() -> None:
    for name in nlattn.__all__:
        for end in ("_map", "_vjp", "_jvp"):
            stem = name.removesuffix(end)
            whole = stem == name or stem in (*nlattn.__all__, "load", "open")
            assert whole, f"{name}, and no {stem}"


OWN = ("__init__", "oracle/", "ops/", "maps/", "layers/", "conformance/table/")
ELSEWHERE = ("conformance/backends/adapters/",)  # what other libraries have


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_operators_are_listed_in_the_table_alone(path: Path) -> None:
    if name_of(path).startswith((*OWN, *ELSEWHERE)):
        return
    names = {spec.name + end for spec in JUDGED for end in ("", "_vjp", "_jvp", "_map")}
    if name_of(path).startswith("cli/"):  # methods of the command are words of its own
        names -= {spec.stem for spec in TABLE}
    for node in ast.walk(tree_of(path)):
        texts: list[ast.expr | None] = []
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            texts = [*node.elts]
        elif isinstance(node, ast.Dict):
            texts = [*node.keys]
        elif isinstance(node, ast.Compare):
            texts = [node.left, *node.comparators] * 2
        found = [x.value for x in texts if isinstance(x, ast.Constant) and x.value in names]
        assert len(found) < 2, f"line {node.lineno}: {found}; say it in the row"  # type: ignore


WORDED = ("ops/", "engines/", "kernels/", "maps/", "layers/", "images", "quality", "testing")
READERS = ("maps/io", "maps/state", "layers/_files")  # what a file of others lacks
INPUT_ERRORS = ("ValueError", "TypeError", "MemoryError")


@pytest.mark.parametrize("path", [p for p in SOURCES if name_of(p).startswith(WORDED)], ids=name_of)
def test_input_errors_are_worded_by_the_checks(path: Path) -> None:
    """``_check`` raises them all; `from_state` says what a saved map lacks, to who reads it."""
    if name_of(path) in READERS:
        return
    tree = tree_of(path)
    readers = [x for x in ast.walk(tree) if getattr(x, "name", "") == "from_state"]
    own = {id(x) for reader in readers for x in ast.walk(reader)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and id(node) not in own:
            raised = ast.unparse(node.exc.func)
            assert raised not in INPUT_ERRORS, f"line {node.lineno}: use _check"


def test_nothing_collects_its_locals() -> None:
    assert [name_of(path) for path in SOURCES if "locals()" in path.read_text()] == []


def test_no_two_classes_share_a_name() -> None:
    """Nor do types that are named; oracles and adapters have their own world, as tries of a judge.

    Every adapter is a file's `Backend`.
    """
    where: dict[str, list[str]] = {}
    apart = ("oracle/", "conformance/backends/adapters/", "conformance/judge/")
    for path in (p for p in SOURCES if not name_of(p).startswith(apart)):
        for node in tree_of(path).body:
            named = getattr(node, "target", None) or next(iter(getattr(node, "targets", [])), None)
            name = node.name if isinstance(node, ast.ClassDef) else getattr(named, "id", "_")
            if name[0].isupper() and not name.isupper():
                where.setdefault(name, []).append(name_of(path))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


@pytest.mark.parametrize("spec", JUDGED, ids=lambda spec: spec.name)
def test_every_option_is_tried(spec: OpSpec) -> None:
    if spec.cases.search_only:
        return
    untried = keywords(spec.function()) & keywords(spec.oracle()) - CHOOSING
    untried -= {*spec.options, *(spec.cases.search.options if spec.cases.search else ())}
    known: set[str] = set()
    for recipe in recipes(spec):
        untried -= {*recipe.options}
        if not {*recipe.extra} <= known:
            known |= {*recipe.extra}
            arrays = made.values(np.random.default_rng(0), spec, recipe)
            more = made.extras(np.random.default_rng(0), spec, recipe, arrays)
            untried -= {name.split(".")[0] for name in {**arrays, **more}}
    assert not untried, f"no recipe of {spec.name} has {sorted(untried)}"


def test_no_two_recipes_share_a_label() -> None:
    for spec in JUDGED:
        own = [*(r for factor in spec.cases.choices for r in factor), *spec.cases.recipes]
        labels = [recipe.label for recipe in own]
        assert len(labels) == len({*labels}), spec.name


CHOOSING = {"seed", "select", "scores", "field", "key_mask", "weights", "return_rank"}
"""Options of what is chosen, or computed, beforehand and part of every case; a whole number."""


def keywords(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(inspect.unwrap(function)).parameters
    return {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def test_names_of_tests_say_what_they_test() -> None:
    """Folders are the package's; tests of engines and kernels bear the name of what they import."""
    tests = sorted((ROOT / "tests").glob("*/test_*.py"))
    assert {p.parent.name for p in tests} - {"fuzz"} <= {p.name for p in ROOT.glob("nlattn/*/")}
    for path in (p for p in tests if p.parent.name in ("engines", "kernels")):
        stem, _, through = path.stem.removeprefix("test_").partition("_through_")
        assert (ROOT / "nlattn" / path.parent.name / f"{stem}.py").is_file(), path
        assert re.search(rf"import .*\b{through or stem}\b|{stem} import", path.read_text()), path


def test_a_layer_is_complete() -> None:
    page = (ROOT / "docs" / "layers.md").read_text()
    tests = "".join(p.read_text() for p in (ROOT / "tests" / "layers").glob("test_*.py"))
    for path in sorted((ROOT / "nlattn" / "layers").glob("[a-z]*.py")):
        defined = (n.name for n in tree_of(path).body if isinstance(n, ast.FunctionDef))
        for name in (n for n in defined if n.endswith("_block")):
            assert hasattr(layers, name), name
            assert hasattr(layers, f"{name}_vjp"), name
            assert name in page, f"docs/layers.md says nothing of {name}"
            assert name in tests, f"tests/layers/ says nothing of {name}"


def test_modes_are_closed_sets_that_an_editor_knows() -> None:
    for name in (n for n, module in nlattn._ORIGIN.items() if module.startswith("ops.")):
        function = inspect.unwrap(getattr(nlattn, name))
        for parameter in inspect.signature(function).parameters.values():
            if isinstance(parameter.default, str) and parameter.name != "kind":
                mode = getattr(_modes, str(parameter.annotation).split(".")[-1], None)
                assert parameter.default in get_args(mode), f"{name}: {parameter}"


def test_the_table_answers_by_name() -> None:
    assert find("attention").stem == "dense"
    with pytest.raises(KeyError, match="'fast' is no operator; there are attention"):
        find("fast")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    assert ast.get_docstring(tree_of(path)), f"{path} has no first line"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_optional_packages_are_imported_inside_functions(path: Path) -> None:
    tree = tree_of(path)
    roots = {name.split(".")[0] for name in imports(tree)}
    if not name_of(path).startswith(MAY_USE_OPTIONAL):
        assert not roots & OPTIONAL
    if name_of(path) == "torch":  # who imports the bridge has PyTorch
        return
    outside = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    assert not {name.split(".")[0] for name in imports(outside)} & OPTIONAL


@pytest.mark.parametrize("path", sorted((ROOT / "nlattn/oracle").glob("*.py")), ids=name_of)
def test_an_oracle_imports_numpy_alone(path: Path) -> None:
    allowed = {"__future__", "numpy", "typing", "collections", "dataclasses", "math", "itertools"}
    allowed |= {"functools"}
    for name in imports(tree_of(path)):
        assert name.split(".")[0] in allowed or name.startswith("nlattn.oracle"), name


def test_only_one_file_compiles() -> None:
    callers = [name_of(p) for p in SOURCES if "njit" in p.read_text()]
    assert callers == ["runtime/jit"]


def test_importing_the_package_loads_neither_numba_nor_scipy() -> None:
    code = (
        "import sys, nlattn; assert 'attention' in dir(nlattn)\n"
        "print({'numba', 'scipy', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


def test_public_names_resolve_and_checkers_see_them() -> None:
    for name in nlattn.__all__:
        assert getattr(nlattn, name) is not None
    tree = ast.parse((ROOT / "nlattn/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {(f"nlattn.{module}", name) for name, module in nlattn._ORIGIN.items()}
    assert seen == loaded, f"one list of nlattn/__init__.py alone has {seen ^ loaded}"
    with pytest.raises(AttributeError, match="no attribute 'attn'"):
        _ = nlattn.attn  # type: ignore[attr-defined]
