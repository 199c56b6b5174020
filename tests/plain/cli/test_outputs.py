"""What a command writes: files that a user named, and stdout that takes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fleets
import pytest
import tiny

from bertc.cli import _main as cli

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "lengths.txt").write_text("3\n17 4\n")
    (folder / "texts.txt").write_text("two words\nwords and more\n")
    return tiny.encoder(folder / "m.onnx", tokenizer=True)


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    for name, precision in (("out", "--fp32"), ("half", "--fp16")):
        made = source.parent / name
        assert cli.run(["build", str(source), precision, "--target", "onnxruntime", "-o", str(made), "-q"]) == 0
    return source.parent / "out"


# {m}: the .onnx file, {d}: its folder, {a}: an artifact; each ends with the option that names what is written.
FILES = {
    "fuse": "fuse {m} --no-prove -o",
    "profile --plot": "profile {d}/lengths.txt --plot",
    "profile --recipe": "profile {d}/lengths.txt --source {m} --recipe",
    "calibrate": "calibrate {m} --data {d}/texts.txt -o",
    "bench --csv": "bench {a} --shapes 1x4 --rounds 1 --csv",
    "bench --plot": "bench {a} --shapes 1x4 --rounds 1 --plot",
    "verify --plot": "verify {d}/half --layers --plot",
    "report": "report {a} -o",
    "export": "export {m} -o",
    "build": "build {m} --target null --no-verify -o",
}


@pytest.mark.parametrize("what", FILES)
def test_the_folder_of_an_output_is_made(what: str, built: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "folder" / "out.onnx"
    words = FILES[what].format(m=source, d=source.parent, a=built).split()
    assert cli.run([*words, str(out)]) == 0
    assert out.exists()


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "/dev/null/x", "{m}/x", "/tmp/" + 300 * "n", "{loop}", "{loop}/x"])
@pytest.mark.parametrize("what", FILES)
def test_what_cannot_be_written_is_bad_input(
    what: str, place: str, built: Path, source: Path, tmp_path: Path, capsys: Capture
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(tmp_path / "loop")
    words = FILES[what].format(m=source, d=source.parent, a=built).split()
    out = place.format(m=source, loop=loop)
    assert cli.run([*words, out]) == 2
    said = capsys.readouterr().err
    assert "cannot write" in said and words[-1] in said and "Traceback" not in said


def test_a_name_that_no_system_takes_is_no_bug(capsys: Capture) -> None:
    assert cli.run(["inspect", 300 * "n"]) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["bench --csv", "profile --plot", "verify --plot", "calibrate"])
def test_a_folder_is_no_file_to_write(what: str, built: Path, source: Path, tmp_path: Path, capsys: Capture) -> None:
    words = FILES[what].format(m=source, d=source.parent, a=built).split()
    assert cli.run([*words, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "name a file" in said
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_nothing_is_said_before_the_work(built: Path, capsys: Capture) -> None:
    assert cli.run(["bench", str(built), "--csv", "/proc/x.csv", "--rounds", "1000000"]) == 2  # or it would take days
    assert "choose another --csv" in capsys.readouterr().err


def test_a_file_that_is_there_and_a_link_to_a_new_one(built: Path, source: Path, tmp_path: Path) -> None:
    there, link = tmp_path / "there.csv", tmp_path / "link.csv"
    there.write_text("old")
    link.symlink_to(tmp_path / "new.csv")
    for out in (there, link):
        assert cli.run(["bench", str(built), "--shapes", "1x4", "--rounds", "1", "--csv", str(out)]) == 0
    assert there.read_text().startswith("contender") and link.is_symlink() and (tmp_path / "new.csv").is_file()


def test_a_store_that_cannot_be_made(tmp_path: Path, capsys: Capture) -> None:
    path = fleets.write(tmp_path)
    assert cli.run(["fleet", "build", str(path), "--store", "/proc/store"]) == 2
    assert "choose another --store" in capsys.readouterr().err


# stdout and stderr


def run(command: list[str], **streams: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bertc", *command], text=True, check=False, **streams)  # type: ignore[call-overload, no-any-return]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which is a full disk")
@pytest.mark.parametrize("words", ["list gpus --json", "--help", "--version", "build --help"])
def test_a_full_disk_behind_stdout(words: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(words.split(), stdout=full.fileno(), stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert "cannot write to stdout: No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_a_stdout_that_is_open_for_reading() -> None:
    with open(os.devnull) as reading:
        done = run(["list", "gpus", "--json"], stdout=reading.fileno(), stderr=subprocess.PIPE)
    assert done.returncode == 2 and "cannot write to stdout" in done.stderr and "Traceback" not in done.stderr


def test_an_error_keeps_its_exit_code_where_stdout_takes_nothing() -> None:
    with open("/dev/full", "w") as full:
        assert run(["inspect", "nothing-here", "--json"], stdout=full.fileno(), stderr=subprocess.PIPE).returncode == 2


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def test_the_exit_code_does_not_depend_on_who_reads_stdout(source: Path, built: Path, tmp_path: Path) -> None:
    """`| head -1`: 0 where all is well, 1 where a check failed."""
    fails = ["fuse", str(source), "-o", str(tmp_path / "fused.onnx"), "--no-prove", "--expect", "bert:99"]
    for words, code in ((["verify", str(built)], 0), (fails, 1)):
        writer = closed_pipe()
        done = run([*words, "--json"], stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert done.returncode == code
        assert "Broken" not in done.stderr and "Traceback" not in done.stderr


def test_nobody_reads_what_a_command_says(source: Path, tmp_path: Path) -> None:
    """`2>&1 | head -1`: what it makes is made all the same."""
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'source = "{source}"\n')
    writer = closed_pipe()
    words = ["profile", str(source.parent / "lengths.txt"), "--recipe", str(recipe)]
    assert run(words, stdout=subprocess.DEVNULL, stderr=writer).returncode == 0
    os.close(writer)
    assert "profiles = [" in recipe.read_text()


def test_json_on_a_closed_stdout(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.run(["list", "gpus", "--json"]) == 2
    assert "stdout is closed" in capsys.readouterr().err


# Manifests that cannot be read

DAMAGE: dict[str, tuple[Callable[[dict], object], str]] = {  # type: ignore[type-arg]
    "a file without its hash": (lambda m: m["files"].update({"graph.onnx": {}}), "$.files[\"graph.onnx\"] lacks 'sha256'"),
    "no graph": (lambda m: m["files"].pop("graph.onnx"), "files: it lacks 'graph.onnx'"),
    "inputs of another type": (lambda m: m.update(inputs=["x"]), "$.inputs[0] is a text"),
    "a task that is a number": (lambda m: m["source"].update(task=7), "$.source.task is a whole number (7)"),
    "bounds that are words": (
        lambda m: m.update(index_bounds={"input_ids": "many"}),
        "$.index_bounds.input_ids is a text ('many')",
    ),
    "a format that is a word": (lambda m: m.update(format="new"), "$.format is a text ('new'), wants a whole number"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_manifest_is_told_without_names_of_python(what: str, built: Path, tmp_path: Path, capsys: Capture) -> None:
    change, wanted = DAMAGE[what]
    document = json.loads((built / "manifest.json").read_text("utf-8"))
    change(document)
    (tmp_path / "manifest.json").write_text(json.dumps(document), "utf-8")
    assert cli.run(["inspect", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert wanted in said and "copy or build the artifact again" in said
    assert not [word for word in ("KeyError", "TypeError", "AttributeError", "ValueError", "object has no") if word in said]


def test_a_limit_that_nothing_judged_is_said_at_the_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(tiny.encoder(tmp_path / "m.onnx")), "-o", str(tmp_path / "o"), "--fp32", "--target", "onnxruntime"]
    assert cli.run([*words, "--budget", "agreement=0.9"]) == 0
    assert "agreement not judged on synthetic samples" in " ".join(capsys.readouterr().err.split())
