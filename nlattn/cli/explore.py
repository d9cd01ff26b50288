"""``nlattn explore``: saved maps as one page."""

from __future__ import annotations

import os
import secrets
import webbrowser
from argparse import Namespace
from pathlib import Path

from nlattn import explorer, images, load_map
from nlattn._types import Floats, JsonObject
from nlattn.cli.attend import built_in
from nlattn.files.untrusted import open_regular, parse_json

_REPORT = 1 << 20


def explore(options: Namespace) -> int:
    """One or two maps, and the picture they are of."""
    if options.out.exists() and not options.force:
        raise ValueError(f"{options.out} exists; --force replaces it, --out names another")
    maps = {}
    for path in options.maps:
        name = path.name if path.is_dir() else path.stem
        while name in maps:
            name += "'"
        maps[name] = load_map(path / "map.npz" if path.is_dir() else path)
    image = _picture(options)
    keys = None if options.keys_image is None else images.load(options.keys_image)
    page = explorer.page(image, maps, keys=keys, top=options.top)
    draft = options.out.with_name(f".{options.out.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(page, "utf-8")
        os.replace(draft, options.out)
    finally:
        draft.unlink(missing_ok=True)
    if not options.quiet:
        print(options.out)
    if options.open:
        webbrowser.open(options.out.resolve().as_uri())
    return 0


def _picture(options: Namespace) -> Floats:
    """The picture that is named, or that the first folder's report names."""
    if options.image is not None:
        return images.load(options.image, page=options.page)
    for folder in filter(Path.is_dir, options.maps):
        report = _report(folder / "report.json")
        if report.get("command") == "demo":
            return built_in(report["options"].get("size"))
        named = report.get("options", {}).get("image")
        if named:
            return images.load(named, page=report["options"].get("page"))
    raise ValueError(f"{options.maps[0]} does not say which picture it is of; --image names it")


def _report(path: Path) -> JsonObject:
    with open_regular("explore", path) as file:
        report = parse_json(file.read(_REPORT))
    fits = isinstance(report, dict) and isinstance(report.get("options", {}), dict)
    if not fits:
        raise ValueError(f"{path} is no report of nlattn map")
    found: JsonObject = report
    return found
