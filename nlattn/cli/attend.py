"""``nlattn demo`` and ``nlattn map``: one attention map, its pictures and its report."""

from __future__ import annotations

import re
import sys
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from nlattn import _check, explorer, images
from nlattn._types import Floats, JsonObject
from nlattn.cli import methods, pixelwise, report
from nlattn.cli.methods import MethodResult, Task
from nlattn.cli.output import Output, StageClock, peak_memory, to_json
from nlattn.explorer import Layer
from nlattn.files.untrusted import open_regular, parse_json
from nlattn.quality import Quality

_SPOTS = ((0.25, 0.42), (0.30, 0.14), (0.58, 0.17), (0.82, 0.51), (0.08, 0.66), (0.53, 0.06))
"""Where a picture is queried; the built-in one on cheek, flag, suit, strap, background, flag."""
_DPI = 160


def demo(options: Namespace) -> int:
    """Attention of the built-in photograph to itself."""
    output, stages = _start(options, _picture_files(options))
    image = built_in(options.size)
    return _finish(
        _of_image("built-in photograph", image, options, stages), options, output, stages
    )


def built_in(size: int | None) -> Floats:
    """The built-in photograph, or a centre crop of it."""
    image = images.photograph()
    side = min(size or max(image.shape), *image.shape[:2])
    top, left = ((n - side) // 2 for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def one_map(options: Namespace) -> int:
    """Attention of an image to itself, or of arrays."""
    if options.image is None:
        task = _of_arrays(options)
        output, stages = _start(options, _array_files(options))
        return _finish(task, options, output, stages)
    output, stages = _start(options, _picture_files(options))
    image = images.load(options.image, page=options.page)
    return _finish(_of_image(str(options.image), image, options, stages), options, output, stages)


def _picture_files(options: Namespace) -> list[str]:
    matches = ["matches.png"] if options.method == "scram" else []
    pictures = ["overlay.png", *matches, "out.png", "received.png", "entropy.png"]
    return ["map.npz", *pictures, "explorer.html", "report.json"]


def _array_files(options: Namespace) -> list[str]:
    names = {"out.npy": options.v, "weights.npy": options.query}
    return ["map.npz", *(name for name, wanted in names.items() if wanted), "report.json"]


def _start(options: Namespace, names: list[str]) -> tuple[Output, StageClock]:
    stale = _written_before(options.out) if options.force else []
    output = Output(options.out, names, force=options.force, stale=stale)
    return output, StageClock(quiet=options.quiet)


def _written_before(folder: Path) -> list[str]:
    """Files that an earlier run's report names as its own."""
    try:
        with open_regular("map", folder / "report.json") as file:
            report = parse_json(file.read(1 << 20))
        names = report["files"]
        return [x for x in names if re.fullmatch(r"[a-z]{1,20}\.(npz|npy|png|json|html)", x)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _of_image(name: str, image: Floats, options: Namespace, stages: StageClock) -> Task:
    with stages("features"):
        channels = min(options.channels, options.patch**2 * image.shape[2])
        features = images.patch_features(image, patch=options.patch, channels=channels)
        q, k = images.queries_and_keys(features, gain=options.gain)
        scale = options.scale
        if scale is None:
            scale = images.softmax_scale(q, k, keys=options.keys, seed=options.seed)
    height, width = image.shape[:2]
    queries = options.query or [(int(y * height), int(x * width)) for y, x in _SPOTS]
    _inside(queries, (height, width))
    return Task(name, q, k, image, scale, queries, image)


def _of_arrays(options: Namespace) -> Task:
    q = _array(options.q, "--q")
    k = q if options.k is None else _array(options.k, "--k")
    v = None if options.v is None else _array(options.v, "--v")
    sets = {2: ("n d", "m d", "m e"), 3: ("Hq Wq d", "Hk Wk d", "Hk Wk e")}
    given = {"q": (q, sets[q.ndim][0]), "k": (k, sets[k.ndim][1])}
    if v is not None:
        given["v"] = (v, sets[k.ndim][2])
    _check.fit("map", given)
    if options.method == "scram" and (q.ndim, k.ndim) != (3, 3):
        raise ValueError(
            f"--method scram searches on grids: --q has shape {q.shape} and --k {k.shape}, "
            "expected (Hq, Wq, d) and (Hk, Wk, d); --method dense or lev takes sets"
        )
    scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
    queries = options.query or []
    _inside(queries, q.shape[:-1] if q.ndim == 3 else (len(q), 1))
    return Task(str(options.q), q, k, v, scale, queries)


def _array(path: Path, name: str) -> Floats:
    """Array in a ``.npy`` file, mapped into memory; nothing is unpickled."""
    x = methods.array(path, name)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(
            f"{name} {path} has shape {x.shape}, expected (n, d) or (H, W, d), none of it 0"
        )
    return _check.array("map", name, x)


def _inside(queries: list[tuple[int, int]], grid: tuple[int, ...]) -> None:
    for row, column in queries:
        if row >= grid[0] or column >= grid[1]:
            raise ValueError(f"--query {row},{column} lies outside the {grid[0]} x {grid[1]} grid")


def _finish(task: Task, options: Namespace, output: Output, stages: StageClock) -> int:
    """Compute, write, print."""
    with stages:
        with stages("compile"):
            methods.prepare(task, options)
        result = methods.METHODS[options.method](task, options, stages)
        with stages("compare"):
            quality = methods.judge(task, result, options)
            every = methods.judge_all(task, result, options)
            dense = methods.predict(task)
        with stages("write"):
            _write(task, result, quality, options, output)
    result.peak = peak_memory()  # of the whole run, pictures too
    summary = report.collect(task, result, quality, every, dense, options, stages.seconds)
    summary["files"] = sorted([*(p.name for p in output.draft.iterdir()), "report.json"])
    output.write("report.json", lambda path: path.write_text(to_json(summary) + "\n"))
    output.commit()
    if options.json:
        for text in summary["warnings"]:
            print(f"nlattn: warning: {text}", file=sys.stderr)
        print(to_json(summary))
    elif not options.quiet:
        print(report.text(summary, output.folder))
    return 0


def _write(
    task: Task, result: MethodResult, quality: Quality | None, options: Namespace, output: Output
) -> None:
    if result.map is not None:
        output.write("map.npz", result.map.save)
    out = result.out
    if task.image is None:
        if out is not None:
            output.write("out.npy", lambda path: np.save(path, out, allow_pickle=False))
        if task.queries:
            output.write("weights.npy", lambda path: np.save(path, result.weights))
        return
    from nlattn import plots

    if out is not None:
        output.write("out.png", lambda path: images.save(path, _within(out)))
    known: JsonObject = methods.exact_of_shown(task, result) if quality is not None else {}
    name = f"Where pixels look: {task.name}"
    axes = plots.overlay(task.image, result.weights, np.array(task.queries), title=name, **known)
    _draw(output, "overlay.png", axes)
    A = result.map or result.operator
    if A is not None and not options.only_shown:
        keys = pixelwise.spread(A, task)
        layers = {}
        if keys is not None:
            label = "keys that a pixel spreads over (exp of the entropy)"
            layers["entropy"] = Layer(keys, label, log=True)
            _draw(
                output,
                "entropy.png",
                plots.heat(keys, label, title=f"Over how many keys: {task.name}", log=True),
            )
        held = None
        if options.method in ("scram", "lev"):
            held = pixelwise.held(A, task, result.mass)
        if held is not None:
            mass, step = held
            of = (
                "a pixel's keys hold"
                if step == 1
                else f"keys hold, of one pixel in {step} x {step}"
            )
            layers["mass held"] = Layer(mass, f"share of exact attention that {of}")
        page = explorer.page(task.image, A, layers=layers, title=name)
        output.write("explorer.html", lambda path: path.write_text(page, "utf-8"))
        label = "attention that a pixel receives, over the mean"
        share = pixelwise.received(A, task)
        _draw(
            output,
            "received.png",
            plots.heat(share, label, title=f"Who is looked at: {task.name}", log=share.min() >= 0),
        )
    if result.field is not None:
        field = plots.match_field(result.field.index[..., 0], result.field.key_grid)
        _draw(output, "matches.png", field)


def _within(out: Floats) -> Floats:
    """Values as they are if they are a picture's, else from their smallest to their largest."""
    low, high = float(out.min()), float(out.max())
    if -0.01 <= low <= high <= 1.01:
        return out
    return (out - low) / ((high - low) or 1.0)


def _draw(output: Output, name: str, axes: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may be of letters that no font here has
        output.write(name, lambda path: axes.figure.savefig(path, dpi=_DPI))
