"""report.html: every number on it is one of report.json, none of those is missing, and a browser shows all of it."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import pytest
import reports
import tiny

from bertc import cli, page
from bertc.errors import InputError, Missing
from bertc.page import fleet, marks, single, sources

Capture = pytest.CaptureFixture[str]
Report = dict[str, Any]
BROWSER = pytest.mark.skipif(chromium.program() is None, reason="no Chromium on this machine (apt-get install chromium)")
PROSE = ("95 %", "float32", "INT8", "int8")  # digits that are no measurement, in the page's own sentences


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-fp16 and onnxruntime-fp32."""
    folder = tmp_path_factory.mktemp("page")
    model = tiny.encoder(folder / "m.onnx", tokenizer=True)
    run("build", model, "--target", "onnxruntime=fp16", "--target", "onnxruntime=fp32", "-o", folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def plain(built: Path) -> Report:
    return reports.of(built / "onnxruntime-fp16")


@pytest.fixture(scope="module")
def full(plain: Report) -> Report:
    return reports.full(plain)


@pytest.fixture(scope="module")
def whole_fleet(plain: Report, full: Report) -> tuple[Report, list[Report | None]]:
    entry = {"model": "minilm", "target": "tensorrt-rtx:sm89", "precision": "fp16", "gpu": "NVIDIA RTX 6000 Ada Generation"}
    built = entry | {"sm": "sm89", "state": "done", "seconds": 12.25, "bytes": 95_000_001, "kernels": 52, "reason": ""}
    waiting = entry | {"gpu": "H100", "sm": "sm90", "state": "waiting", "reason": "no machine with an H100 has taken it"}
    entries = [
        built,
        built | {"precision": "bf16"},
        built | {"precision": "int8", "kernels": None},
        waiting,
        waiting | {"state": "failed"},
    ]
    return {"lock": 3, "entries": entries}, [plain, full, None, None, None]


def run(*words: object, code: int = 0) -> None:
    assert cli.run([str(word) for word in words]) == code


class Read(HTMLParser):
    """Numbers with their marks, the texts outside them, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "data":
            self.numbers.append((str(found["data-json"]), str(found["value"]), ""))
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[key]) for key in ("href", "src", "srcset", "action", "xlink:href") if key in found]
        self._open += [tag] if tag not in ("meta", "br", "link", "img") else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "data":
            where, value, said = self.numbers[-1]
            self.numbers[-1] = (where, value, said + data)
        elif data.strip() and not {"style", "svg", "title"} & set(self._open):
            self.texts.append(" ".join(data.split()))


def steps(where: str) -> marks.Path:
    """A JSON Pointer as a path, by RFC 6901."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:]]
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def at(document: Any, where: str) -> Any:
    for part in where.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def same_as(document: Report, numbers: list[Any]) -> None:
    """Each number's exact value is that of the document, and its text what `marks.text` makes of it."""
    for where, value, said in numbers:
        found = at(document, where)
        assert json.loads(value) == found, where
        assert " ".join(said.split()) == marks.text(steps(where), found), where


def words(document: Any) -> set[str]:
    """Every name and string of a document, numbers left out."""
    if isinstance(document, dict):
        return {" ".join(name.split()) for name in document}.union(*map(words, document.values()))
    if isinstance(document, list):
        return set[str]().union(*map(words, document))
    return {" ".join(document.split())} if isinstance(document, str) else set()


# Numbers


@pytest.mark.parametrize("name", ["plain", "full"])
def test_every_number_is_of_the_report(name: str, request: pytest.FixtureRequest) -> None:
    document: Report = request.getfixturevalue(name)
    read = Read(page.artifact_page(document))
    assert len(read.numbers) > 60
    same_as(document, read.numbers)
    known = words(document) | {text for path in single.LEFT_OUT.items() for text in path}
    for text in read.texts:
        rest = text
        for prose in PROSE:
            rest = rest.replace(prose, "")
        named = text in known or text.replace(" ", "_") in known
        assert not re.search(r"\d", rest) or named or part_of(text, known), text


def part_of(text: str, known: set[str]) -> bool:
    """A reason without the node names behind it."""
    return len(text) > 8 and any(each.startswith(text + " (") for each in known)


@pytest.mark.parametrize("name", ["plain", "full"])
def test_no_number_of_the_report_is_missing(name: str, request: pytest.FixtureRequest) -> None:
    document: Report = request.getfixturevalue(name)
    read = Read(page.artifact_page(document))
    numbers = [marks.pointer(p) for p, v in marks.leaves(document) if isinstance(v, int | float) and not isinstance(v, bool)]
    left_out = single.unshown(document)
    assert sorted({*numbers} - {where for where, _, _ in read.numbers}) == sorted(left_out)
    assert len(left_out) < len(numbers) / 3


def test_no_word_of_the_report_is_missing(full: Report) -> None:
    """Reasons, names, notes: what a report says in words is on its page."""
    html = " ".join(Read(page.artifact_page(full)).texts)
    silent = {"verdict", "profile", "artifact", "undecided"}  # said in the page's own words, or of another place
    for path, value in marks.leaves(full):
        told = isinstance(value, str) and value and not silent & set(path) and path[:2] != ("export_check", "task")
        if told and path[0] not in ("graph",):
            assert " ".join(value.split()) in html, path


def test_the_leaving_out_is_said(full: Report) -> None:
    html = unescape(page.artifact_page(full))
    for path, why in single.LEFT_OUT.items():
        assert f"<code>{path}</code>: {why}" in html


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("stages", "bytes"), 8.132, "8.1 s"),
        (("stages", "fuse"), 0.051, "51 ms"),
        (("size", "files", "error"), 48978092, "46.7 MiB"),
        (("size", "total"), 612, "612 B"),
        (("verification", "graph", "outputs", "files", "cosine_min"), 0.99999708, "0.9999971"),
        (("verification", "graph", "outputs", "y", "relative"), 0.00238, "2.4e-03"),
        (("verification", "graph", "outputs", "y", "relative"), "inf", "inf"),
        (("verification", "budget", "cosine"), 0.9999, "0.9999"),
        (("reports", 3, "size", "total"), 2**30, "1.0 GiB"),
        (("export_check", "rows"), 12345, "12,345"),
        (("precision", "clamps", 0, "was"), -3.4028234663852886e38, "-3.40282e+38"),
        (("budget", "rel"), None, "none"),
    ],
)
def test_how_a_number_is_shown(path: marks.Path, value: Any, said: str) -> None:
    assert marks.text(path, value) == said


def test_a_pointer_is_read_back() -> None:
    path: marks.Path = ("stages", "a/b~c", 0)
    assert marks.pointer(path) == "/stages/a~1b~0c/0"
    assert steps(marks.pointer(path)) == path


# What is said


@pytest.mark.parametrize(
    ("changed", "tone", "said"),
    [
        ({"verdict": "passed", "engine_executed": True}, "good", "Verified: the engine answers as its source does"),
        ({"verdict": "passed", "engine_executed": False}, "fair", "The engine was NOT RUN: no GPU found"),
        ({"verdict": "failed"}, "bad", "FAILED"),
        ({"verdict": "undecided"}, "fair", "UNDECIDED"),
    ],
)
def test_the_verdict_in_words(plain: Report, changed: Report, tone: str, said: str) -> None:
    document = {**plain, "verification": {**plain["verification"], "engine_reason": "no GPU found", **changed}}
    found, text = single.verdict(document)
    assert (found, said in text) == (tone, True)
    assert f'class="verdict {tone}"><span>{text}' in page.artifact_page(document)


def test_an_unverified_artifact(plain: Report) -> None:
    html = page.artifact_page({**plain, "verification": None})
    assert "Not verified: it was built with --no-verify." in html


def test_sections_without_data_say_so(plain: Report, full: Report) -> None:
    assert "Not measured: <code>bertc verify --layers</code> measures it" in page.artifact_page(plain)
    assert "INT8 trade-off" not in page.artifact_page(plain)
    html = page.artifact_page(full)
    assert "Not measured" not in html
    for drawn in ("Drift by layer", "INT8 trade-off", "Drop against the source"):
        assert f'aria-label="{drawn}"' in html


def test_values_that_are_no_number(full: Report) -> None:
    """JSON has no infinity: it is "inf" there. A curve may come without intervals, and in another shape than the page knows."""
    odd = json.loads(json.dumps(full))
    odd["verification"]["drift"]["layers"][3] |= {"rel": "inf", "cosine": None}
    for point in odd["int8"]["curve"]:
        del point["low"]
    html = page.artifact_page(odd)
    assert "<span>inf</span>" in html and 'aria-label="INT8 trade-off"' in html
    other = page.artifact_page({**full, "int8": {"scales": {"a": 0.25}}})
    assert 'data-json="/int8/scales/a">0.25<' in other


def test_what_was_built_from_what(plain: Report) -> None:
    assert plain["graphs"]["source"]["ops"]["MatMul"] == 6
    assert plain["graphs"]["fused"]["nodes"] < plain["graphs"]["source"]["nodes"]
    assert plain["graphs"]["artifact"]["ops"] == plain["graph"]["ops"]
    assert plain["environment"]["cores"] >= 1 and plain["environment"]["system"]
    assert set(plain["size"]["files"]) >= {"graph.onnx", "model.onnx", "goldens.npz"}
    assert plain["size"]["total"] < sum(plain["size"]["files"].values())  # graph.onnx and model.onnx are one file


def test_words_of_a_report_are_no_markup(full: Report) -> None:
    html = page.artifact_page(full)
    assert "got &lt;b&gt;MatMul&lt;/b&gt;" in html and "<b>MatMul" not in html


def test_one_file_without_a_network(full: Report, whole_fleet: Any) -> None:
    for html in (page.artifact_page(full), page.fleet_page(*whole_fleet)):
        read = Read(html)
        assert all(link.startswith("#") for link in read.links)
        assert {link[1:] for link in read.links} <= set(read.ids)
        assert len(read.ids) == len(set(read.ids))  # those of several plots, too
        assert not re.search(r"url\((?!#)|@import|<script|<link|https?://", html)


def test_the_same_bytes_twice(full: Report) -> None:
    assert page.artifact_page(full) == page.artifact_page(json.loads(json.dumps(full)))


def test_the_build_writes_it_and_hashes_it(built: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime-fp16", "onnxruntime-fp32"):
        folder = built / name
        assert (folder / "report.html").read_text("utf-8") == page.artifact_page(reports.of(folder))
        assert "report.html" in json.loads((folder / "manifest.json").read_text())["files"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, built: Path, tmp_path: Path, capsys: Capture) -> None:
    """The build goes on and says so, on the screen and in report.json; a page that was asked for is an error."""
    for name in ("jinja2", "markupsafe", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)  # what an import finds where it is not installed: nothing
    model = tiny.encoder(tmp_path / "m.onnx")
    run("build", model, "--fp32", "--target", "null", "-o", tmp_path / "o")
    said = "report.html was not written, jinja2 and matplotlib missing: pip install 'bertc[report]'"
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in reports.of(tmp_path / "o")["notes"]
    assert not (tmp_path / "o" / "report.html").exists()
    with pytest.raises(Missing, match="matplotlib missing: pip install"):
        page.save(built / "onnxruntime-fp32", tmp_path / "x.html")


COLOURS = re.findall(r":root \{(.*?)\n\s*\}", (Path(page.__file__).parent / "page.css").read_text(), re.DOTALL)


@pytest.mark.parametrize("text", COLOURS, ids=["light", "dark"])
def test_colours_can_be_read(text: str) -> None:
    """WCAG 2.2: 4.5 : 1 for text (1.4.3), 3 : 1 for the lines of a plot (1.4.11)."""
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", text))
    assert len(COLOURS) == 2 and {"paper", "panel", "ink", "soft"} <= set(colours)
    for name in ("ink", "soft", "good", "fair", "bad"):
        assert min(contrast(colours[name], colours[back]) for back in ("paper", "panel")) >= 4.5, name
    for name in (each for each in colours if each.startswith("series")):
        assert contrast(colours[name], colours["paper"]) >= 3, name


def contrast(a: str, b: str) -> float:
    lights = []
    for colour in (a, b):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


# A fleet


def test_a_fleet_side_by_side(whole_fleet: Any) -> None:
    status, documents = whole_fleet
    read = Read(page.fleet_page(status, documents))
    document = fleet.document(status, documents)
    assert len(read.numbers) > 15
    same_as(document, read.numbers)
    shown = {where for where, _, _ in read.numbers}
    numbers = {marks.pointer(p) for p, v in marks.leaves(status) if isinstance(v, int | float)}
    assert numbers <= shown
    text = " ".join(read.texts)
    for word in ("fp16 bf16 int8", "NVIDIA RTX 6000 Ada Generation", "no machine with an H100 has taken it", "waiting"):
        assert word in text, word
    assert document["summary"]["states"] == {"done": 3, "waiting": 1, "failed": 1}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "needs a list of entries"),
        ({"entries": []}, "there is none"),
        ({"entries": [{"model": "m"}]}, "entry 0 .* says none of gpu"),
    ],
)
def test_no_fleet(status: Report, said: str) -> None:
    with pytest.raises(InputError, match=said):
        page.fleet_page(status, [None] * len(status.get("entries", ())))


def test_a_lock_file(built: Path, tmp_path: Path) -> None:
    """Paths are relative to it; an artifact that is not there or damaged is said, not skipped."""
    broken = tmp_path / "broken"
    broken.mkdir()
    places = [Path("..") / built.relative_to(tmp_path.parent) / "onnxruntime-fp16", "gone", "broken", None]
    entries = [{"gpu": "L4", "precision": "fp16", "path": str(place) if place else None} for place in places]
    lock = tmp_path / "fleet.lock.json"
    lock.write_text(json.dumps({"entries": entries}))
    status, documents = sources.fleet(lock)
    assert [document is not None for document in documents] == [True, False, False, False]
    assert [each["reason"].partition(" at ")[0][:14] for each in status["entries"]] == ["", "no artifact", str(broken)[:14], ""]
    assert [each["state"] for each in fleet.document(status, documents)["entries"]] == ["built", "unknown", "unknown", "unknown"]


def test_lists_and_accuracy_of_a_status(tmp_path: Path) -> None:
    """As `bertc fleet status --json` writes it: several GPUs to an entry, reasons, accuracy where the artifact is elsewhere."""
    accuracy = {"verdict": "passed", "engine_executed": False, "cosine_min": 0.99999, "relative": 0.0012}
    entry = {
        "model": "m",
        "gpus": ["L4", "RTX 4090"],
        "sms": ["sm89"],
        "target": "tensorrt-rtx",
        "precision": "fp16",
        "path": None,
    }
    entry |= {"state": "stale", "reasons": ["weights changed", "bertc changed"], "seconds": 9.5, "bytes": 2**20, "kernels": 52}
    status = {"entries": [entry | {"accuracy": accuracy}], "tools": {"onnx": "1"}, "stages": [{"key": "0123"}]}
    file = tmp_path / "status.json"
    file.write_text(json.dumps(status))
    read = Read(page.fleet_page(*sources.fleet(file)))
    same_as(fleet.document(*sources.fleet(file)), read.numbers)
    assert {"/entries/0/accuracy/relative", "/entries/0/accuracy/cosine_min", "/entries/0/bytes"} <= {n[0] for n in read.numbers}
    text = " ".join(read.texts)
    assert "L4, RTX 4090" in text and "weights changed; bertc changed" in text and "0123" not in text


def test_the_entries_of_a_lock_by_name(built: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m-fp16").symlink_to(built / "onnxruntime-fp16")
    entry = {"model": "m", "target": "onnxruntime", "sms": [], "precision": "fp16", "gpus": []}
    (tmp_path / "fleet.lock.json").write_text(json.dumps({"entries": {"m-fp16": entry, "m-fp32": entry}}))
    status, documents = sources.fleet(tmp_path / "fleet.lock.json")
    assert [document is not None for document in documents] == [True, False]
    assert [each["reason"] for each in status["entries"]] == ["", "no artifact at out/m-fp32 here"]


# The command


def test_the_command(built: Path, tmp_path: Path, capsys: Capture) -> None:
    one, out = built / "onnxruntime-fp16", tmp_path / "r.html"
    run("report", one, "-o", out, "--json")
    assert out.read_bytes() == (one / "report.html").read_bytes()
    assert json.loads(capsys.readouterr().out)["stages"] == reports.of(one)["stages"]
    run("report", built, "-o", out, code=2)
    assert "--force replaces it" in capsys.readouterr().err
    run("report", built, "-o", out, "--force", "--json")
    document = json.loads(capsys.readouterr().out)
    assert [each["precision"] for each in document["entries"]] == ["fp16", "fp32"]
    same_as(document, Read(out.read_text("utf-8")).numbers)


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        ("{m} -o {o}", "is no JSON"),
        ("{m}x -o {o}", "there is no"),
        ("{a} -o {a}/x.html", "whose hashes it would break"),
        ("{t} -o {o} --verdict {j}", "--verdict goes with one artifact"),
        ("{a} -o {o} --verdict {j}", "is not what `bertc verify --json` prints"),
        ("{j} -o {o}", "lists no entries"),
    ],
)
def test_errors(words_: str, said: str, built: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "j.json").write_text("{}")
    names = {
        "a": built / "onnxruntime-fp16",
        "t": built,
        "m": built.parent / "m.onnx",
        "o": tmp_path / "o",
        "j": tmp_path / "j.json",
    }
    run("report", *words_.format(**names).split(), code=2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_a_verdict_on_real_data(built: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.txt").write_text("two words\nand more words and more\n")
    run("verify", built, "--data", tmp_path / "t.txt", "--json")
    (tmp_path / "v.json").write_text(capsys.readouterr().out)
    run("report", built / "onnxruntime-fp16", "-o", tmp_path / "r.html", "--verdict", tmp_path / "v.json")
    assert str(tmp_path / "t.txt") in (tmp_path / "r.html").read_text("utf-8")


def test_drift_beside_a_verdict(built: Path, tmp_path: Path, capsys: Capture) -> None:
    """What `bertc verify --layers --json` prints has names of its own, and no verdict."""
    one, layer = (
        built / "onnxruntime-fp16",
        {"module": "m.layer.0", "node": "n", "relative": 0.0125, "growth": 2.5, "max_abs": 0.5},
    )
    told = {"path": str(one), "against": "the graph of m.onnx", "layers": [layer | {"cosine_min": 0.99}], "samples": 12}
    (tmp_path / "d.json").write_text(json.dumps({"artifacts": [told]}))
    run("report", one, "-o", tmp_path / "r.html", "--verdict", tmp_path / "d.json", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["verification"]["verdict"] == "passed"
    read = Read((tmp_path / "r.html").read_text("utf-8"))
    same_as(document, read.numbers)
    shown = {where.rpartition("/")[2] for where, _, _ in read.numbers if where.startswith("/verification/drift/")}
    assert shown == {"relative", "growth", "max_abs", "cosine_min", "samples"}


def test_an_artifact_of_an_older_bertc(built: Path, plain: Report) -> None:
    """Its report.json had less; the manifest has the rest, and what neither has is said."""
    document = sources.artifact_document(built / "onnxruntime-fp16")
    old = {key: value for key, value in document.items() if key not in ("graphs", "environment", "size")}
    html = page.artifact_page(old)
    assert "built by an older bertc" in html
    same_as(old, Read(html).numbers)


# In a browser

WIDTHS = [(390, "light"), (390, "dark"), (700, "light"), (1280, "light")]


@BROWSER
@pytest.mark.parametrize("name", ["plain", "full", "fleet"])
def test_in_chromium(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if name == "fleet":
        status, documents = request.getfixturevalue("whole_fleet")
        html, document = page.fleet_page(status, documents), fleet.document(status, documents)
    else:
        document = request.getfixturevalue(name)
        html = page.artifact_page(document)
    count = len(Read(html).numbers)
    for found in chromium.measure(html, WIDTHS, tmp_path):
        place = f"{found['width']} {found['scheme']}"
        assert (found["inner"], found["page"]) == (found["width"], found["width"]), place
        assert (found["out"], found["small"], found["requests"]) == ([], [], []), place
        assert (found["hidden"], found["empty"], len(found["numbers"])) == (0, 0, count), place
        ink, paper = (sum(map(int, re.findall(r"\d+", colour))) for colour in found["colours"])
        assert (ink > paper) == (found["scheme"] == "dark"), place
        same_as(document, found["numbers"])


@BROWSER
def test_chromium_sees_what_sticks_out(full: Report, tmp_path: Path) -> None:
    """The check itself: a page that may not break its words is wider than a phone."""
    html = page.artifact_page(full).replace("overflow-wrap: anywhere;", "")
    (found,) = chromium.measure(html, [(390, "light")], tmp_path)
    assert found["page"] > 390 and any(text.startswith("right of the page") for text in found["out"])
