"""README as a package index shows it: links into this folder lead nowhere from there.

With a line ``Source = "https://..."`` under ``[project.urls]`` they lead to the files of the
repository. Without one, links are their text and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")


def readme(text: str, source: str | None) -> str:
    """The text with links that hold anywhere."""

    def link(found: re.Match[str]) -> str:
        picture, words, path = found.groups()
        if source is None:
            return "" if picture else words
        return (
            f"{picture}[{words}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{path})"
        )

    return re.sub(r"\n{3,}", "\n\n", LINK.sub(link, text))


class IndexReadme(MetadataHookInterface):
    """Puts it into the metadata of the package."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling for every build."""
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = readme(text, metadata.get("urls", {}).get("Source"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
