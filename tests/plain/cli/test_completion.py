"""Shell completion: click's own, with the names that bertc knows."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, ShellComplete

from bertc import precision, recipe, targets
from bertc.cli import _group as commands
from bertc.cli import cli
from bertc.core import gpu_models


def completed(*words: str) -> list[str]:
    """What a shell offers for the last word."""
    shell: ShellComplete = BashComplete(cli, {}, "bertc", "_BERTC_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1]) if item.type == "plain"]


def test_commands() -> None:
    assert completed("") == list(commands.names())
    assert completed("fl") == ["fleet"]
    assert completed("fleet", "") == ["build", "plan", "status", "verify"]


def test_targets() -> None:
    build = ("build", "minilm", "--target")
    assert completed(*build, "") == list(targets.names())
    assert completed(*build, "tensorrt") == ["tensorrt", "tensorrt-rtx"]
    assert completed(*build, "tensorrt-rtx:sm8") == [f"tensorrt-rtx:sm8{last}" for last in (0, 6, 9)]
    more = completed(*build, "tensorrt-rtx:sm89,")
    assert "tensorrt-rtx:sm89,sm86" in more
    assert "tensorrt-rtx:sm89,sm89" not in more
    assert completed(*build, "onnxruntime:") == []
    assert completed(*build, "nonsense:") == []
    assert completed(*build, "onnxruntime=") == [f"onnxruntime={mode}" for mode in precision.names()]
    assert completed(*build, "tensorrt-rtx:sm89=fp1") == ["tensorrt-rtx:sm89=fp16"]
    assert completed("calibrate", "minilm", "--target", "onnxruntime=") == [], "ranges have no precision"


def test_names_of_closed_sets() -> None:
    assert completed("build", "m", "--task", "s") == ["sentence-embedding", "sequence-classification"]
    assert completed("build", "m", "--ids", "") == ["int64", "int32"]
    assert completed("build", "m", "--expect", "distil") == ["distilbert"]
    assert completed("calibrate", "m", "--method", "m") == ["minmax", "mse"]
    assert completed("build", "m", "--int8", "d") == ["dynamic"]
    assert completed("build", "m", "--log-level", "d") == ["debug"]


@pytest.mark.parametrize("words", [("build", ""), ("bench", "a", "--against", ""), ("verify", "a", "--against", "")])
def test_sources_are_recipes_and_files(words: tuple[str, ...]) -> None:
    assert completed(*words) == list(recipe.names())
    shell = BashComplete(cli, {}, "bertc", "_BERTC_COMPLETE")
    assert "file" in {item.type for item in shell.get_completions(list(words[:-1]), "")}


def test_names_to_list() -> None:
    assert completed("list", "g") == ["gpus"]
    assert completed("list", "gpus", "l40") == ["l40", "l40s"]
    assert completed("list", "gpus", "") == list(gpu_models.names())
    assert completed("list", "precisions", "int8-") == ["int8-dynamic", "int8-static", "int8-weights"]


def test_entries_of_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text('models = ["minilm"]\ngpus = ["h100"]\ntargets = ["onnxruntime=fp32"]\nprecisions = ["fp16"]\n')
    plan = ("fleet", "plan", str(file), "--entry")
    assert set(completed(*plan, "")) == {"minilm", "minilm/h100-fp16", "minilm/onnxruntime-fp32"}
    assert completed(*plan, "minilm/h") == ["minilm/h100-fp16"]
    file.write_text("gpus = 3")
    assert completed(*plan, "") == []


RTX = targets.get("tensorrt-rtx")
# Words as bash has them in COMP_WORDS, and what it puts in the place of the last one.
IN_BASH = [
    (["build", "--target", "onn"], ["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]),
    (["build", "--target", "tensorrt-rtx", ":", "sm12"], ["sm120", "sm121"]),
    (["build", "--target", "tensorrt-rtx", ":"], [*RTX.SMS, *(gpu.name for gpu in gpu_models.TABLE if gpu.sm in RTX.SMS)]),
    (["build", "--target", "tensorrt-rtx", ":", "sm86,l40"], ["sm86,l40", "sm86,l40s"]),
    (["build", "--target", "tensorrt-rtx", ":", "sm89,sm12"], ["sm89,sm120", "sm89,sm121"]),
    (["build", "--target", "tensorrt-rtx", ":", "sm89", "=", "bf"], ["bf16"]),
    (["build", "--target", "onnxruntime", "=", "fp32", "--ids", "int3"], ["int32"]),
    (["build", "--task", "=", "feat"], ["features"]),
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("words", "offered"), IN_BASH, ids=[" ".join(words) for words, _ in IN_BASH])
def test_bash_itself(words: list[str], offered: list[str]) -> None:
    """The script that click writes, run by bash; bash ends words at `:` and `=`."""
    folder = Path(sys.executable).parent
    line = " ".join(map(shlex.quote, ["bertc", *words]))
    code = f'eval "$(_BERTC_COMPLETE=bash_source bertc)"; COMP_WORDS=({line}); COMP_CWORD={len(words)}; '
    code += '_bertc_completion bertc 2>&-; printf "%s\\n" "${COMPREPLY[@]}"'
    env = {"PATH": f"{folder}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == offered, done.stderr


def test_other_shells_can_switch_it_on() -> None:
    """As `bertc --help` says."""
    script = Path(sys.executable).with_name("bertc")
    for shell in ("zsh", "fish"):
        done = subprocess.run([script], env={"_BERTC_COMPLETE": f"{shell}_source"}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"_BERTC_COMPLETE={shell}_complete" in done.stdout
    asked = {"_BERTC_COMPLETE": "zsh_complete", "COMP_WORDS": "bertc build --target onn", "COMP_CWORD": "3"}
    done = subprocess.run([script], env=asked, capture_output=True, text=True, check=False)
    assert "onnxruntime" in done.stdout.split()
