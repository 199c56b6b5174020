"""Tables of every command: at any width each number stands whole on one line, or its column is named as left out."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path

import fleets
import pytest
import reports
import tiny
from pages import run
from rich.console import Console

from bertc import verification
from bertc.report import layout, tables

Capture = pytest.CaptureFixture[str]
KINDS = {  # the command, and what heads its first two columns
    "artifacts": ("artifact", "target"),
    "verdicts": ("artifact", "output"),
    "metrics": ("artifact", "metric"),
    "fusions": ("rule", "fused"),
    "curve": ("int8, % of GEMM FLOPs", "Spearman"),
    "calibration": ("tensor", "operator"),
    "drift": ("module", "operator"),
    "bisection": ("node", "operator"),
    "timings": ("shape", "contender"),
    "work": ("layer", "kernels"),
    "buckets": ("buckets", "tokens computed"),
    "doctor": ("target", "build"),
    "inspect": ("operator", "count"),
    "diff": ("what", "name"),
    "fleet plan": ("what", "runs on"),
    "fleet status": ("entry", "GPUs"),
    "fleet cache": ("key", "stage"),
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, layout.Table]:
    """The table of each kind, from real commands."""
    folder, found = tmp_path_factory.mktemp("tables"), list[layout.Table]()
    new = layout.Table.__init__

    def record(self: layout.Table, *columns: str, **options: tuple[str, ...]) -> None:
        new(self, *columns, **options)
        found.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout.Table, "__init__", record)
        _commands(folder)
        _by_hand()
    kinds = {each.columns[:2]: each for each in found if each.rows}
    return {name: kinds[head] for name, head in KINDS.items()}


def _commands(folder: Path) -> None:
    model, out = tiny.encoder(folder / "m.onnx", tokenizer=True), folder / "out"
    (folder / "t.txt").write_text("two words\nand more words and more\n" * 20)
    (folder / "l.txt").write_text("7 60\n30 5\n12 1000000\n")
    halves = [out / f"onnxruntime-{precision}" for precision in ("fp16", "fp32")]
    run("build", model, "--target", "onnxruntime=fp16", "--target", "onnxruntime=fp32", "-o", out)
    run("build", model, "--target", "null", "--fp32", "-o", folder / "null")
    run("verify", halves[0], "--layers", "--against", model)
    run("verify", halves[0], "--bisect", "--against", model, "--budget", "cosine=0.99999999", code=1)
    run("verify", out, "--data", folder / "t.txt", "--against", model)
    run("fuse", model, "-o", folder / "fused.onnx")
    run("calibrate", model, "--data", folder / "t.txt", "-o", folder / "ranges.json")
    run("bench", halves[0], "--against", halves[1], "--shapes", "1x4,2x8", "--rounds", "11", "--threads", "1")
    run("bench", folder / "null", "--shapes", "2x8")
    run("profile", folder / "l.txt", "--source", model)
    run("inspect", halves[0])
    run("inspect", halves[0], "--diff", halves[1])
    run("doctor")
    fleet = fleets.write(folder, "a")
    run("fleet", "build", fleet)
    for words in (
        ("fleet", "plan", fleet),
        ("fleet", "status", fleet),
        ("cache", "ls", fleets.opened(fleet)[0].store),
    ):
        run(*words)


def _by_hand() -> None:
    """What takes labels or minutes to come by."""
    curve = [{**point, "drop": 0.01} for point in reports.int8()["curve"]]
    tables.curve_table({**reports.int8(), "curve": curve, "share": 0.5})
    measure = verification.Metric(
        "kept: nearest neighbour", 0.98765, 0.97654, 0.01111, -0.00123, 0.02345, 1234, "Clopper-Pearson"
    )
    result = verification.ComparisonResult("custom", (), (), 12, 1234, metrics=(measure,))
    budget = verification.DEFAULT_BUDGETS["bf16"]
    verdict = verification.Verdict("onnxruntime", "bf16", "t.txt", budget, result, "", result, (), path="out/onnxruntime-bf16")
    assert tables.metrics_table([verdict]) is not None


def drawn(table: layout.Table, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert not lines[0] and not lines[-1], "a table stands between blank lines"
    return lines[1:-1]


@pytest.mark.parametrize("width", [60, 80, 99, 100, 160, 2**16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_whole(kind: str, width: int, shown: dict[str, layout.Table]) -> None:
    table = shown[kind]
    lines = drawn(table, width)
    left_out = re.findall(r"left out: (.*) \(", " ".join(" ".join(lines).split()))
    dropped = left_out[0].split(", ") if left_out else []
    assert set(dropped) <= set(table.drop) and (not dropped or width < 160)
    kept = [at for at, name in enumerate(table.columns) if name not in dropped]
    room = min(layout.LONGEST, width - max(map(len, table.columns)) - layout.GAP)  # of a name; no number is so long
    went_in = Counter(word for row in table.rows for at in kept for word in row[at].split() if re.search(r"\d", word))
    came_out = Counter(word for line in lines for word in line.split())
    assert not {word: n for word, n in went_in.items() if came_out[word] < n and len(word) <= room}


def test_a_wide_terminal_leaves_nothing_out(shown: dict[str, layout.Table]) -> None:
    for kind, table in shown.items():
        assert len(drawn(table, 2**16)) == len(table.rows) + 2, kind


def test_a_narrow_table_becomes_blocks() -> None:
    table = layout.Table("node", "largest", "limit", "why", wrap=("why",), drop=("limit",))
    table.add("a" * 28, "65504.5", "65504", "words " * 20)
    assert drawn(table, 70)[0].split() == ["node", "largest", "limit", "why"]
    assert "left out: limit" in drawn(table, 60)[-1]
    blocks = drawn(table, 50)
    assert blocks[1].split() == ["largest", "65504.5"] and blocks[2].split() == ["limit", "65504"]


def test_in_a_pipe_nothing_is_wrapped(
    shown: dict[str, layout.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A log has no width, unless COLUMNS says one."""
    monkeypatch.setenv("COLUMNS", "80")
    run("doctor")
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "0")
    run("doctor")
    lines = capsys.readouterr().err.splitlines()
    assert next(line for line in lines if line.startswith("python ")).count("  ") > 3
    assert any(line.split()[:3] == ["target", "build", "run"] for line in lines)
