"""Names and values of a fleet file: what becomes a folder, a CI job or a word of a command line holds nothing that those read."""

from __future__ import annotations

import json
from pathlib import Path

import fleets
import pytest

from bertc.cli import _main as cli
from bertc.core.errors import RecipeError
from bertc.fleet import config

HOSTILE = [
    "a; rm -rf ~",
    "$(touch x)",
    "`touch x`",
    "a\nb",
    "a'b",
    'a"b',
    "${{ secrets.X }}",
    "-rf",
    "\u202eabc",
    "\x1b[2J",
    "#a",
]
HOSTILE += [
    "a b",
    "../x",
    "/x",
    "",
    ".",
    "a/b",
    "a\\b",
    "a\0b",
    "é",
    "x" * 101,
    "{{x}}",
    "a&b",
    "a|b",
    "a>b",
    "*",
    "~",
    "#a",
    "a:b",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_of_models(name: str, tmp_path: Path) -> None:
    fleets.write(tmp_path, "a")
    text = fleets.MATRIX + f'[models.{json.dumps(name)}]\nsource = "a/m.onnx"\n'
    (tmp_path / "fleet.toml").write_text(text.replace("\x7f", ""), encoding="utf-8")
    with pytest.raises(RecipeError, match="name") as told:
        config.read(tmp_path / "fleet.toml")
    assert all(each.isprintable() for each in str(told.value))


@pytest.mark.parametrize("name", ["minilm", "all-MiniLM-L6-v2", "bge_small.en", "2b", "x" * 100])
def test_sane_names_of_models(name: str, tmp_path: Path) -> None:
    fleets.write(tmp_path, "a")
    (tmp_path / "fleet.toml").write_text(fleets.MATRIX + f'[models."{name}"]\nsource = "a/m.onnx"\n')
    assert list(config.read(tmp_path / "fleet.toml").models) == [name]


@pytest.mark.parametrize(
    "text",
    [
        *(f"[runners]\nany = [{json.dumps(label)}]\n" for label in HOSTILE if label not in ("a b", "a/b", "x" * 101, "a:b")),
        "[runners]\nany = 3\n",
        "[runners]\nany = []\n",
        "[runners]\nany = [3]\n",
        "[runners]\nno-such-gpu = ['x']\n",
        "runners = 3\n",
        'out = "a\\nb"\n',
        'out = "\\u001b[2J"\n',
        "out = 3\n",
        'store = ""\n',
        "include = [{ gpu = 3 }]\n",
        "include = [{ model = ['a'] }]\n",
        "exclude = [{ precision = 1 }]\n",
        "override = [{ target = 1 }]\n",
        "override = [{ cores = 'x' }]\n",
        "override = [{ cores = 0 }]\n",
        "override = [{ budget = 3 }]\n",
    ],
)
def test_values_of_another_kind(text: str, tmp_path: Path) -> None:
    fleets.write(tmp_path, "a")
    path = tmp_path / "fleet.toml"
    model = '[models.a]\nsource = "a/m.onnx"\n'
    path.write_text(fleets.MATRIX + (model + text if text.startswith("[") else text + model), encoding="utf-8")
    assert cli.run(["fleet", "plan", str(path)]) == 2


@pytest.mark.parametrize(
    "label", ["self-hosted", "ubuntu-22.04", "gpu:h100", "team/gpu", "runner=2cpu", "with space", "a+b", "m@x,y"]
)
def test_sane_labels(label: str, tmp_path: Path) -> None:
    path = fleets.write(tmp_path, "a")
    path.write_text(path.read_text() + f'[runners]\nany = ["{label}"]\n')
    assert config.read(path).runners == {"any": (label,)}
