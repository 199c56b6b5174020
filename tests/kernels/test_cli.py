"""bertc kernels: the table and the JSON document, and the advice where it cannot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from bertc.cli import run


def test_the_json_document_holds_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", "remove_padding", "skip_layernorm", "--sm", "sm86", "--json", "--cache", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [(each["kernel"], each["example"]) for each in rows] == [
        ("remove_padding", ""), *(("skip_layernorm", each) for each in ("", "int8", "fp8", "rms"))
    ]  # fmt: skip
    first = rows[0]
    assert first["sm"] == "sm86" and first["runs_on"] == "sm86 and newer" and first["spilled"] == 0 and first["registers"] > 10
    assert first["bytes_moved"] == first["bytes_least"] == 2 * 1024 * 384 * 2 + 4 * 1024
    assert first["instructions"]["global loads"] and len(first["sha256"]) == 64
    assert "float8 needs sm89" in rows[3]["refused"] and "float8 needs sm89" in err
    assert len(list(tmp_path.iterdir())) == 4 and "remove_padding" in err


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (["skip_layernrm"], "did you mean 'skip_layernorm'"),
        (["--sm", "sm75"], "known: sm100"),
        (["--sm", "90"], "unknown SM '90'"),
        (["--sm", "sm90", "--cache", __file__], "--cache"),
        (["--cache", "/proc/nowhere/kernels"], "name another folder"),
    ],
)
def test_bad_input_is_told_what_to_do(given: list[str], advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["kernels", *given]) == 2
    assert advice in capsys.readouterr().err


def test_what_is_asked_of_tests_does_not_stop_a_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run(["kernels", "remove_padding", "--sm", "sm90", "--cache", str(tmp_path)]) == 0
    assert "sm90 only" in capsys.readouterr().err


def test_without_triton_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("bertc.report.kernels.find_spec", lambda name: None if name == "triton" else found(name))
    assert run(["kernels"]) == 3
    assert "bertc[kernels]" in capsys.readouterr().err


def test_a_spill_fails_the_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from bertc.report import kernels

    rows = kernels.compile_all(["remove_padding"], ["sm90"], tmp_path)
    monkeypatch.setattr(kernels, "compile_all", lambda *given: [{**rows[0], "spilled": 16}])
    assert run(["kernels"]) == 1
    assert "remove_padding" in capsys.readouterr().err


def test_the_benchmark_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import bench_gpu

    if bench_gpu.lacking():
        with pytest.raises(SystemExit) as left:
            bench_gpu.run()
        assert left.value.code == 3
        assert "GPU" in capsys.readouterr().err
