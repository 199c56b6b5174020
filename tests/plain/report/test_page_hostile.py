"""Pages made of strangers' names: every name is text, and nothing runs, is loaded or is sent, whatever it holds."""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import chromium
import hostile
import pytest
from hostile import Elements, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import Report

from bertc.artifact import read_report
from bertc.core import printable
from bertc.report import page

BROWSER = pytest.mark.skipif(chromium.program() is None, reason="no Chromium on this machine (apt-get install chromium)")
BENIGN = " x" * 40  # as long as what it is compared with: long names under a plot are turned


def whole_page(kind: str, full: Report, fleet: Any, text: str) -> str:
    """The page of an artifact, or of a fleet, with a text in every string and among the names of every object."""
    if kind == "artifact":
        return page.artifact_page(poisoned(full, text))
    status, documents = fleet
    known = [None if each is None else poisoned(each, text) for each in documents]
    return page.fleet_page({**poisoned(status, text), "entries": poisoned(status["entries"], text)}, known)


@pytest.fixture(scope="module", params=["artifact", "fleet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def benign(kind: str, full: Report, whole_fleet: Any) -> Elements:
    return Elements(whole_page(kind, full, whole_fleet, BENIGN))


def test_names_are_text(kind: str, benign: Elements, full: Report, whole_fleet: Any) -> None:
    text = " ".join(hostile.MARKUP)
    found = Elements(whole_page(kind, full, whole_fleet, text))
    assert found.kinds == benign.kinds
    assert found.text.count(text) >= benign.text.count(BENIGN) / 2 > 20  # `_` of a name may be shown as a space


MARKS = st.sampled_from(["<", ">", '"', "'", "&", "/", "<!--", "-->", "<b", "</", "=", "{{", "{%", "$", "\\", "`", "&#", ";"])
TEXTS = st.lists(st.one_of(MARKS, st.text(st.characters(), max_size=8)), min_size=1, max_size=12).map("".join)


def test_no_text_is_an_element(kind: str, benign: Elements, full: Report, whole_fleet: Any) -> None:
    """As html.parser reads it: no element, and no attribute, that the page of plain names lacks."""
    bare = {**full, "verification": {**full["verification"], "drift": None}, "int8": None}  # plots take most of the time
    bare["verification"]["graph"] = {**full["verification"]["graph"], "metrics": []}
    if bare["verification"]["engine"]:
        bare["verification"]["engine"] = {**full["verification"]["engine"], "metrics": []}
    fleet = (whole_fleet[0], [None] * len(whole_fleet[1]))

    @settings(max_examples=25, deadline=None, database=None)
    @given(text=TEXTS)
    def holds(text: str) -> None:
        found = Elements(whole_page(kind, bare, fleet, text))
        assert found.kinds <= benign.kinds
        assert "".join(printable(text).split()) in "".join(found.text.split())

    holds()


def test_what_is_invisible_is_shown(kind: str, full: Report, whole_fleet: Any) -> None:
    html = whole_page(kind, full, whole_fleet, hostile.NAME)
    assert not hostile.steers(html)
    found = Elements(html).text
    for shown in hostile.STEERING.values():
        assert shown.replace(r"\n", "\n").replace(r"##\x5b", "##[") in found, shown  # both do no harm on a page


def test_a_file_name_that_is_no_text(full: Report, tmp_path: Path) -> None:
    """Half of a surrogate pair: report.json and report.html are written all the same, and the first is read back."""
    document = poisoned(full, "\udcff")
    assert set(page.write_report(tmp_path, document)) == {"report.json", "report.html"}
    assert r"\udcff" in (tmp_path / "report.html").read_text("utf-8")
    assert read_report(tmp_path / "report.json") == document


@pytest.mark.parametrize("name", ["a = 1; import os", "x}\nimport os", "class", "ünïcode", "a b", '"'])
def test_a_name_is_no_code(name: str, full: Report) -> None:
    """Lines that somebody copies and runs: a name in them is a string."""
    document = copy.deepcopy(full)
    document["inputs"][0]["name"] = name
    html = page.artifact_page({**document, "size": None})
    (lines,) = [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL) if "bertc.load" in unescape(text)]
    lines = lines[lines.index("feeds") : lines.index("outputs")]
    known: dict[str, Any] = {"input_1": 1, **{each["name"]: 2 for each in document["inputs"][1:]}}
    exec(lines, known)
    assert known["feeds"][name] == 1 and "os" not in known


# The policy


def test_the_policy_names_the_style(full: Report, whole_fleet: Any) -> None:
    for html in (page.artifact_page(full), page.fleet_page(*whole_fleet)):
        (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', html)
        said = dict(each.split(" ", 1) for each in policy.replace("&#39;", "'").split("; "))
        none = dict.fromkeys(("default-src", "base-uri", "form-action"), "'none'")
        assert said == none | {"style-src": f"'sha256-{digest}'"}
        assert html.index("http-equiv") < html.index("<title>")
        assert '<meta name="referrer" content="no-referrer">' in html
        names = {name for _, attributes in Elements(html).kinds for name in attributes}
        assert not [name for name in names if name == "style" or name.startswith("on")]


class Asked(http.server.BaseHTTPRequestHandler):
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """(the address of a server, paths that were asked of it)."""
    paths: list[str] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Asked,), {"paths": paths}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def attack(url: str) -> str:
    """Everything of `hostile.MARKUP`, and what asks a server for something."""
    loads = f'<img src="{url}/img"><link rel=stylesheet href="{url}/css"><script src="{url}/js"></script>'
    return " ".join(hostile.MARKUP) + loads + f'<i style="background:url({url}/style)">i</i><base href="{url}/">'


@BROWSER
def test_nothing_runs_in_chromium(kind: str, full: Report, whole_fleet: Any, tmp_path: Path) -> None:
    with listening() as (url, asked):
        (tmp_path / "page.html").write_text(whole_page(kind, full, whole_fleet, attack(url)), "utf-8")
        dom, console = chromium.load(tmp_path / "page.html")
    assert (asked, console) == ([], [])
    assert "data-pwned" not in dom
    assert Elements(dom).text.count(attack(url)) > 20


@BROWSER
@pytest.mark.parametrize("guarded", [False, True])
def test_the_policy_stops_what_gets_through(guarded: bool, full: Report, tmp_path: Path) -> None:
    """The attack as elements of the page: without the policy it succeeds, so the check above can fail; with it, nothing."""
    with listening() as (url, asked):
        html = page.artifact_page(full).replace("<footer>", attack(url) + "<footer>")
        html = html if guarded else re.sub(r"<meta http-equiv=.*?>", "", html)
        (tmp_path / "page.html").write_text(html, "utf-8")
        dom, console = chromium.load(tmp_path / "page.html")
    assert ("data-pwned" in dom) is not guarded
    assert bool(asked) is not guarded
    assert any("Content Security Policy" in line for line in console) is guarded
