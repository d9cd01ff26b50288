"""``nlattn explore``: saved maps as one page."""

from __future__ import annotations

import webbrowser
from argparse import Namespace
from pathlib import Path

from nlattn import explorer, images, load_map
from nlattn._types import Floats, Json, JsonObject
from nlattn.cli.attend import built_in
from nlattn.cli.output import free
from nlattn.files.untrusted import open_regular, parse_json
from nlattn.files.whole import whole

_REPORT = 1 << 20


def explore(options: Namespace) -> int:
    """One or two maps, and the picture they are of."""
    read = [path / "map.npz" if path.is_dir() else path for path in options.maps]
    pictures = filter(None, [options.image, options.keys_image])
    free(options.out, force=options.force, inputs=[*read, *pictures])
    maps = {}
    for path, file in zip(options.maps, read, strict=True):
        name = path.name if path.is_dir() else path.stem
        while name in maps:
            name += "'"
        maps[name] = load_map(file)
    image = _picture(options)
    keys = None if options.keys_image is None else images.load(options.keys_image)
    page = explorer.page(image, maps, keys=keys, top=options.top)
    with whole(options.out) as draft:
        draft.write_text(page, "utf-8")
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
        told = report.get("options", {})
        if report.get("command") == "demo":
            return built_in(told.get("size"))
        if told.get("image"):
            return images.load(told["image"], page=told.get("page"))
    raise ValueError(f"{options.maps[0]} does not say which picture it is of; --image names it")


def _report(path: Path) -> JsonObject:
    with open_regular("explore", path) as file:
        data = file.read(_REPORT)
    try:
        report = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path} is no report of nlattn map: {error}") from None
    told: Json = report.get("options", {}) if isinstance(report, dict) else None
    kinds = {"size": int, "page": int, "image": str}
    fits = isinstance(told, dict) and all(
        told.get(name) is None or type(told[name]) is kind for name, kind in kinds.items()
    )
    if not fits or (told.get("size") or 1) < 1:
        raise ValueError(f"{path} is no report of nlattn map")
    found: JsonObject = report
    return found
