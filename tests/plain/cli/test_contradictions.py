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
    ("fuse {m} -o {o} --prove --no-prove", ("--prove/--no-prove is given 2 times",)),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_contradictions_are_refused(words: str, said: tuple[str, ...], source: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(words.format(m=source, o=tmp_path / "out").split()) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert [each for each in said if each not in err] == []
    assert not (tmp_path / "out").exists()


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
