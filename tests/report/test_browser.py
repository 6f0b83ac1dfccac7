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

# The page in two frames, a phone's width in light and a desktop's in dark (a frame prefers the colour scheme of its element);
# what was measured in them becomes the text of <pre id="found">
FRAMES = """<!doctype html><body style="margin:0">
<iframe width="390" height="900" style="color-scheme:light" srcdoc="{page}"></iframe>
<iframe width="1100" height="900" style="color-scheme:dark" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
const light = c => {{ const v = c.map(x => x / 255).map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
  return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; }};
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const look = frame => {{
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
  return {{
    width: page.documentElement.scrollWidth, loaded: view.performance.getEntriesByType("resource").map(r => r.name),
    dark: view.matchMedia("(prefers-color-scheme: dark)").matches,
    faint, tiny, count, focusable: page.querySelectorAll("a[href], summary, [tabindex='0']").length,
    charts: [...page.querySelectorAll("svg.chart")].filter(each => each.getBoundingClientRect().width > 0).length }};
}};
window.onload = () => {{
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
}};
</script>"""


def look(page: str, directory: Path) -> list[dict]:
    """What Chromium saw: phone in light, desktop in dark."""
    file = directory / "frames.html"
    file.write_text(FRAMES.format(page=html.escape(page, quote=True)), encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--virtual-time-budget=4000",
    ]
    command = [CHROMIUM, *options, f"--user-data-dir={directory / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("layers", [12, 80])
def test_it_fits_loads_nothing_and_can_be_read(layers, tmp_path):
    judged = judgement()
    judged["rows"][0]["name"] = "; ".join(f"{layer}: turbo4/turbo3" for layer in range(layers))
    seen = look(build_report(evidence(layers=layers), [judged]), tmp_path)
    for frame, width, dark in zip(seen, (390, 1100), (False, True), strict=True):
        assert frame["dark"] is dark
        assert frame["width"] <= width
        assert frame["loaded"] == []
        assert frame["count"] > 200 and frame["focusable"] > 15
        assert frame["charts"] == 2 + 4 + 1  # of the wide and narrow ones only those meant for this width
        assert frame["faint"] == []
        assert frame["tiny"] == []
