"""Fuzz one target: ``python -m tests.fuzz TARGET [COUNT]``.

With ``atheris`` installed the search follows which branches are taken, for ever if no COUNT is
given; without it files are changed blindly. What breaks a rule is printed and, by atheris, written
to the folder from which this runs; a file worth keeping goes to ``tests/fuzz/kept/TARGET``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from tests.fuzz.mutate import mutants


def main(target: str, count: int) -> None:
    """Run a target on `count` files, 0 for ever."""
    from tests.fuzz import targets  # after atheris has begun to watch, if there is one
    from tests.fuzz.corpus import seeds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "atheris" in sys.modules:
            import atheris

            corpus = folder / "corpus"
            corpus.mkdir()
            for i, seed in enumerate(seeds(target)):
                (corpus / str(i)).write_bytes(seed)
            limits = [f"-atheris_runs={count}"] if count else []
            arguments = [sys.argv[0], *limits, "-rss_limit_mb=4096", str(corpus)]
            atheris.Setup(arguments, lambda data: targets.run(target, data, folder))
            atheris.Fuzz()
        for data in mutants(seeds(target), count or 1_000_000, seed=0):
            targets.run(target, data, folder)


if __name__ == "__main__":
    try:
        import atheris

        os.environ["NUMBA_DISABLE_JIT"] = "1"  # what is watched cannot be compiled
        with atheris.instrument_imports(include=["nlattn", "zipfile", "tests.fuzz.targets"]):
            import nlattn.conformance.cases.folders
            import nlattn.layers
            import nlattn.maps.io  # noqa: F401
    except ModuleNotFoundError:
        print("atheris is not installed: files are changed blindly", file=sys.stderr)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0)
