"""The page of a fleet, the command that writes pages, and what a browser makes of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import chromium
import fleets
import pytest
import reports
from pages import Read, Report, run, same_as

from bertc.core.errors import InputError
from bertc.fleet import Store, config
from bertc.fleet.status import status_document
from bertc.report import page
from bertc.report.page import fleet, marks, sources

Capture = pytest.CaptureFixture[str]
BROWSER = pytest.mark.skipif(chromium.program() is None, reason="no Chromium on this machine (apt-get install chromium)")


# A fleet


def test_a_fleet_side_by_side(whole_fleet: Any) -> None:
    status, documents = whole_fleet
    read = Read(page.fleet_page(status, documents))
    document = fleet.fleet_document(status, documents)
    assert len(read.numbers) > 15
    same_as(document, read.numbers)
    shown = {where for where, _, _ in read.numbers}
    numbers = {marks.json_pointer(p) for p, v in marks.json_leaves(status) if isinstance(v, int | float)}
    assert numbers <= shown
    text = " ".join(read.texts)
    for word in ("fp16 bf16 int8", "NVIDIA RTX 6000 Ada Generation", "no machine with an H100 has taken it", "waiting"):
        assert word in text, word
    assert document["summary"]["states"] == {"done": 3, "waiting": 1, "failed": 1}


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, "needs a list of entries"),
        ({"entries": []}, "found none"),
        ({"entries": [{"model": "m"}]}, "entry 0 .* has none of gpu"),
    ],
)
def test_no_fleet(status: Report, said: str) -> None:
    with pytest.raises(InputError, match=said):
        page.fleet_page(status, [None] * len(status.get("entries", ())))


def test_a_lock_file(built_pages: Path, tmp_path: Path) -> None:
    """Paths are relative to it; an artifact that is not there or damaged is said, not skipped."""
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copytree(built_pages / "onnxruntime-fp16", tmp_path / "good")
    places = ["good", "gone", "broken", None]
    entries = [{"gpu": "L4", "precision": "fp16", "path": str(place) if place else None} for place in places]
    lock = tmp_path / "fleet.lock.json"
    lock.write_text(json.dumps({"entries": entries}))
    status, documents = sources.fleet_documents(lock)
    assert [document is not None for document in documents] == [True, False, False, False]
    assert [each["reason"].partition(" at ")[0][:14] for each in status["entries"]] == ["", "no artifact", str(broken)[:14], ""]
    assert [each["state"] for each in fleet.fleet_document(status, documents)["entries"]] == [
        "built",
        "unknown",
        "unknown",
        "unknown",
    ]


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
    read = Read(page.fleet_page(*sources.fleet_documents(file)))
    same_as(fleet.fleet_document(*sources.fleet_documents(file)), read.numbers)
    assert {"/entries/0/accuracy/relative", "/entries/0/accuracy/cosine_min", "/entries/0/bytes"} <= {n[0] for n in read.numbers}
    text = " ".join(read.texts)
    assert "L4, RTX 4090" in text and "weights changed; bertc changed" in text and "0123" not in text


def test_the_entries_of_a_lock_by_name(built_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    shutil.copytree(built_pages / "onnxruntime-fp16", tmp_path / "out" / "m-fp16")
    entry = {"model": "m", "target": "onnxruntime", "sms": [], "precision": "fp16", "gpus": []}
    (tmp_path / "fleet.lock.json").write_text(json.dumps({"entries": {"m-fp16": entry, "m-fp32": entry}}))
    status, documents = sources.fleet_documents(tmp_path / "fleet.lock.json")
    assert [document is not None for document in documents] == [True, False]
    assert [each["reason"] for each in status["entries"]] == ["", "no artifact at out/m-fp32 here"]


@pytest.mark.parametrize("where", ["../elsewhere", "linked", "/", "a\0b"])
def test_a_lock_opens_nothing_outside_its_folder(where: str, built_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    shutil.copytree(built_pages / "onnxruntime-fp16", tmp_path / "elsewhere")
    (tmp_path / "theirs" / "linked").symlink_to(tmp_path / "elsewhere")
    lock = tmp_path / "theirs" / "fleet.lock.json"
    lock.write_text(json.dumps({"entries": [{"gpu": "L4", "precision": "fp16", "path": where}]}))
    status, documents = sources.fleet_documents(lock)
    assert documents == [None] and "was not read" in status["entries"][0]["reason"]


@pytest.mark.parametrize("text", ["<script>x()</script>", '"><b onclick=x>', "</style><b>", "{{ 7 * 7 }}", "$\\frac$", "$x$"])
def test_what_a_status_says_is_text(text: str) -> None:
    close = {"verdict": text, "engine_executed": False, "engine_reason": text, "cosine_min": 0.9, "relative": 0.1}
    entry = {"model": text, "gpus": [text], "target": text, "precision": text, "state": text, "reason": text, "accuracy": close}
    html = page.fleet_page({"entries": [entry, entry | {"gpus": ["l4"]}], text: {text: [text]}}, [None, None])
    assert "<script" not in html and "<b onclick" not in html and "</style><b>" not in html and ">49<" not in html


@pytest.mark.parametrize(
    "field",
    [
        {"target": []},
        {"sms": 3},
        {"state": {}},
        {"bytes": 10**400},
        {"seconds": float("nan")},
        {"accuracy": {"relative": 10**400}},
    ],
)
def test_a_field_of_another_kind(field: Report) -> None:
    with pytest.raises(InputError):
        page.fleet_page({"entries": [{"gpu": "l4", "model": "m", "precision": "fp16"} | field]}, [None])


def test_a_lock_says_where_its_artifacts_lie(built_pages: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    shutil.copytree(built_pages / "onnxruntime-fp16", tmp_path / "engines" / "m-fp16")
    entry = {"model": "m", "target": "onnxruntime", "sms": [], "precision": "fp16", "gpus": []}
    (tmp_path / "fleet.lock.json").write_text(json.dumps({"out": "engines", "entries": {"m-fp16": entry}}))
    status, documents = sources.fleet_documents(tmp_path / "fleet.lock.json")
    assert [document is not None for document in documents] == [True]
    assert fleet.fleet_document(status, documents)["entries"][0]["state"] == "built"


def test_what_was_built_in_the_place_of_what_was_asked_for_is_shown(built_pages: Path) -> None:
    entry = {"model": "m", "target": "onnxruntime", "precision": "int8", "gpus": ["l4"], "state": "built"}
    told = entry | {"built_precision": "fp32", "precision_why": "no form is worth it"}
    words = " ".join(Read(page.fleet_page({"entries": [told]}, [None])).texts)
    assert "is fp32: no form is worth it" in words
    away = Read(page.fleet_page({"entries": [entry | {"state": "other-host"}]}, [None])).texts
    assert "needs another host" in away and "other-host" not in away
    same = " ".join(Read(page.fleet_page({"entries": [told | {"built_precision": "int8"}]}, [None])).texts)
    assert "is int8" not in same
    half = reports.of(built_pages / "onnxruntime-fp16")
    assert "is fp16: see its own page" in " ".join(Read(page.fleet_page({"entries": [entry]}, [half])).texts)


def test_a_fleet_file_and_its_lock(tmp_path: Path, capsys: Capture) -> None:
    """The documents that a real fleet writes."""
    path = fleets.write(tmp_path, "a", 'out = "engines"\n' + fleets.MATRIX)
    run("fleet", "build", path)
    whole = config.read(path)
    found = status_document(whole, Store(whole.store.resolve()))
    for file, known in ((path, found), (path.with_suffix(".lock.json"), None)):
        status, documents = sources.fleet_documents(file, known)
        assert len(documents) == 2
        assert all(document is not None for document in documents)
        shown = fleet.fleet_document(status, documents)
        assert [each["state"] for each in shown["entries"]] == ["built", "built"]
        same_as(shown, Read(page.fleet_page(status, documents)).numbers)


# The command


def test_the_command(built_pages: Path, tmp_path: Path, capsys: Capture) -> None:
    one, out = built_pages / "onnxruntime-fp16", tmp_path / "r.html"
    run("report", one, "-o", out, "--json")
    assert out.read_bytes() == (one / "report.html").read_bytes()
    assert json.loads(capsys.readouterr().out)["stages"] == reports.of(one)["stages"]
    run("report", built_pages, "-o", out, code=2)
    assert "--force replaces it" in capsys.readouterr().err
    run("report", built_pages, "-o", out, "--force", "--json")
    document = json.loads(capsys.readouterr().out)
    assert [each["precision"] for each in document["entries"]] == ["fp16", "fp32"]
    same_as(document, Read(out.read_text("utf-8")).numbers)


@pytest.mark.parametrize(
    ("words_", "said"),
    [
        ("{m} -o {o}", "no text in UTF-8"),
        ("{m}x -o {o}", "there is no"),
        ("{a} -o {a}/x.html", "whose hashes it would break"),
        ("{t} -o {o} --verdict {j}", "--verdict goes with one artifact"),
        ("{a} -o {o} --verdict {j}", "lacks 'artifacts'; write it again with bertc verify --json"),
        ("{j} -o {o}", "lists no entries"),
    ],
)
def test_errors(words_: str, said: str, built_pages: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "j.json").write_text("{}")
    names = {
        "a": built_pages / "onnxruntime-fp16",
        "t": built_pages,
        "m": built_pages.parent / "m.onnx",
        "o": tmp_path / "o",
        "j": tmp_path / "j.json",
    }
    run("report", *words_.format(**names).split(), code=2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_a_verdict_on_real_data(built_pages: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.txt").write_text("two words\nand more words and more\n")
    run("verify", built_pages, "--data", tmp_path / "t.txt", "--against", built_pages / "onnxruntime-fp32", "--json")
    (tmp_path / "v.json").write_text(capsys.readouterr().out)
    run("report", built_pages / "onnxruntime-fp16", "-o", tmp_path / "r.html", "--verdict", tmp_path / "v.json")
    assert str(tmp_path / "t.txt") in (tmp_path / "r.html").read_text("utf-8").replace("<wbr>", "")


def test_drift_beside_a_verdict(built_pages: Path, tmp_path: Path, capsys: Capture) -> None:
    """What `bertc verify --layers --json` prints has names of its own, and no verdict."""
    one, layer = (
        built_pages / "onnxruntime-fp16",
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


def test_an_artifact_of_an_older_bertc(built_pages: Path, plain: Report) -> None:
    """Its report.json had less; the manifest has the rest, and what neither has is said."""
    document = sources.artifact_document(built_pages / "onnxruntime-fp16")
    old = {key: value for key, value in document.items() if key not in ("graphs", "environment", "size", "command")}
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
        html, document = page.fleet_page(status, documents), fleet.fleet_document(status, documents)
    else:
        document = request.getfixturevalue(name)
        html = page.artifact_page(document)
    count = len(Read(html).numbers)
    for found in chromium.measure(html, WIDTHS, tmp_path):
        place = f"{found['width']} {found['scheme']}"
        assert (found["inner"], found["page"]) == (found["width"], found["width"]), place
        assert (found["out"], found["small"], found["requests"], found["cut"]) == ([], [], [], []), place
        assert (found["hidden"], found["empty"], len(found["numbers"])) == (0, 0, count), place
        ink, paper = (sum(map(int, re.findall(r"\d+", colour))) for colour in found["colours"])
        assert (ink > paper) == (found["scheme"] == "dark"), place
        same_as(document, found["numbers"])


@BROWSER
def test_chromium_sees_what_sticks_out(full: Report, tmp_path: Path) -> None:
    """The check itself: a page that may not break its names is wider than a phone."""
    whole = re.sub(r"<meta http-equiv=.*?>", "", page.artifact_page(full))  # the policy names the hash of the style
    html = whole.replace("overflow-wrap: break-word;", "").replace("<wbr>", "")
    (found,) = chromium.measure(html, [(390, "light")], tmp_path)
    assert found["page"] > 390 and any(text.startswith("right of the page") for text in found["out"])
    html = whole.replace("overflow-wrap: break-word;", "overflow-wrap: anywhere;").replace("<wbr>", "")
    (found,) = chromium.measure(html, [(390, "light")], tmp_path)
    assert "bertc.FusedSkipLayerNorm" in found["cut"]
