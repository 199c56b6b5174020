"""The pipelines in examples/ci: every command in them exists, and the fleet beside them has a job for each entry."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from bertc.cli import _group as commands
from bertc.cli import _main as cli

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
