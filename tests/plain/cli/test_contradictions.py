"""Options that contradict each other, or that nothing would read: exit 2, never the last one in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from bertc.bench import interleaved
from bertc.cli import _main as cli
from bertc.core import counted, machine

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("contradictions") / "m.onnx")


REFUSED = [
    ("build {m} -o {o} --fp16 --fp32", ("--fp32 and --fp16", "one precision")),
    ("build {m} -o {o} --fp16 --fp32 --bf16", ("--fp32 and --fp16 and --bf16",)),
    ("build {m} -o {o} --fp8 --int8", ("--fp8 and --int8",)),
    ("build {m} -o {o} --int8 static --int8 dynamic", ("--int8 is given 2 times",)),
    ("build {m} -o {o} --seed 1 --seed 2", ("--seed is given 2 times",)),
    ("build {m} -o {o} -o {o}x", ("-o/--out is given 2 times",)),
    ("build {m} -o {o} --fuse --no-fuse", ("--fuse/--no-fuse is given 2 times",)),
    ("build {m} -o {o} --budget cosine=0.9 --budget cosine=0.99", ("budget cosine is 0.9 and 0.99",)),
    ("build {m} -o {o} --max-drop 0.1 --budget max_drop=0.2", ("budget max_drop is 0.2 and 0.1",)),
    ("export {m} -o {o} --task features --task sentence-embedding", ("--task is given 2 times",)),
    ("calibrate --merge {m} -o {o} --data {m} --percentile 99", ("--merge only adds up", "--data, --percentile")),
    ("inspect {m} --kernels --diff {m}", ("--kernels", "--diff")),
    ("bench {m} --threads 0", ("--threads", "0")),
    ("bench {m} --rounds 0", ("--rounds", "0")),
    ("fuse {m} -o {o} --explain atention", ("no such rule", "did you mean 'attention'?")),
    ("build {m} -o {o} --fp32 --no-fuse --expect bert", ("--expect bert", "--no-fuse")),
    ("export {m} -o {o} --revision main", ("--revision", "hub id")),
    ("export {m} -o {o} --opset 21", ("--opset", "leave --opset out")),
    ("fuse {m} -o {o} --prove --no-prove", ("--prove/--no-prove is given 2 times",)),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_contradictions_are_refused(words: str, said: tuple[str, ...], source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(words.format(m=source, o=tmp_path / "out").split()) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert [each for each in said if each not in err] == []
    assert not (tmp_path / "out").exists()


IMPOSSIBLE = [
    ("build {m} -o {o} --profile batch=1:8", ("batch=1:8", "MIN:OPT:MAX")),
    ("build {m} -o {o} --profile batch=8:1:2", ("MIN <= OPT <= MAX",)),
    ("build {m} -o {o} --profile =1:2:3", ("NAME=MIN:OPT:MAX",)),
    ("build {m} -o {o} --profile ,", ("names no dimension",)),
    ("build {m} -o {o} --profile batch=1:2:9999999999", ("9999999999", "2^31 - 1")),
    ("build {m} -o {o} --budget cosine=7", ("cosine is 7", "-1 to 1")),
    ("build {m} -o {o} --budget rel=-1", ("rel is -1", "0 or more")),
    ("build {m} -o {o} --budget cosin=0.9", ("did you mean 'cosine'?",)),
    ("build {m} -o {o} --max-drop -1", ("--max-drop", "-1")),
    ("build {m} -o {o} --max-drop nan", ("--max-drop", "not a number")),
    ("build {m} -o {o} --seed -1", ("seed is -1", "0 or more")),
    ("build {m} -o {o} --opset 3", ("opset is 3",)),
    ("build {m} -o {o} --data {o}/nosuch.txt", ("no data at", "nosuch.txt")),
    ("build {m} -o {o} --data {m}", ("unknown data format '.onnx'",)),
    ("build {m} -o {o} --data {d}", ("no .wav files",)),
    ("export {m} -o {o} --data {o}/nosuch.txt", ("no data at", "nosuch.txt")),
    ("export {m} -o {o} --seed -3", ("seed is -3",)),
    ("build {m} -o {o} --target tensorrt-rtx:", ("nothing behind ':'",)),
    ("build {m} -o {o} --target tensorrt-rtx:sm86,", ("nothing behind ':'",)),
    ("build {m} -o {o} --target null=", ("nothing behind '='",)),
    ("build {m} -o {o} --expect bert:0", ("bert:0", "bert:6")),
    ("calibrate {m} -o {o} --data {m} --opset 3", ("opset is 3",)),
    ("calibrate {m} -o {o} --data {m} --percentile 101", ("--percentile", "101")),
    ("calibrate {m} -o {o} --data {m} --outlier nan", ("--outlier", "not a number")),
    ("calibrate {m} -o {o} --data {m} --checkpoint -1", ("--checkpoint", "-1")),
    ("verify {m} --budget cosin=1", ("did you mean 'cosine'?",)),
    ("bench {m} --fill 2", ("--fill", "2")),
    ("bench {m} --seed -1", ("--seed", "-1")),
    ("profile {m} --worth nan", ("--worth", "not a number")),
    ("profile {m} --multiple 0", ("--multiple", "0")),
    ("cache gc {d} --older nan", ("--older", "not a number")),
]


@pytest.mark.parametrize(("words", "said"), IMPOSSIBLE)
def test_what_the_command_line_alone_tells_is_told_before_any_work(
    words: str, said: tuple[str, ...], source: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bertc.source import onnx_file

    def opened(*_: object) -> None:
        raise AssertionError("the source was opened")

    monkeypatch.setattr(onnx_file, "read_onnx_file", opened)
    folder = tmp_path / "empty"
    folder.mkdir()
    assert cli.run(words.format(m=source, o=tmp_path / "out", d=folder).split()) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert [each for each in said if each not in err] == []
    assert not (tmp_path / "out").exists()


LINKED = [
    *("inspect {l}", "verify {l}", "bench {l}", "fuse {l} -o {o}", "report {l} -o {o}", "build {l} -o {o}", "export {l} -o {o}"),
    *("build {m} -o {o} --data {l}", "calibrate {m} --data {l} -o {o}", "fleet plan {l}", "verify {m} --data {l}", "profile {l}"),
]


@pytest.mark.parametrize("words", LINKED)
def test_links_that_lead_nowhere_are_named(words: str, source: Path, tmp_path: Path, capsys: Capture) -> None:
    one, two, nothing = (tmp_path / name for name in ("one.onnx", "two.onnx", "nothing.onnx"))
    for link, target in ((one, two), (two, one), (nothing, tmp_path / "gone.onnx")):
        link.symlink_to(target)
    for link, said in ((one, f"circle: {one} -> {two} -> {one}"), (nothing, f"{nothing} -> {tmp_path / 'gone.onnx'}")):
        assert cli.run(words.format(l=link, m=source, o=tmp_path / "out").split()) == 2
        assert said in " ".join(capsys.readouterr().err.split())


PATHS = ["./nosuch/", "nosuch/", "./nosuch", "../nosuch", "/nosuch", "~/nosuch", "nosuch.ONNX", "a/model.safetensors", "a/b/c"]


@pytest.mark.parametrize("reference", PATHS)
def test_what_can_only_be_a_path_is_no_hub_id(reference: str, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["build", reference, "-o", str(tmp_path / "out"), "--target", "null"]) == 2
    err = capsys.readouterr().err
    assert "hub id" not in err.splitlines()[0] and f"no file or folder at {reference!r}" in err


@pytest.mark.parametrize("reference", ["", " ", "~nosuchuserofthis/x"])
def test_a_source_that_is_none(reference: str, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["build", reference, "-o", str(tmp_path / "out"), "--target", "null"]) == 2
    assert "SOURCE is empty" in (err := capsys.readouterr().err) or "no home of '~nosuchuserofthis'" in err


def test_what_is_no_contradiction(source: Path, tmp_path: Path) -> None:
    words = f"build {source} -o {tmp_path / 'out'} --target null --no-verify --budget cosine=0.9 --budget rel=0.1 --force --force"
    assert cli.run(words.split()) == 0


def test_a_rule_that_refused_nothing_says_so(source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["fuse", str(source), "-o", str(tmp_path / "f.onnx"), "--no-prove", "--explain", "conv1d_gelu"]) == 0
    assert "no candidate of conv1d_gelu was refused" in capsys.readouterr().err


def test_limits_of_a_build_are_not_called_a_recipe(source: Path, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    assert cli.run(["build", str(source), "-o", out, "--target", "onnxruntime", "--budget", "rel=0.001"]) == 0
    capsys.readouterr()
    assert cli.run(["verify", out]) == 0
    said = capsys.readouterr().err
    assert "rel <= 0.001 (given to the build)" in said and "recipe" not in said


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("2,4", 2), (" 5 ", 5), ("0", 0), ("many", 0), ("", 0), ("9" * 30, 1024)])
def test_threads_that_the_environment_wants(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert machine.wanted_threads() == count


def test_a_number_that_was_given_goes_before_the_environment(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bertc.runtime import import_onnxruntime, open_session

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for given, used in ((0, 3), (2, 2)):
        options = import_onnxruntime().SessionOptions()
        options.intra_op_num_threads = given
        assert open_session(source, options).get_session_options().intra_op_num_threads == used


def test_bench_keeps_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted, threads, by in (("3", 0, "OMP_NUM_THREADS"), ("3", 2, "--threads"), ("", 0, "cores")):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        found = interleaved._conditions(interleaved.BenchRequest(threads=threads), 1, None, None)
        assert found["threads_by"] == by


def test_one_is_no_plural() -> None:
    assert (counted(1, "kernel"), counted(0, "kernel"), counted(2, "index", "indices")) == ("1 kernel", "0 kernels", "2 indices")
