"""The pipelines in examples/ci: every command in them exists, and the fleet beside them has a job for each entry."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import click
import fleets
import pytest
import yaml

from bertc.cli import _group as commands
from bertc.cli import _main as cli
from bertc.fleet import ci, config

FOLDER = Path(__file__).parent.parent.parent.parent / "examples" / "ci"


def lines(name: str) -> list[list[str]]:
    """Commands of bertc in a pipeline, with the variables of a runner filled in."""
    text = re.sub(r"\$\{\{[^}]*\}\}", "minilm/h100-fp16", (FOLDER / name).read_text("utf-8"))
    text = text.replace("$FLEET", str(FOLDER / "fleet.toml")).replace("$STORE", "store")
    return [shlex.split(found) for found in re.findall(r"bertc (fleet [^|>)\n]*)", text)]


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_every_command_is_one(name: str) -> None:
    found = lines(name)
    assert len(found) >= 2
    for _, verb, *words in found:
        group = commands.get("fleet")
        assert isinstance(group, click.Group)
        group.commands[verb].make_context(verb, list(words))  # raises for an option that is none


def test_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["fleet", "plan", str(FOLDER / "fleet.toml"), "--ci", "github"]) == 0
    jobs = {job["entry"]: job for job in json.loads(capsys.readouterr().out)["include"]}
    assert {name: (job["gpus"], job["runs-on"]) for name, job in jobs.items()} == {
        "minilm/tensorrt-rtx-fp16": ("l4,a10,rtx-4090", ["ubuntu-latest"]),
        "minilm/tensorrt-rtx-sm75-fp16": ("t4", ["ubuntu-latest"]),
        "minilm/h100-fp16": ("h100", ["self-hosted", "linux", "h100"]),
        "minilm/onnxruntime-fp32": ("", ["ubuntu-latest"]),
    }


# What a shell makes of it. `bertc` is a script that writes down the words that it was given.

RECORD = """#!/bin/sh
printf '%s\\n' "$@" -- >> "$RECORDED"
"""
NAMES = ["plain", "a b", "a; touch x", "a'b", 'a"b', "`touch x`", "#a", "a&touch x", "a|b", "*", "~", "-rf", "a\\b", "(a)", "!x"]


def recorded(script: str, folder: Path, **environment: str) -> list[list[str]]:
    """The words of each call of bertc in a script, run by sh in an empty folder; nothing else may have been made there."""
    tools, work = folder / "tools", folder / "work"
    tools.mkdir()
    work.mkdir()
    (tools / "bertc").write_text(RECORD)
    (tools / "bertc").chmod(0o755)
    setting = {"PATH": f"{tools}:{os.environ['PATH']}", "RECORDED": str(folder / "words"), "HOME": str(work), **environment}
    subprocess.run(["sh", "-n", "-c", script], env=setting, cwd=work, check=True)
    subprocess.run(["sh", "-e", "-c", script], env=setting, cwd=work, check=True)
    assert list(work.iterdir()) == [], "the script did more than to call bertc"
    calls = (folder / "words").read_text().split("\n--\n")[:-1]
    return [call.split("\n") for call in calls]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_path_of_a_fleet_as_one_word(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fleets.write(tmp_path, "a", 'out = "o"\n' + fleets.MATRIX).rename(tmp_path / f"{name}.toml")
    found = ci.jobs(config.read(Path(f"{name}.toml")), "gitlab")
    for entry in ("a/null-fp32", "a/null-bf16"):
        job = found[entry.replace("/", " ")]
        assert job["artifacts"] == {"paths": [f"o/{entry}"]}
    file = f"./{name}.toml" if name.startswith("-") else f"{name}.toml"
    said = recorded("\n".join(job["script"]), tmp_path)
    assert said == [["fleet", verb, file, "--entry", "a/null-bf16"] for verb in ("build", "verify")]


@pytest.mark.parametrize("name", ["$HOME", "$(touch x)", "${{ secrets.X }}", "$[[ inputs.x ]]", "a\nb", "\x1b[2J", "\u202ea"])
def test_a_path_that_a_ci_service_reads_is_refused(name: str, tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a").rename(tmp_path / f"{name}.toml")
    assert cli.run(["fleet", "plan", str(path), "--ci", "gitlab"]) == 2


@pytest.mark.parametrize("out", ["$CI_JOB_TOKEN", "**", "a?", "[ab]", "{a,b}", "`x`", "a;b", "'x'"])
def test_an_out_that_gitlab_reads_as_a_pattern_is_refused(out: str, tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a", f"out = {json.dumps(out)}\n" + fleets.MATRIX)
    assert cli.run(["fleet", "plan", str(path), "--ci", "gitlab"]) == 2
    assert cli.run(["fleet", "plan", str(path), "--ci", "github"]) == 0, "which writes no path"


def test_gitlab_keeps_the_artifacts_where_they_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths are those of the project, as the fleet file's own is."""
    (tmp_path / "deploy").mkdir()
    fleets.write(tmp_path / "deploy", "a", 'out = "../engines"\n' + fleets.MATRIX)
    monkeypatch.chdir(tmp_path)
    found = ci.jobs(config.read(Path("deploy/fleet.toml")), "gitlab")
    assert found["a null-fp32"]["artifacts"]["paths"] == ["engines/a/null-fp32"]


def scripts() -> list[str]:
    """What the pipeline of GitHub gives to a shell."""
    jobs = yaml.safe_load((FOLDER / "github.yml").read_text("utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_no_expression_is_pasted_into_a_script_of_github() -> None:
    found = scripts()
    assert sum("bertc fleet" in each for each in found) == 4
    assert not [each for each in found if "${{" in each]


@pytest.mark.parametrize("value", ["minilm/h100-fp16", "a; touch x", "$(touch x)", "`touch x`", "a\tb 'c' \"d\"", "*"])
def test_a_value_of_the_matrix_is_one_word(value: str, tmp_path: Path) -> None:
    lines = [each for each in scripts() if "$ENTRY" in each]
    assert len(lines) == 2
    said = recorded("\n".join(lines), tmp_path, ENTRY=value, FLEET="a b.toml")
    assert [words[:5] for words in said] == [["fleet", verb, "a b.toml", "--entry", value] for verb in ("build", "verify")]
