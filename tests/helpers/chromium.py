"""A page in headless Chromium, at several widths and in both colour schemes at once: what is seen, and what sticks out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --virtual-time-budget=10000 --dump-dom"
).split()
# The page in a frame of each width (a window has a smallest one; a frame has not), its folds open. Of each element: does it end
# right of the page, is its content wider than itself, how large is its text. `cut`: words broken over two lines (a hash may be).
HARNESS = """<!doctype html><meta charset="utf-8"><body><pre id="result"></pre><script>
const page = PAGE, frames = FRAMES, found = [];
function measure(window, width, scheme) {
  const d = window.document, all = [...d.body.querySelectorAll("*")], out = [], small = [], edge = d.documentElement.clientWidth;
  d.querySelectorAll("details").forEach(each => each.open = true);
  for (const e of all) {
    const style = window.getComputedStyle(e), box = e.getBoundingClientRect();
    if (!box.width || style.display === "none") continue;
    const svg = e.closest("svg"), name = e.tagName + " " + e.textContent.trim().slice(0, 60);
    if (!svg && !e.closest(".scroll") && box.right > edge + 1) out.push("right of the page: " + name);
    if (!svg && style.display !== "inline" && !e.matches(".scroll") && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
      out.push("wider than its box: " + name);
    if (svg && e.tagName === "text") {
      const s = svg.getBoundingClientRect();
      if (box.left < s.left - 1 || box.right > s.right + 1 || box.bottom > s.bottom + 1) out.push("out of the plot: " + name);
      if (box.height < 9 && Math.abs(box.height - box.width) > 1) small.push(name + " " + box.height);
    } else if (!svg && e.childElementCount === 0 && e.textContent.trim() && parseFloat(style.fontSize) < 12) small.push(name);
  }
  const cut = [], texts = d.createTreeWalker(d.body, NodeFilter.SHOW_TEXT), range = d.createRange();
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    if (node.parentElement.closest("svg")) continue;
    for (const word of node.data.matchAll(/(?<![\p{L}\p{N}_.])[\p{L}\p{N}_.]{2,40}(?![\p{L}\p{N}_.])/gu)) {
      range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) cut.push(word[0]);
    }
  }
  return {width, scheme, cut, inner: window.innerWidth, page: d.documentElement.scrollWidth, out, small,
    colours: [window.getComputedStyle(d.body).color, window.getComputedStyle(d.body).backgroundColor],
    requests: window.performance.getEntriesByType("resource").map(e => e.name),
    hidden: [...d.querySelectorAll("data, h2, h3, svg")].filter(e => !e.getBoundingClientRect().width).length,
    empty: [...d.querySelectorAll("svg use")].filter(e => !e.getBBox().width && !e.getBBox().height).length,
    numbers: [...d.querySelectorAll("data")].map(e => [e.dataset.json, e.value, e.innerText])};
}
for (const [width, scheme] of frames) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px; height:844px; border:0; color-scheme:${scheme}`;
  frame.onload = () => {
    found.push(measure(frame.contentWindow, width, scheme));
    document.getElementById("result").textContent = JSON.stringify(found);
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script>"""


def program() -> str | None:
    """The Chromium of this machine, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def load(file: Path) -> tuple[str, list[str]]:
    """(the document of a page as it stands once it is loaded, lines of the console: what failed, what a policy forbade)."""
    found = program()
    assert found is not None
    words = [found, *FLAGS, "--enable-logging=stderr", f"--user-data-dir={file.parent / 'profile'}", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def measure(page: str, frames: list[tuple[int, str]], folder: Path) -> list[dict[str, Any]]:
    """What Chromium makes of a page, for each (width in pixels, light or dark)."""
    found = program()
    assert found is not None
    quoted = json.dumps(page).replace("</", "<\\/").replace("<!--", "<\\!--")
    (folder / "harness.html").write_text(HARNESS.replace("PAGE", quoted).replace("FRAMES", json.dumps(frames)), "utf-8")
    words = [found, *FLAGS, f"--user-data-dir={folder / 'profile'}", (folder / "harness.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    (text,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    measured: list[dict[str, Any]] = json.loads(unescape(text))
    assert len(measured) == len(frames), done.stderr[-2000:]
    return measured
