"""What the documents say is so: examples run, links lead somewhere, tables match the code."""

from __future__ import annotations

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from nlattn.conformance.table import TABLE, OpSpec

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]


@pytest.mark.jit
@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if "images" in block:
        pytest.importorskip("PIL")
    if "import torch" in block:
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.jit
@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.ipynb")), ids=lambda p: p.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text())["cells"]
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "notebooks are kept without outputs"
            exec(compile("".join(cell["source"]), path.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("folder", ["engines", "kernels"])
def test_the_architecture_has_a_place_for_every_file(folder: str):
    page = (ROOT / "docs/architecture.md").read_text()
    told = [re.escape(word).replace(r"\*", ".*") for word in re.findall(r"`([a-z_*]+)`", page)]
    files = {path.stem for path in (ROOT / "nlattn" / folder).glob("[a-z]*.py")}
    assert sorted(f for f in files if not re.fullmatch("|".join(told), f)) == []


def test_the_readme_has_its_example_and_picture():
    text = (ROOT / "README.md").read_text()
    assert "```python" in text
    assert "python -m pip install '.[cli]' && nlattn demo" in text
    assert "python -m pip install '.[cli,test]' && python -m pytest" in text


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_the_readme_lists_every_operator_with_its_status(spec: OpSpec):
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:1] == "|"]
    row = next((line for line in rows if line.startswith(f"| [`{spec.name}`]")), "")
    assert row, f"README.md has no line of {spec.name}"
    assert f"docs/algorithms/{spec.stem}.md" in row
    assert spec.summary in row
    assert row.endswith(f"| {spec.status} |")


@pytest.mark.parametrize("spec", TABLE, ids=lambda spec: spec.name)
def test_every_source_is_in_the_references(spec: OpSpec):
    known = (ROOT / "docs/references.md").read_text()
    for key in spec.source.split(", "):
        assert f"| {key} |" in known, f"docs/references.md lacks {key}, the source of {spec.name}"


def test_the_readme_lists_no_operator_beside_the_table():
    listed = re.findall(r"^\| \[`(\w+)`\]\(docs/algorithms", (ROOT / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(spec.name for spec in TABLE)


def test_every_citation_is_in_the_references():
    known = set(
        re.findall(r"^\| ([a-z]+\d{4}) \|", (ROOT / "docs/references.md").read_text(), re.M)
    )
    cited = set()
    for path in [*PAGES, *(ROOT / "nlattn").rglob("*.py")]:
        cited |= set(re.findall(r"\[([a-z]+(?:19|20)\d\d)[\],]", path.read_text()))
    assert cited <= known, cited - known


def test_what_a_package_index_shows_has_no_link_into_this_folder() -> None:
    try:
        text = str(importlib.metadata.metadata("nlattn").get_payload())
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nlattn is not installed")
    assert "## Operators" in text
    assert "`certified_attention`" in text
    assert not re.search(r"\]\((?!https?://|#)", text)
