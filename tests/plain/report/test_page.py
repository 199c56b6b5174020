"""report.html: every number on it is one of report.json, and none of those is missing."""

from __future__ import annotations

import json
import re
import shlex
import sys
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import tiny
from pages import Read, Report, run, same_as, steps, words

from bertc import recipe
from bertc.core.errors import Missing
from bertc.report import document as report
from bertc.report import page
from bertc.report.page import marks, single

Capture = pytest.CaptureFixture[str]
PROSE = ("95 %", "float32", "INT8", "int8")  # digits that are no measurement, in the page's own sentences


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
    numbers = [
        marks.json_pointer(p) for p, v in marks.json_leaves(document) if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    left_out = single.numbers_left_out(document)
    assert sorted({*numbers} - {where for where, _, _ in read.numbers}) == sorted(left_out)
    assert len(left_out) < len(numbers) / 3


def test_no_word_of_the_report_is_missing(full: Report) -> None:
    """Reasons, names, notes: what a report says in words is on its page."""
    html = " ".join(Read(page.artifact_page(full)).texts)
    silent = {"verdict", "profile", "artifact", "undecided"}  # said in the page's own words, or of another place
    for path, value in marks.json_leaves(full):
        told = isinstance(value, str) and value and not silent & set(path) and path[:2] != ("export_check", "task")
        if told and path[0] not in ("graph",):
            assert " ".join(value.split()) in html, path


def test_the_leaving_out_is_said(full: Report) -> None:
    html = unescape(page.artifact_page(full)).replace("<wbr>", "")
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
    assert marks.shown_text(path, value) == said


def test_a_pointer_is_read_back() -> None:
    path: marks.Path = ("stages", "a/b~c", 0)
    assert marks.json_pointer(path) == "/stages/a~1b~0c/0"
    assert steps(marks.json_pointer(path)) == path


# What is said


@pytest.mark.parametrize(
    ("changed", "tone", "said"),
    [
        ({"verdict": "passed", "engine_executed": True}, "good", "Verified: the engine"),
        ({"verdict": "passed", "engine_executed": False}, "fair", "Engine NOT RUN: no GPU found"),
        ({"verdict": "failed"}, "bad", "FAILED"),
        ({"verdict": "undecided"}, "fair", "UNDECIDED"),
    ],
)
def test_the_verdict_in_words(plain: Report, changed: Report, tone: str, said: str) -> None:
    document = {**plain, "verification": {**plain["verification"], "engine_reason": "no GPU found", **changed}}
    found, text = single.verdict_words(document)
    assert (found, said in text) == (tone, True)
    assert f'class="verdict {tone}"><span>{text}' in page.artifact_page(document)


def test_an_unverified_artifact(plain: Report) -> None:
    html = page.artifact_page({**plain, "verification": None})
    assert "NOT VERIFIED" in html


def test_sections_without_data_say_so(plain: Report, full: Report) -> None:
    assert "Not measured" in page.artifact_page(plain)
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


def test_the_command_builds_it_again(plain: Report, tmp_path: Path) -> None:
    command = shlex.split(plain["command"])
    assert command[0] == "bertc" and plain["command"] in " ".join(Read(page.artifact_page(plain)).texts)
    run(*[str(tmp_path / "again") if word == "OUT" else word for word in command[1:]])
    again = reports.of(tmp_path / "again" / "onnxruntime-fp16")
    assert (again["recipe"], again["graph"]) == (plain["recipe"], plain["graph"])


def test_every_option_of_a_command() -> None:
    made = recipe.Recipe(
        "a b", targets=("null", "onnxruntime=fp16"), precision="fp32", budget={"rel": 0.5}, prove=False, allow_pickle=True, seed=7
    )
    words = "bertc build 'a b' -o OUT --target null=fp32 --target onnxruntime=fp16"
    words += " --allow-pickle --seed 7 --budget rel=0.5 --no-prove"
    assert sorted(shlex.split(report.command_line(made.to_json()))) == sorted(shlex.split(words))


@pytest.mark.parametrize("name", ["onnxruntime-fp16", "onnxruntime-fp32"])
def test_the_lines_that_run_it_run(name: str, built_pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(built_pages / name)
    html = page.artifact_page(reports.of(built_pages / name))
    blocks = [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)]
    assert ["onnxruntime" in text for text in blocks] == [False, True]
    for text in blocks:
        names = {each: np.ones((2, 3), np.int64) for each in ("input_ids", "attention_mask")}
        exec(text.replace("path/to/artifact", "."), names)
        outputs = names["outputs"]
        assert np.asarray(outputs["last_hidden_state"] if isinstance(outputs, dict) else outputs[0]).shape[2] == 16


def test_where_a_limit_comes_from(plain: Report) -> None:
    def words(**changed: Any) -> str:
        return " ".join(Read(page.artifact_page({**plain, **changed})).texts)

    assert "cosine at least ( default of fp16 )" in words()
    given = {"recipe": {**plain["recipe"], "budget": {"cosine": 0.99}}, "budget": {**plain["budget"], "cosine": 0.99}}
    assert "cosine at least ( from --budget or the recipe" in words(**given)
    assert "cosine at least ( given to bertc verify" in words(**given)  # the verification of the fixture has another one


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"name": "tensorrt-rtx", "sms": ["sm86", "sm89"]}, "for GPUs of sm86 , sm89"),
        ({"name": "tensorrt", "sms": []}, "for the GPU model it was built on: NVIDIA L4 (sm89)"),
        ({"name": "onnxruntime", "sms": []}, "for any CPU"),
    ],
)
def test_the_machine_it_is_for(plain: Report, target: Report, said: str) -> None:
    document = {**plain, "target": target, "environment": {**plain["environment"], "gpus": ["NVIDIA L4 (sm89)"]}}
    assert said in " ".join(" ".join(Read(page.artifact_page(document)).texts).split())


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


def test_the_build_writes_it_and_hashes_it(built_pages: Path, tmp_path: Path) -> None:
    for name in ("onnxruntime-fp16", "onnxruntime-fp32"):
        folder = built_pages / name
        assert (folder / "report.html").read_text("utf-8") == page.artifact_page(reports.of(folder))
        assert "report.html" in json.loads((folder / "manifest.json").read_text())["files"]


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, built_pages: Path, tmp_path: Path, capsys: Capture) -> None:
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
        page.save_page(built_pages / "onnxruntime-fp32", tmp_path / "x.html")


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
