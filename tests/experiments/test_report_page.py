"""Reports of frozen rows in a browser: nothing overflows or is broken, wide, narrow, light or dark; tables sort."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments import pictures, report
from experiments.evaluate import Images
from experiments.report.records import Run

FOLDER = pathlib.Path(__file__).parent / "frozen"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# Each page is a frame as wide as a phone or a laptop: a window of the browser itself has a least width.
FRAME = """<!DOCTYPE html>
<iframe style="border: 0" width="{width}" height="900" srcdoc="{page}"></iframe>
<pre></pre>
<script>
addEventListener("load", () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document, root = page.documentElement;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const firsts = (table) => [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => cell.textContent));
  const table = all(".sortable")[0], sorted = [];
  for (const column of table ? [0, 0, 3, 3] : []) {{
    const head = table.tHead.rows[1].cells[column], button = head.querySelector("button");
    button.focus();
    button.click();
    const is_reached = page.activeElement === button;
    sorted.push([head.getAttribute("aria-sort"), firsts(table).map((row) => row[column]), is_reached]);
  }}
  const nav = all("nav")[0];
  document.querySelector("pre").textContent = JSON.stringify({{
    width: view.innerWidth,
    overflow: root.scrollWidth - root.clientWidth,
    outside: all("main > *").filter((one) => one.getBoundingClientRect().right > root.clientWidth + 1).length,
    broken: all("img").filter((image) => !(image.complete && image.naturalWidth)).length,
    images: all("img").length,
    lost: all("nav a").filter((link) => !page.getElementById(link.hash.slice(1))).length,
    beside: nav ? nav.getBoundingClientRect().right <= all("h2")[0].getBoundingClientRect().left : null,
    page: view.getComputedStyle(page.body).backgroundColor,
    ink: view.getComputedStyle(page.body).color,
    sticky: [...new Set(all("td:first-child").map((cell) => view.getComputedStyle(cell).backgroundColor))],
    sorted,
  }});
}});
</script>
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
]


def _pictures(row):
    """Grey or coloured noise in place of the images of a unit."""
    rng = np.random.default_rng(0)
    images = rng.random((4, 32, 32, 3)).astype(np.float32)
    chosen = Images(images, np.array([0, 1, 0, 1]), np.repeat("test", 4), np.arange(4), np.arange(4))
    examples = pictures.candidates(chosen)
    points = rng.random((6, 32, 32, 3)).astype(np.float32)
    found = {norm: images[examples] ** 0.9 for norm in row["main_radii"]}
    return pictures.make(chosen, examples, np.ones(4, bool), found, points, np.arange(6) % 2)


def _write(name, workdir):
    case = json.loads((FOLDER / f"{name}.json").read_text())
    experiment, rows = case.pop("experiment"), case.pop("rows")
    told = {name: case.pop(name) for name in ("problems", "failed", "num_missing") if name in case}
    shown = {row["unit"]: _pictures(row) for row in rows} if experiment == "binary_tasks" else {}
    return report.write_run(experiment, workdir, Run(rows, **told, settings=case, pictures=shown)).page


def _look(page, folder, *, width, dark):
    """Open a page in a browser and return what FRAME finds in it."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page.read_text())))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1400,1000"]
    command += ["--virtual-time-budget=20000", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    return json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>\s*<script>", done.stdout, re.DOTALL)[1]))


def _numbers(texts):
    return [float(text.replace("−", "-").lstrip("≤≥= ")) for text in texts if text != "–"]


@pytest.mark.parametrize("name", ["pairs-complete", "pairs-partial", "leaderboard-failures", "audit-run"])
def test_a_page_is_whole_at_every_width_and_in_both_schemes(name, tmp_path):
    page = _write(name, tmp_path)
    light, narrow = (_look(page, tmp_path, width=width, dark=False) for width in (1280, 390))
    dark = _look(page, tmp_path, width=390, dark=True)
    for seen, width in ((light, 1280), (narrow, 390), (dark, 390)):
        assert seen["width"] == width
        assert seen["overflow"] <= 0 and seen["outside"] == 0, seen
        assert seen["broken"] == 0 and seen["images"] > 0, seen
        assert seen["lost"] == 0 and seen["beside"] == (width == 1280)
        assert seen["sticky"] == [seen["page"]]
    assert (light["page"], light["ink"]) == ("rgb(255, 255, 255)", "rgb(27, 27, 27)")
    assert sum(map(int, re.findall(r"\d+", dark["page"]))) < 120 < 600 < sum(map(int, re.findall(r"\d+", dark["ink"])))
    if name == "pairs-complete":
        (up, pairs, _), (down, again, _), (first, most, reached), (second, least, _) = light["sorted"]
        assert [up, down, first, second] == ["ascending", "descending", "descending", "ascending"]
        assert reached and pairs == again[::-1] and len(set(pairs)) == len(pairs) > 2
        assert _numbers(most) == sorted(_numbers(most), reverse=True) and _numbers(least) == sorted(_numbers(least))
        assert len(set(most)) > 1
