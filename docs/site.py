"""What the site adds to the pages: the reference, the list of operators, links to what is named.

MkDocs calls these functions by their names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nlattn
from nlattn.conformance.table import TABLE

_MODULES = ("images", "layers", "plots", "explorer")


def on_config(config: Any) -> Any:
    """Every page of an operator stands in the menu, by its heading."""
    folder = Path(config["docs_dir"]) / "algorithms"
    pages = {
        path.stem: path.read_text().split("\n", 1)[0].lstrip("# ") for path in folder.glob("*.md")
    }
    first = list(dict.fromkeys(spec.stem for spec in TABLE))
    order = sorted(pages, key=lambda stem: (first.index(stem) if stem in first else 99, stem))
    for entry in config["nav"]:
        if "Operators" in entry:
            entry["Operators"] = [{pages[stem]: f"algorithms/{stem}.md"} for stem in order]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The reference names every public function, by the module that it comes from."""
    if page.file.src_uri != "reference.md":
        return markdown
    lines = []
    last = ("maps.base", "maps.io", "_types", "runtime.threads")
    for module, names in sorted(nlattn._HOME.items(), key=lambda item: (item[0] in last, item[0])):
        stem = module.rsplit(".", 1)[-1].lstrip("_").replace("_", " ")
        lines += [f"## {stem.capitalize()}", *(f"::: nlattn.{module}.{name}" for name in names)]
    for module in _MODULES:
        lines.append(f"## nlattn.{module}")
        public = getattr(getattr(nlattn, module), "__all__", None)
        names = public or re.findall(
            r"^def ([a-z]\w*)", Path(getattr(nlattn, module).__file__).read_text(), re.M
        )
        lines += [f"::: nlattn.{module}.{name}" for name in names]
    return markdown + "\n" + "\n\n".join(lines) + "\n"


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """In the reference, the name of a public function leads to it: "as in `patchmatch`"."""
    if page.file.src_uri != "reference.md":
        return html
    places = {
        name: f"nlattn.{home}.{name}" for home, names in nlattn._HOME.items() for name in names
    }
    return re.sub(
        r"<code>([a-z_]+)</code>",
        lambda m: f'<a href="#{places[m[1]]}">{m[0]}</a>' if m[1] in places else m[0],
        html,
    )
