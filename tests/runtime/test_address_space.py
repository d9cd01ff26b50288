"""Compiling under a limit of address space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nlattn.runtime import address_space

FIRST = """
import resource
import numpy as np
import nlattn
import nlattn.ops.dense
from nlattn.runtime import address_space
ones, used = np.ones((3, 2)), int(open("/proc/self/statm").read().split()[0]) * 4096
room = int(used + {share} * address_space.NEEDED)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    nlattn.attention(ones, ones, ones)
except MemoryError as error:
    print(error)
"""


def test_little_space_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    address_space.require()
    monkeypatch.setattr(address_space, "left", lambda: 100.5 * 2**20)
    text = "compiling may take 256 MB of address space, and the limit leaves 100 MB; raise it"
    with pytest.raises(MemoryError, match=text):
        address_space.require()
    monkeypatch.setattr(address_space, "left", lambda: -1.0)
    with pytest.raises(MemoryError, match="leaves 0 MB"):
        address_space.require()


@pytest.mark.jit
@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_first_call_under_a_limit_ends_with_an_error(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST.format(share=0.25)]
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "run nlattn warmup without it, which fills the cache" in done.stdout
