"""What the command line prints: no name of a model, a file or an artifact steers the terminal, a log or a CI runner."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import hostile
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertc.bench import timings
from bertc.cli import _main as cli
from bertc.cli._console import PlainConsole
from bertc.cli._output import LogLines, print_json
from bertc.core import BertcError, Progress, message_lines, one_line, printable
from bertc.report import Table

Capture = pytest.CaptureFixture[str]
FILE = "f\u202e\x1b[31m[red]\x07\n::error::.onnx"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.model(tmp_path_factory.mktemp("shown") / "m.onnx")


@pytest.fixture(scope="module")
def built(model: Path) -> Path:
    out = model.parent / "out"
    assert cli.run(["build", str(model), "--fp16", "--target", "onnxruntime", "-o", str(out)]) == 0
    return out


# One text


@given(st.text(st.characters()))
def test_every_character(text: str) -> None:
    shown = one_line(text)
    assert not hostile.steers(shown) and "\n" not in shown
    assert all(each.isprintable() or unicodedata.category(each) == "Zs" for each in shown)
    assert printable(shown) == shown


@pytest.mark.parametrize("text", ["Größe 東京 🙂", "a\\b", "encoder.layer.0/MatMul", "1\u202f000\u00a0x", "std::vector<a::b>"])
def test_plain_text_stays(text: str) -> None:
    assert one_line(text) == printable(text) == text


def test_as_python_writes_it() -> None:
    assert one_line("a\n\t\x1b\u202e\udcff\U000e0041") == r"a\n\t\x1b\u202e\udcff\U000e0041"
    assert message_lines("a\nb") == "a\n    b"


@pytest.mark.parametrize("text", ["::error::x", " ::set-output name=a::b", "x ##[error]y", "\n::error::x", "\u3000::error::x"])
def test_no_command_of_a_runner(text: str) -> None:
    for line in (*message_lines(text).split("\n"), one_line(text)):
        assert not line.strip().startswith("::") and "##[" not in line


# The console


@pytest.mark.parametrize("terminal", [False, True])
def test_everything_on_the_console(terminal: bool) -> None:
    """Strings, tables (wide, and as blocks), notes, stages with a live bar, log lines."""
    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=terminal, color_system=None, width=2000)
    log = Progress(console)
    with log.stage(f"stage {hostile.NAME}"):
        pass
    log.note(f"noted {hostile.NAME}")
    log.say(f"said {hostile.NAME}")
    console.print(f"printed {hostile.NAME}")
    table = Table("column", f"metric {hostile.NAME}")
    table.add(f"cell {hostile.NAME}", "1")
    for width in (2000, 300):
        console.width = width
        console.print(table)
    text = re.sub(r"\x1b\[(\?25[lh]|2K|1A)|\r", "", file.getvalue()) if terminal else file.getvalue()  # of rich's live bar
    assert not hostile.steers(text)
    for word in ("stage", "noted", "said", "printed", "metric", "cell"):
        assert f"{word} {hostile.SHOWN}" in text, word


def test_a_log_line() -> None:
    record = logging.LogRecord("bertc", logging.INFO, "", 1, "%s", (hostile.NAME,), None)
    text = LogLines("%(message)s").format(record)
    assert not hostile.steers(text) and "\n    engine: verified" in text


def test_a_warning(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    before = warnings.formatwarning

    def warn(**_: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            sys.stderr.write(warnings.formatwarning(hostile.NAME, UserWarning, "f.py", 1, ""))

    monkeypatch.setattr(cli.cli, "main", warn)
    assert cli.run([]) == 0
    assert hostile.steers(capsys.readouterr().err) == [] and warnings.formatwarning is before


@pytest.mark.parametrize("error", [BertcError(hostile.NAME), ValueError(hostile.NAME), KeyboardInterrupt(hostile.NAME)])
def test_an_error(error: BaseException, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.run(["--json"]) == {"BertcError": 2, "ValueError": 4, "KeyboardInterrupt": 130}[type(error).__name__]
    captured = capsys.readouterr()
    assert not hostile.steers(captured.err) and "\nengine: verified" not in captured.err
    assert hostile.NAME in json.loads(captured.out)["error"]


# JSON


@pytest.mark.parametrize("text", [*hostile.STEERING, "\udcff\ud800", "Größe 東京 🙂"])
def test_json_is_exact(text: str, capsys: Capture) -> None:
    print_json({text: [text]})
    out = capsys.readouterr().out
    assert json.loads(out) == {text: [text]}
    assert not hostile.steers(out)
    assert ("Größe" in text) == ("Größe 東京 🙂" in out), "what can be read stays readable"


# Commands

COMMANDS = [  # {m}: a model of such names, {a}: an artifact made of it, {o}: a place for output
    ("inspect {m}", 0),
    ("inspect {a}", 0),
    ("fuse {m} --explain -o {o}/f.onnx", 0),
    ("build {m} --fp32 --target onnxruntime -o {o}/b", 0),
    ("build {m} --fp32 --target onnxruntime -o {o}/b --profile batch=1:2:3", 2),
    ("verify {a}", 0),
    ("verify {a} --layers", 0),
    ("verify {a} --budget rel=1e-30", 1),
    ("bench {a} --rounds 2 --shapes 2 --threads 1", 0),
    ("report {a} -o {o}/r.html", 0),
]


@pytest.mark.parametrize(("words", "code"), COMMANDS)
def test_commands(words: str, code: int, model: Path, built: Path, tmp_path: Path, capsys: Capture) -> None:
    capsys.readouterr()
    given_words = words.format(m=model, a=built, o=tmp_path).split()
    assert cli.run(["-v", *given_words, "--json"]) == code
    captured = capsys.readouterr()
    assert not hostile.steers(captured.err) and not hostile.steers(captured.out)
    assert "\nengine: verified/" not in captured.err
    json.loads(captured.out)


def test_names_are_told(model: Path, built: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert cli.run(["inspect", str(model)]) == 0
    assert f"input x{hostile.SHOWN}" in capsys.readouterr().err
    assert cli.run(["verify", str(built)]) == 0
    assert f"y{hostile.SHOWN}" in capsys.readouterr().err


def test_the_name_of_a_file(tmp_path: Path, capsys: Capture) -> None:
    path = hostile.model(tmp_path / FILE, "")
    for words in (["inspect", path], ["build", path, "--fp32", "--target", "null", "-o", tmp_path / "o"], ["inspect", tmp_path]):
        cli.run([str(word) for word in words])
        captured = capsys.readouterr()
        assert not hostile.steers(captured.err)
        assert r"f\u202e\x1b[31m[red]\x07" in captured.err
    assert cli.run(["build", str(tmp_path / "o" / FILE), "-o", FILE]) == 2
    assert cli.run(["inspect", str(path), f"--{FILE}"]) == 2
    assert not hostile.steers(capsys.readouterr().err)


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are bad input, whichever argument they are in: runtimes open no such file."""
    path = bytes(hostile.model(tmp_path / "m.onnx", "")).replace(b"m.onnx", b"\xff.onnx")
    done = subprocess.run([sys.executable, "-m", "bertc", "inspect", path], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and r"\udcff.onnx" in done.stderr and "rename it" in done.stderr


def test_a_name_with_a_nul(tmp_path: Path, capsys: Capture) -> None:
    model = hostile.model(tmp_path / "m.onnx", "a\0b")
    assert cli.run(["build", str(model), "--fp32", "--target", "onnxruntime", "-o", str(tmp_path / "o")]) == 2
    assert r"'xa\x00b' has a NUL" in capsys.readouterr().err


def test_notes_of_an_artifact(built: Path, tmp_path: Path, capsys: Capture) -> None:
    """What a manifest says is from whoever wrote it: markup in it is text, too."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["source"]["reference"] = hostile.NAME
    manifest["precision"]["islands"] = [{"node": hostile.NAME, "op": hostile.NAME, "reason": hostile.NAME}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    capsys.readouterr()
    assert cli.run(["inspect", str(copy)]) == 0
    err = capsys.readouterr().err
    assert not hostile.steers(err) and f"source {hostile.SHOWN}" in err and f"float32 island {hostile.SHOWN}" in err


# A table for a spreadsheet


@pytest.mark.parametrize(
    ("name", "written"), [("=cmd|' /C calc'!A0", "'=cmd"), ("@x", "'@x"), ("plain-a", "plain-a"), ("a=b", "a=b")]
)
def test_a_name_is_no_formula(name: str, written: str) -> None:
    assert timings._no_formula(name).startswith(written)
