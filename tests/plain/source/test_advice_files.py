"""The same for .onnx files, factories and artifacts, and for what every message names: options and packages that exist."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import advice
import click
import numpy as np
import onnx
import pytest
import tiny
from onnx import parser, version_converter

import bertc

Capture = pytest.CaptureFixture[str]
PACKAGE = Path(bertc.__file__).parent
ROOT = Path(__file__).parents[3]
X = {"x": np.ones((3, 8), np.float32)}


def refused(words: list[object], capsys: Capture) -> str:
    assert advice.command(words) in (1, 2)
    return " ".join(capsys.readouterr().err.split())


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_old_opset_is_converted(tmp_path: Path) -> None:
    path = advice.linear(tmp_path / "m.onnx", opset=9)
    message = advice.refusal(path)
    wanted = re.search(r"bertc reads (\d+) and newer.*use onnx\.version_converter", message)
    assert wanted
    onnx.save(version_converter.convert_version(onnx.load(path), int(wanted[1])), path)
    advice.answers(advice.opened(path), **X)


@pytest.mark.parametrize("kind", ["a link out of the folder", "a second name"])
def test_weights_behind_links_are_copied(kind: str, tmp_path: Path) -> None:
    for name in ("m", "elsewhere"):
        (tmp_path / name).mkdir()
    path = advice.linear(tmp_path / "m" / "m.onnx", external=True)
    weights = path.with_name("w.bin")
    if kind == "a second name":
        (tmp_path / "elsewhere" / "w.bin").hardlink_to(weights)
    else:
        weights.rename(tmp_path / "elsewhere" / "w.bin")
        weights.symlink_to(tmp_path / "elsewhere" / "w.bin")
    found = re.search(r"(cp -rL \S+) COPY", advice.refusal(path))
    assert found
    subprocess.run([*found[1].split(), str(tmp_path / "copy")], check=True)
    advice.answers(advice.opened(tmp_path / "copy" / "m.onnx"), **X)


def test_an_unknown_operator_with_its_definition(tmp_path: Path) -> None:
    path = advice.linear(tmp_path / "m.onnx", domain="my.company", op="Mixed")
    assert "with their definition as ONNX functions in the file" in advice.refusal(path)
    model = onnx.load(path)
    body = '<opset_import: ["" : 20], domain: "my.company"> Mixed (a, b) => (c) { c = MatMul(a, b) }'
    model.functions.append(parser.parse_function(body))
    onnx.save(model, path)
    advice.answers(advice.opened(path), **X)


def test_an_input_without_a_type_gets_one(tmp_path: Path) -> None:
    path = advice.linear(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert "export it with shapes" in advice.refusal(path)
    advice.linear(path)
    advice.answers(advice.opened(path), **X)


def test_a_quantised_file_is_built_as_it_is(tmp_path: Path, capsys: Capture) -> None:
    text = """<ir_version: 8, opset_import: ["" : 20]> g (float[batch, 8] x) => (float[batch, 8] y)
        <float s = {0.02}, uint8 z = {128}, float w = {0.5}> {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Mul(d, w) }"""
    onnx.save(parser.parse_model(text), tmp_path / "m.onnx")
    said = refused(["build", tmp_path / "m.onnx", "--fp16", "--target", "null", "-o", tmp_path / "o"], capsys)
    found = re.search(r"build this one as it is: (--fp32 --target onnxruntime)", said)
    assert found
    assert advice.command(["build", tmp_path / "m.onnx", *found[1].split(), "-o", tmp_path / "o"]) == 0


def test_a_folder_with_several_models_takes_one_of_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        advice.linear(tmp_path / f"{name}.onnx")
    message = advice.refusal(tmp_path)
    assert "give one of them" in message
    for name in re.findall(r"\w+\.onnx(?=[,;])", message):
        advice.answers(advice.opened(tmp_path / name), **X)


def test_a_slip_of_the_pen(tmp_path: Path) -> None:
    advice.linear(tmp_path / "model.onnx")
    found = re.search(r"did you mean '([^']+)'", advice.refusal(tmp_path / "modle.onnx"))
    assert found
    advice.answers(advice.opened(tmp_path / found[1]), **X)


# ---- artifacts -------------------------------------------------------------------------------------------------------


def test_a_typed_artifact_is_built_from_its_source(tmp_path: Path, capsys: Capture) -> None:
    path = tiny.encoder(tmp_path / "m.onnx")
    assert advice.command(["build", path, "--fp16", "--target", "null", "-o", tmp_path / "half"]) == 0
    said = refused(["build", tmp_path / "half", "--target", "null", "-o", tmp_path / "o"], capsys)
    assert "build from its export or its source" in said
    assert advice.command(["export", path, "-o", tmp_path / "export"]) == 0
    for source in (tmp_path / "export", path):
        assert advice.command(["build", source, "--target", "null", "-o", tmp_path / "o", "--force"]) == 0


def test_an_export_made_otherwise_is_exported_again(tmp_path: Path, capsys: Capture) -> None:
    path = tiny.encoder(tmp_path / "m.onnx")
    assert advice.command(["export", path, "-o", tmp_path / "export"]) == 0
    words = ["--task", "features", "--target", "null", "-o", tmp_path / "o"]
    assert advice.command(["export", path, "-o", tmp_path / "export", "--task", "token-embedding", "--force"]) == 0
    found = re.search(r"export (\S+) again", refused(["build", tmp_path / "export", *words], capsys))
    assert found
    assert advice.command(["export", found[1], "--task", "features", "-o", tmp_path / "export", "--force"]) == 0
    assert advice.command(["build", tmp_path / "export", *words]) == 0


def test_an_output_that_is_there_is_replaced(tmp_path: Path, capsys: Capture) -> None:
    words = ["build", tiny.encoder(tmp_path / "m.onnx"), "--target", "null", "--no-verify", "-o", tmp_path / "o"]
    assert advice.command(words) == 0
    assert "--force replaces it" in refused(words, capsys)
    assert advice.command([*words, "--force"]) == 0


# ---- factories -------------------------------------------------------------------------------------------------------

MODULE = """
import torch

class Student(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, 8)
    def forward(self, ids):
        x = self.words(ids)
        {BODY}
        return x

def make():
    return Student(), {"ids": torch.ones({SIZE}, 5, dtype=torch.int64)}, {"ids": {DIMS}}
"""
GOOD = {"BODY": "pass", "SIZE": "2", "DIMS": '("batch", "length")'}
# name: (what is wrong, the advice, what is written in its place)
FACTORIES: dict[str, tuple[dict[str, str], str, dict[str, str]]] = {
    "an axis without a name": ({"DIMS": '("batch",)'}, "give one entry per axis", {"DIMS": '("batch", 5)'}),
    "an example of one row": ({"SIZE": "1"}, "give an example with batch of 2 or more", {"SIZE": "2"}),
    "a name that is none": ({"DIMS": '("a batch", "length")'}, "letters, digits and underscores", {"DIMS": '("a_batch", "l")'}),
    "another size": ({"DIMS": '("batch", 6)'}, "dims say 6 where its example has 5", {"DIMS": '("batch", 5)'}),
    "no dims": ({"DIMS": "None"}, "give one entry per axis of its example [2, 5]", {"DIMS": '("batch", "length")'}),
}


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    count = iter(range(10))

    def write(**parts: str) -> str:
        text = MODULE
        for name, part in (GOOD | parts).items():
            text = text.replace("{" + name + "}", part)
        name = f"advised_{tmp_path.name}_{next(count)}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return f"{name}:make"

    return write


@pytest.mark.parametrize("name", FACTORIES)
def test_the_advice_to_a_factory_works(name: str, factory: Callable[..., str]) -> None:
    pytest.importorskip("torch")
    wrong, wanted, mended = FACTORIES[name]
    assert wanted in advice.refusal(factory(**wrong))
    advice.answers(advice.opened(factory(**mended)), ids=np.ones((3, 5), np.int64))


def test_a_file_where_a_module_is_wanted(factory: Callable[..., str]) -> None:
    good = factory()
    message = advice.refusal(good.replace(":", ".py:"))
    assert "write module:function, without .py" in message
    advice.answers(advice.opened(good), ids=np.ones((3, 5), np.int64))


EXPORTED = """
import torch

class Sums(torch.nn.Module):
    def forward(self, a, b):
        {BODY}

def make():
    return Sums(), {"a": torch.ones(3, 4), "b": torch.ones(3, 4)}, {"a": {A}, "b": {B}}
"""
DIMS: dict[str, tuple[dict[str, str], str, dict[str, str]]] = {
    "two names for one size": (
        {"BODY": "return a + b", "A": '("batch", "length")', "B": '("batch", "width")'},
        "give both one name",
        {"B": '("batch", "length")'},
    ),
    "a loop over an axis": (
        {"BODY": "return sum(a[:, at] for at in range(a.shape[1])) + b[:, 0]", "A": '("batch", "length")', "B": '("batch", 4)'},
        "give the size as a number wherever 'length' stands, as in dims {'a': ('batch', 4)}",
        {"A": "('batch', 4)"},
    ),
    "a branch on values": (
        {"BODY": "return a if a.sum() > 0 else b", "A": '("batch", 4)', "B": '("batch", 4)'},
        "Write a branch with torch.where",
        {"BODY": "return torch.where(a.sum() > 0, a, b)"},
    ),
}


@pytest.mark.parametrize("name", DIMS)
def test_the_advice_of_the_exporter_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong, wanted, mended = DIMS[name]

    def written(which: str, parts: dict[str, str]) -> list[object]:
        text = EXPORTED
        for key, part in parts.items():
            text = text.replace("{" + key + "}", part)
        module = f"exported_{tmp_path.name}_{which}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(text)
        return ["export", f"{module}:make", "-o", tmp_path / "o"]

    assert wanted in refused(written("wrong", wrong), capsys)
    assert advice.command(written("mended", wrong | mended)) == 0


# ---- what messages name ----------------------------------------------------------------------------------------------


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    """(file, text) of everything that the package raises, the constant parts of f-strings among it."""
    return tuple(
        (path.relative_to(PACKAGE).as_posix(), " ".join(_strings(node)))
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Raise)
    )


def _strings(node: ast.AST) -> Iterator[str]:
    return (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))


def options_of(command: click.Command) -> set[str]:
    own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union(*map(options_of, below))


def test_every_option_that_an_error_names_exists() -> None:
    from bertc.cli import _group

    known = set().union(*(options_of(_group.get(name)) for name in _group.names())) | {"--help", "--version"}
    known |= {"--head"}  # of `ray start`
    named = {(file, flag) for file, text in texts() for flag in advice.FLAG.findall(text)}
    assert len(named) > 40
    assert sorted((file, flag) for file, flag in named if flag not in known) == []


def test_every_command_that_an_error_names_exists() -> None:
    from bertc.cli import _group

    told = re.compile(r"(?:\brun |\(|\bby |\bwith |\buse )bertc ([a-z]+)")
    named = {(file, name) for file, text in texts() for name in told.findall(text)}
    assert named
    assert sorted((file, name) for file, name in named if name not in _group.names()) == []


def test_every_extra_that_an_error_names_installs_something() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = {(file, extra) for file, text in texts() for extra in re.findall(r"bertc\[([\w,]+)\]", text)}
    assert {extra for _, extra in named} >= {"export", "adapter", "cpu"}
    assert sorted((file, extra) for file, extra in named if not extras.get(extra)) == []


MISSING = {"peft": "adapter", "torch": "export", "huggingface_hub": "export", "onnxruntime": "cpu"}


@pytest.mark.parametrize("package", MISSING)
def test_the_extra_holds_the_package_that_is_missing(package: str) -> None:
    """`merging an adapter needs peft; pip install 'bertc[adapter]'`."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(re.match(rf"{package}\b", wanted) for wanted in extras[MISSING[package]])
