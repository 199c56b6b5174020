"""bertc list: every target, recipe, precision and GPU model, with what this machine can do."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from bertc import precision, recipe, targets
from bertc.cli import run
from bertc.core import gpu_models
from bertc.targets import Availability

Capture = pytest.CaptureFixture[str]


def listed(capsys: Capture, *words: str) -> tuple[dict[str, Any], str]:
    assert run(["list", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_all_of_it(capsys: Capture) -> None:
    found, err = listed(capsys)
    names = {"targets": targets.names(), "recipes": recipe.names(), "precisions": precision.names(), "gpus": gpu_models.names()}
    assert {kind: set(rows) for kind, rows in found.items()} == {kind: set(known) for kind, known in names.items()}
    for known in names.values():
        assert all(f"\n{name} " in err for name in known)


def test_targets(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Availability(False, False, "no compiler here", "", "pip install it")
    monkeypatch.setattr(targets.get("tensorrt"), "available", lambda: absent)
    found, err = listed(capsys, "targets")
    assert list(found) == ["targets"]
    rows = found["targets"]
    assert (rows["tensorrt"]["build"], rows["tensorrt"]["reason"]) == (False, "no compiler here")
    assert "no compiler here: pip install it" in err
    assert (rows["onnxruntime"]["build"], rows["onnxruntime"]["run"]) == (True, True)
    assert "sm89" in rows["tensorrt-rtx"]["sms"]
    assert all(row["about"] and "`" not in row["about"] for row in rows.values())


def test_recipes(capsys: Capture) -> None:
    rows, _ = listed(capsys, "recipes")
    for name, row in rows["recipes"].items():
        assert row["source"] == recipe.read(recipe.names()[name]).source
        assert len(row["about"]) > 20 and not row["about"].startswith("#")


def test_precisions_are_asked_for_by_options_that_exist(capsys: Capture) -> None:
    rows = listed(capsys, "precisions")[0]["precisions"]
    assert rows["int8-dynamic"]["option"] == "--int8 dynamic"
    assert {name for name, row in rows.items() if row["needs_data"]} == precision.CALIBRATED
    for name, row in rows.items():
        assert row["about"]
        # The target is refused before anything is built: the option before it was understood.
        assert run(["build", "m", "-o", "o", *row["option"].split(), "--target", "none"]) == 2, name
        assert "unknown target 'none'" in capsys.readouterr().err


def test_gpus(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "local_gpus", lambda: ("l4",))
    found, err = listed(capsys, "gpus", "l4", "h100")
    rows = found["gpus"]
    assert list(rows) == ["l4", "h100"]
    assert (rows["l4"]["sm"], rows["l4"]["target"], rows["l4"]["here"]) == ("sm89", "tensorrt-rtx", True)
    assert (rows["h100"]["sm"], rows["h100"]["target"], rows["h100"]["here"]) == ("sm90", "tensorrt", False)
    assert "a100" not in err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["gpu"], "did you mean 'gpus'?"),
        (["gpus", "h10"], "did you mean 'h100'?"),
        (["precisions", "fp61"], "did you mean 'fp16'?"),
    ],
)
def test_a_name_that_does_not_exist(words: list[str], hint: str, capsys: Capture) -> None:
    assert run(["list", *words]) == 2
    assert hint in " ".join(capsys.readouterr().err.split())


def test_no_name_is_cut_in_a_narrow_terminal(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes it for a terminal
    assert run(["list", "recipes"]) == 0
    err = capsys.readouterr().err
    assert "…" not in err
    assert all(recipe.read(path).source in err for path in recipe.names().values())


def test_precisions_load_no_onnx() -> None:
    """What is read from file names and docstrings imports nothing heavy."""
    heavy = "sum(module in sys.modules for module in ('numpy', 'onnx'))"
    code = f"import sys; from bertc import cli; cli.run(['list', 'precisions']); sys.exit({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
