"""The documents are a site: it builds without warnings, and no page needs another site."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("mkdocs", "mkdocstrings", "material", "latex2mathml"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"needs {package}: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_there(site):
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / ("" if name.name == "index" else name) / "index.html").is_file()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert "<img" in (site / "notebooks" / path.stem / "index.html").read_text()


@pytest.mark.slow
def test_formulas_are_set_and_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        page = path.read_text()
        assert "arithmatex" not in page
        assert not re.search(
            r'<(script|img|iframe|link rel="(stylesheet|preconnect)")[^>]*(src|href)="(https?:)?//', page
        )
    assert (site / "radius" / "index.html").read_text().count("<math") > 50
