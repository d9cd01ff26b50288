"""``nlattn denoise``: a picture without its noise."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import nlattn
from nlattn._types import JsonObject
from nlattn.cli.output import Output, StageClock, to_json
from nlattn.cli.words import printable
from nlattn.files import picture
from nlattn.images import MAX_PIXELS
from nlattn.runtime import threads

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def denoise(options: Namespace) -> int:
    """Read, denoise, write; ``--out`` names a picture, or a folder for it and the report."""
    folder, name = options.out, "denoised.png"
    names = [name, "report.json"]
    if folder.suffix.lower() in _PICTURES and not folder.is_dir():
        folder, name = folder.parent, folder.name
        names = [name]
    arguments = asked(options)
    sigma = arguments["sigma"]
    output, stages = Output(folder, names, force=options.force), StageClock(quiet=options.quiet)
    source = picture.read("denoise", options.image, max_pixels=MAX_PIXELS, page=options.page)
    image, bits = source.pixels, options.bits or source.bits
    if bits == 16 and not picture.holds_16(name, image.shape[2]):
        raise ValueError(
            f"{options.image} has 16 bits, {name} holds 8: name a .png, or say --bits 8"
        )
    with stages:
        with stages("compile"):
            nlattn.nl_means(image[:8, :8], **arguments)
        with stages("denoise"):
            clean = nlattn.nl_means(image, **arguments)
    report = {
        "image": str(options.image),
        "size": list(image.shape),
        "bits": bits,
        "profile": source.icc is not None,
        "jpeg": _tables(name, source),
        **arguments,
        "change": float(((clean - image) ** 2).mean() ** 0.5),
        "threads": threads.threads(),
        "seconds": stages.seconds,
    }
    kept: JsonObject = {"icc": source.icc, "dpi": source.dpi, "jpeg": source.jpeg}
    output.write(name, lambda path: picture.write(path, clean, bits=bits, **kept))
    if "report.json" in names:
        output.write("report.json", lambda path: path.write_text(to_json(report)))
    output.commit()
    report["written"] = [str(folder / n) for n in names]
    if options.json:
        print(to_json(report))
    elif not options.quiet:
        height, width = image.shape[:2]
        print(
            f"{printable(Path(options.image).name)}, {height} x {width}: denoised in "
            f"{stages.seconds['denoise']:.2f} s; changed by {report['change'] * 255:.1f} of 255 "
            f"(rms), sigma is {sigma * 255:.1f}\n{', '.join(report['written'])}, {bits} bits"
            f"{', ' * bool(report['jpeg'])}{report['jpeg'] or ''}"
        )
    return 0


def asked(options: Namespace) -> JsonObject:
    """Arguments of `nl_means`."""
    sigma = options.sigma if options.sigma < 1 else options.sigma / 255
    return {
        "sigma": sigma,
        "h": None if options.strength is None else options.strength * sigma,
        "patch_size": options.patch,
        "patch_distance": options.distance,
        "search": options.search,
        "topk": options.topk,
        "seed": options.seed,
    }


def _tables(name: str, source: picture.PictureFile) -> str | None:
    """How a JPEG is written; None for another format."""
    if not name.lower().endswith((".jpg", ".jpeg")):
        return None
    return "JPEG of quality 95" if source.jpeg is None else "JPEG with the tables of the source"
