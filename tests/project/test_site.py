"""The pages build as a site, strictly: every link and anchor leads somewhere, every page is in the menu,
nothing comes from another host.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from helpers.processes import ROOT


def test_the_site_builds_strictly_and_needs_no_network(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    for page in (tmp_path / "site").glob("*.html"):
        loaded = re.findall(
            r'<(?:script|img|iframe|source)[^>]*\ssrc="(https?:[^"]*)|<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="(https?:[^"]*)',
            page.read_text(),
        )
        assert loaded == [], page.name
