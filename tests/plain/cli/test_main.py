"""The command line: help, exit codes, messages, and one JSON document on stdout."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from bertc import pipeline
from bertc.cli import _group as commands
from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError, BertcError, BuildFailed, Missing

HEAVY = tuple("numpy torch onnxruntime tensorrt tensorrt_rtx onnx onnx_ir onnxscript transformers tokenizers".split())
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("cli") / "m.onnx")


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    out = source.parent / "out"
    assert cli.run(["build", str(source), "--fp32", "--target", "onnxruntime", "-o", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def half(source: Path) -> Path:
    out = source.parent / "fp16"
    assert cli.run(["build", str(source), "--fp16", "--target", "onnxruntime", "-o", str(out)]) == 0
    return out


def flat(text: str) -> str:
    """What was said, whatever the width it was wrapped at."""
    return " ".join(text.split())


# Help


@pytest.mark.parametrize("command", [None, *commands.names()])
def test_help(command: str | None, capsys: Capture) -> None:
    for flag in ("-h", "--help"):
        assert cli.run([*([command] if command else []), flag]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("Usage: bertc" + (f" {command}" if command else ""))
        assert err == ""
        for name in [] if command else commands.names():
            assert f"\n  {name} " in out


def test_version(capsys: Capture) -> None:
    import bertc

    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"bertc, version {bertc.__version__}\n"


LIGHT = ([], ["--help"], ["build", "--help"], ["verify", "-h"], ["fleet", "build", "-h"], ["list", "-h"])
RUNS = [f"from bertc import cli; cli.run({words})" for words in LIGHT]


@pytest.mark.parametrize("code", ["import bertc", *RUNS])
def test_nothing_heavy_is_imported(code: str) -> None:
    asked = f"import sys; {code}; print(*(m for m in {HEAVY} if m in sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_both_ways_to_start() -> None:
    script = Path(sys.executable).with_name("bertc")
    for command in ([str(script)], [sys.executable, "-m", "bertc"]):
        done = subprocess.run([*command, "nonsense"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "no such command 'nonsense'" in done.stderr


# Errors: (words, exit code, what must be said); {m} is an .onnx file, {o} an absent output, {a} an artifact, {h} one of fp16

ERRORS = [
    ("bild {m}", 2, ("no such command 'bild'",)),
    ("build {m} -o {o} --fp61", 2, ("No such option", "--fp61")),
    ("build {m} -o {o} --targets null", 2, ("No such option", "--targets")),
    ("build {m}", 2, ("Missing option '-o'",)),
    ("build -o {o}", 2, ("Missing argument 'SOURCE|RECIPE|EXPORT'",)),
    ("build {m} -o {o} --opset twenty", 2, ("'twenty' is not a valid integer",)),
    ("build {m} -o {o} --opset 11", 2, ("opset is 11", "20 or newer")),
    ("build {m} -o {o} --target onnxruntim", 2, ("unknown target 'onnxruntim'", "did you mean 'onnxruntime'?")),
    ("build {m} -o {o} --target null=fp61", 2, ("unknown precision 'fp61'", "did you mean 'fp16'?")),
    ("build {m} -o {o} --target null --profile bach=1:8:32", 2, ("'bach'", "did you mean 'batch'?")),
    ("build {m} -o {o} --target null --profile batch=9:8:32", 2, ("batch=9:8:32", "MIN <= OPT <= MAX")),
    ("build {m} -o {o} --target null --budget cosine", 2, ("'cosine' is not NAME=NUMBER", "cosine=0.9999")),
    ("build {m} -o {o} --target null --budget cosin=1", 2, ("unknown budget 'cosin'", "did you mean 'cosine'?")),
    ("build {m} -o {o} --target null --budget rel=nan", 2, ("rel is not a number",)),
    ("build {m} -o {o} --target null --task embeddings", 2, ("unknown task 'embeddings'", "sentence-embedding")),
    ("build {m} -o {o} --target null --goldens data", 2, ("--data FILE",)),
    ("build {m} -o {o} --target null --goldens data --data {o}/none.npz", 2, ("no data at", ".jsonl")),
    ("build {m} -o {m} --target null --fp32", 2, ("is a file", "name a directory")),
    ("build {m} -o {a} --target null --fp32", 2, ("exists", "--force")),
    ("build {o}/m.onnx -o {o} --target null", 2, ("{o}/m.onnx", "there is no folder")),
    ("build {m}x -o {o} --target null", 2, ("m.onnxx", "did you mean 'm.onnx'?")),
    ("build {o}.toml -o {o} --target null", 2, ("no recipe file", "known: ")),
    ("export {m}x -o {o}", 2, ("did you mean 'm.onnx'?",)),
    ("verify {o}", 2, ("{o} is not a bertc artifact", "no such directory")),
    ("verify {a} --data {o}.txt", 2, ("no data at", ".txt")),
    ("verify {a} --budget cosin=1", 2, ("unknown budget 'cosin'",)),
    ("verify {a} --against {m}x", 2, ("did you mean 'm.onnx'?",)),
    ("inspect {o}", 2, ("{o} is not a bertc artifact",)),
    ("inspect {o}/m.onnx", 2, ("not a bertc artifact", "no such directory")),
    ("verify {m}", 2, ("{m} is a file", "an artifact is the directory")),
    ("fleet pln", 2, ("no such command", "did you mean")),
    ("doctor --jso", 2, ("No such option", "--json")),
    (
        "verify {h} --budget rel=1e-30",
        1,
        ("is over its budget", "last_hidden_state: relative error", "budget <= 1e-30 (--budget)"),
    ),
    ("build {m} -o {o} --fp16 --target onnxruntime --budget rel=1e-30", 1, ("over its budget", "nothing was written")),
]


@pytest.mark.parametrize("error", ERRORS, ids=[line for line, *_ in ERRORS])
def test_errors(
    error: tuple[str, int, tuple[str, ...]], source: Path, built: Path, half: Path, tmp_path: Path, capsys: Capture
) -> None:
    line, code, said = error
    names = {"m": source, "o": tmp_path / "o", "a": built, "h": half}
    words = [word.format(**names) for word in line.split()]
    assert cli.run(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    for text in said:
        assert text.format(**names) in flat(err), err
    assert os.listdir(tmp_path) == []
    assert cli.run([*words, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    if code == 1 and words[0] == "verify":
        assert (document["passed"], document["artifacts"][0]["verdict"]) == (False, "failed")
    elif "--jso" not in words:
        assert document["exit_code"] == code
        assert all(text.format(**names) in document["error"] for text in said), document


@pytest.mark.parametrize(
    ("error", "code"),
    [(ArtifactError("a"), 2), (BuildFailed("a"), 1), (Missing("a"), 3), (BertcError("a"), 2), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path) -> None:
    stop_with(monkeypatch, error)
    assert cli.run(["build", "x", "-o", str(tmp_path / "o"), "--json"]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert json.loads(out) == {"error": str(error) or "interrupted: nothing was written", "exit_code": code}


def stop_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline, "build_recipe", stop)


@pytest.mark.parametrize("error", [ValueError("boom"), AssertionError("boom"), OSError(5, "boom"), RecursionError("boom")])
def test_a_bug_is_called_one(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    stop_with(monkeypatch, error)
    assert cli.run(["build", "x", "-o", "o"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" in err
    assert "a bug in bertc" in err.splitlines()[-1]
    assert "boom" in err.splitlines()[-1]
    assert cli.run(["build", "x", "-o", "o", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["exit_code"] == 4


def test_verification_needs_no_room_for_temporary_files(built: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (99, 99))"
    code = f"import sys; {limit}; from bertc import cli; sys.exit(cli.run(sys.argv[1:]))"
    words = ["verify", str(built.parent / "half")]
    assert cli.run(["build", str(built.parent / "m.onnx"), "--target", "null=fp16", "-o", words[1]]) == 0
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bertc.report.inspect.inspect_path", full)
    assert cli.run(["inspect", "anything"]) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert "no room for temporary files" in said and "TMPDIR" in said


def test_the_handler_of_sigterm_is_put_back(source: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cli.run(["inspect", str(source)])
    assert signal.getsignal(signal.SIGTERM) is before


# What each command prints


def document_of(words: list[str], capsys: Capture) -> tuple[dict[str, Any], str]:
    assert cli.run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)  # one document, and nothing else
    assert isinstance(found, dict)
    return found, err


@pytest.mark.parametrize("command", ["build", "export"])
def test_json_of_build_and_export(command: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    more = ["--fp32", "--target", "onnxruntime"] if command == "build" else []
    found, err = document_of([command, str(source), "-o", str(tmp_path / "o"), *more], capsys)
    (made,) = found["artifacts"]
    assert made["path"] == str(tmp_path / "o")
    assert made["manifest"] == json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert "graph check: 12 shapes and masks" in flat(err)


def test_json_of_verify(built: Path, capsys: Capture) -> None:
    found, err = document_of(["verify", str(built)], capsys)
    (verdict,) = found["artifacts"]
    assert found["passed"] is True
    assert (verdict["verdict"], verdict["engine_executed"], verdict["data"]) == ("passed", True, "goldens")
    assert verdict["engine"]["outputs"]["last_hidden_state"]["relative"] < 1e-5
    assert "engine: verified" in flat(err)


def inspect_both(words: list[str], capsys: Capture) -> tuple[dict[str, Any], str]:
    found, err = document_of(words, capsys)
    assert cli.run(words) == 0
    out, again = capsys.readouterr()
    assert (out, again) == ("", err)
    return found, flat(err)


def test_inspect(source: Path, built: Path, capsys: Capture) -> None:
    found, err = inspect_both(["inspect", str(source)], capsys)
    assert (found["kind"], found["opset"], found["nodes"], found["ops"]["MatMul"]) == ("onnx", 20, 17, 6)
    assert found["precision_by_op"]["MatMul"] == {"float": 6}
    assert "input input_ids: int64[batch, length]" in err
    found, err = inspect_both(["inspect", str(built)], capsys)
    assert (found["kind"], found["manifest"]["target"]["name"]) == ("artifact", "onnxruntime")
    assert "target onnxruntime, precision fp32" in err
    assert cli.run(["build", str(source), "--target", "null", "--target", "null=fp16", "-o", str(built.parent / "two")]) == 0
    capsys.readouterr()
    found, err = inspect_both(["inspect", str(built.parent / "two")], capsys)
    assert [each["manifest"]["precision"]["mode"] for each in found["artifacts"]] == ["fp16", "fp32"]
    assert {"float16", "float"} == set(found["artifacts"][0]["precision_by_op"]["Cast"])


def test_doctor(capsys: Capture) -> None:
    found, err = document_of(["doctor"], capsys)
    assert {"null", "onnxruntime", "tensorrt", "tensorrt-rtx"} <= set(found["targets"])
    assert found["targets"]["onnxruntime"]["build"] is True
    for name, each in found["targets"].items():
        assert name in err
        assert (each["build"] and each["run"]) or (each["reason"] and each["install"]), f"{name} does not say why not"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_is_no_bug(stream: str, built: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    other = {"stdout": "stderr", "stderr": "stdout"}[stream]
    options: dict[str, Any] = {stream: writer, other: subprocess.PIPE}
    done = subprocess.run([sys.executable, "-m", "bertc", "inspect", str(built), "--json"], text=True, check=False, **options)
    os.close(writer)
    said: Callable[[], str] = lambda: (done.stderr or "") + (done.stdout or "")  # noqa: E731 - only one of them is there
    assert "bug in bertc" not in said()
