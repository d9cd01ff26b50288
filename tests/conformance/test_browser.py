"""The page of a report in a real browser, where there is one: a phone shows all of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nlattn.conformance.report.files import page
from tests.conformance.test_reports import REPORT

NAMES = "chromium", "chromium-browser", "google-chrome"
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
PHONE = 360
"""Width in pixels of a narrow telephone."""

# Around the page: asks its elements for their sizes, and writes what it found as its own text.
ASKING = f"""<!doctype html><title>asking</title>
<iframe id="page" width="{PHONE}" height="640" style="border:0" srcdoc="%s"></iframe><pre></pre>
<script>
document.getElementById("page").onload = function () {{
  const page = this.contentDocument, root = page.documentElement;
  page.querySelector("details").open = true;
  document.querySelector("pre").textContent = JSON.stringify([
    root.scrollWidth <= root.clientWidth, page.querySelectorAll("td").length,
    page.querySelector("h2.fail") !== null,
    [...page.querySelectorAll("pre")].some(x => x.textContent.includes("<k>")),
    this.contentWindow.performance.getEntriesByType("resource").length]);
}};
</script>"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here")
def test_a_phone_shows_the_whole_page(tmp_path: Path) -> None:
    (tmp_path / "asking.html").write_text(ASKING % html.escape(page(REPORT)))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    words += ["--no-first-run", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    address = (tmp_path / "asking.html").as_uri()
    run = subprocess.run([BROWSER, *words, address], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    found = re.search("<pre>(.*?)</pre><script>", run.stdout.replace("\n", ""))
    assert found, run.stdout
    assert json.loads(found[1]) == [True, page(REPORT).count("<td"), True, True, 0]
