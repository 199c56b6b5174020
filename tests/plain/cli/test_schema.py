"""The schemas that editors are given: every file of ours is right by them, a typo is not, and what they mark bertc refuses."""

from __future__ import annotations

import ast
import copy
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w

from bertc import cli, recipe
from bertc.core import InputError
from bertc.fleet import config as fleet_config
from bertc.serve import config as serving_config

ROOT = Path(__file__).parents[3]
BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
READERS: dict[str, Callable[[Path], object]] = {
    "recipe": recipe.read,
    "fleet": fleet_config.read,
    "serving": serving_config.read_config,
}
# Files of another kind: systems of several models.
OTHERS = ("system.toml", "pyproject.toml")
FLEET = """
out = "o"
store = "s"
models = { a = { source = "a:make", budget = { cosine = 0.9 } }, b = { recipe = "minilm", seed = 2 } }
gpus = ["l4"]
targets = ["onnxruntime"]
precisions = ["fp32", "fp16"]
per_sm = false
shards = 2
exclude = [{ model = "b", gpu = "l4" }]
include = [{ gpu = "t4", precision = "fp16", model = "a" }]
override = [{ model = "a", memory = "1 GB", cores = 2, budget = { cosine = 0.5 } }]
runners = { any = ["x"], l4 = "y" }
"""
RECIPE = """
source = "a:make"
task = "features"
ids = "int64"
opset = 21
seed = 1
targets = ["onnxruntime=fp32"]
profiles = ["batch=1:2:4"]
goldens = "synthetic"
precision = "fp32"
fuse = true
budget = { cosine = 0.9 }
"""
SERVING = """
host = "h"
port = 1
workers = 1
policy = "cost"
max_rows = 2
memory = "1GB"
limits = { queue = 2, deadline_ms = 5.0, truncate = true }
ray = { replicas = 2, gpus = 0.5, route = "/x" }
models = { m = { artifact = "a", max_rows = 3 } }
"""
WHOLE = {"recipe": RECIPE, "fleet": FLEET, "serving": SERVING}
WRONG: tuple[Any, ...] = (-1, 0, 3, 2.5, True, "x", "", [], ["x"], [3], {}, {"a": 1}, {"x": "y"}, 10**12)


@pytest.fixture(scope="module", params=list(READERS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def checker(kind: str) -> jsonschema.Draft202012Validator:
    from bertc.cli.schema import document

    made = document(kind)
    jsonschema.Draft202012Validator.check_schema(made)
    return jsonschema.Draft202012Validator(made)


def files() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, kind, content) of every recipe, fleet and serving file in the repository and its documents."""
    for path in sorted({*ROOT.glob("recipes/**/*.toml"), *ROOT.glob("examples/**/*.toml")}):
        if path.name not in OTHERS:
            kind = path.stem if path.stem in READERS else "recipe"
            yield str(path.relative_to(ROOT)), kind, tomllib.loads(path.read_text("utf-8"))
    for page in sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/**/*.md")]):
        for number, text in enumerate(BLOCK.findall(page.read_text("utf-8"))):
            found = tomllib.loads(text)
            yield f"{page.relative_to(ROOT)}, block {number}", kind_of(found), found
    docstring = ast.get_docstring(ast.parse(Path(str(fleet_config.__file__)).read_text("utf-8"))) or ""
    example = "\n".join(line for line in docstring.splitlines() if line.startswith("    "))
    yield "the docstring of fleet/config.py", "fleet", tomllib.loads(example)


def kind_of(found: dict[str, Any]) -> str:
    if "source" in found:
        return "recipe"
    return "fleet" if {"gpus", "precisions", "exclude", "runners"} & found.keys() else "serving"


def test_every_file_of_ours_is_right() -> None:
    seen = dict.fromkeys(READERS, 0)
    for where, kind, found in files():
        wrong = [f"{error.json_path}: {error.message}" for error in checker(kind).iter_errors(found)]
        assert not wrong, f"{where} ({kind}): {wrong}"
        seen[kind] += 1
    assert min(seen.values()) >= 2, seen


def tables(value: Any) -> Iterator[dict[str, Any]]:
    """Every table whose keys are bertc's: not those that are named by the writer."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from tables(each)


def test_a_typo_in_any_key_is_wrong(kind: str) -> None:
    schema, whole = checker(kind), tomllib.loads(WHOLE[kind])
    schema.validate(whole)
    tried = 0
    named = ("a", "b", "m", "cosine")  # names of models and limits, which may be any
    for at, table in enumerate(tables(whole)):
        for key in table.keys() - {*named}:
            made = copy.deepcopy(whole)
            changed = list(tables(made))[at]
            changed[f"{key}x"] = changed.pop(key)
            assert not schema.is_valid(made), key
            tried += 1
    assert tried >= 9


def test_what_it_marks_is_refused(kind: str, tmp_path: Path) -> None:
    """Not the other way round: whether a file is there, or a GPU has a precision, no schema knows."""
    schema, whole = checker(kind), tomllib.loads(WHOLE[kind])
    path = tmp_path / f"{kind}.toml"
    path.write_text(WHOLE[kind])
    READERS[kind](path)
    marked = 0
    for at, table in enumerate(tables(whole)):
        for key in table:
            for value in WRONG:
                made = copy.deepcopy(whole)
                list(tables(made))[at][key] = value
                if schema.is_valid(made):
                    continue
                path.write_text(tomli_w.dumps(made))
                with pytest.raises(InputError) as caught:
                    READERS[kind](path)
                assert path.name in str(caught.value), (key, value)
                marked += 1
    assert marked > 50


def test_the_command_prints_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema", kind]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["$schema"].endswith("2020-12/schema")
    root = printed["$defs"][printed["$ref"].rpartition("/")[2]]
    assert root["additionalProperties"] is False
    assert sum("description" in key for key in root["properties"].values()) > 3


def test_an_unknown_kind_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema", "recipes"]) == 2
    assert "did you mean 'recipe'" in capsys.readouterr().err
