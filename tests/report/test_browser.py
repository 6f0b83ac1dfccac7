"""The page in a real browser: fits a phone, loads nothing, every letter has contrast in light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evidences import evidence, judgement

from stratakv.report import build_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium, then it runs")

# The page in a frame of the wanted width; what the frame measured becomes the text of <pre id="found">
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("page");
const light = c => {{ const v = c.map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; }};
const rgb = text => text.match(/[\\d.]+/g).map(Number);
frame.onload = () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  page.querySelectorAll("details").forEach(each => each.open = true);
  const ground = node => {{ for (let at = node; at; at = at.parentElement) {{
      const c = rgb(view.getComputedStyle(at).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }}
    return [255, 255, 255]; }};
  const faint = [], tiny = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {{
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || node.closest("title, .spoken, .skip") || !node.getClientRects().length) continue;
    count++;
    const style = view.getComputedStyle(node), svg = node.closest("svg");
    const a = light(rgb(svg ? style.fill : style.color)) + .05, b = light(ground(node)) + .05;
    const ratio = Math.max(a, b) / Math.min(a, b);
    if (ratio < 4.5) faint.push([walker.currentNode.data.trim(), ratio]);
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(style.fontSize) * scale < 10) tiny.push([walker.currentNode.data.trim(), scale]);
  }}
  document.getElementById("found").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth, loaded: view.performance.getEntriesByType("resource").map(r => r.name),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches, ground: view.getComputedStyle(page.body).backgroundColor,
    faint, tiny, count, focusable: page.querySelectorAll("a[href], summary, [tabindex='0']").length,
    charts: [...page.querySelectorAll("svg.chart")].filter(each => each.getBoundingClientRect().width > 0).length }});
}};
</script>"""


@pytest.fixture(scope="module")
def page() -> str:
    return build_report(evidence(), [judgement()])


def look(page: str, tmp_path: Path, width: int, dark: bool) -> dict:
    file = tmp_path / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page, quote=True)), encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=4000",
    ]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=90, check=True
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1100, True)], ids=["phone-light", "desktop-dark"])
def test_it_fits_loads_nothing_and_can_be_read(page, tmp_path, width, dark):
    seen = look(page, tmp_path, width, dark)
    assert seen["dark"] is dark
    assert seen["width"] <= width
    assert seen["loaded"] == []
    assert seen["count"] > 200 and seen["focusable"] > 15
    assert seen["charts"] == 2 + 4 + 1  # of the wide and narrow ones only those meant for this width
    assert seen["faint"] == []
    assert seen["tiny"] == []
