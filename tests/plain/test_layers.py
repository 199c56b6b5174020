"""The shape of the package: rooms in one order, no circles, faces, torch in its corner, small files, a complete wheel."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = ROOT / "compiler"
# From top to bottom: a file imports from its own room and from rooms below it, late imports and those for types counted.
# `bertc` is the Python API (`__init__.py`), which a room never imports.
ORDER = (
    "__main__ cli fleet search compress distill bertc pipeline report bench serve quant recipe verification targets fusions "
    "packing precision source runtime ops artifact data graph core"
).split()
AT_THE_ROOT = {"__init__.py", "__main__.py", "pipeline.py", "recipe.py"}
TORCH_ALLOWED = {
    *("source/torch_export.py", "source/heads.py", "source/factory.py", "source/half_modules.py", "bench/baselines.py"),
    "source/bounded.py",
    "serve/sentence_module.py",
}
TRANSFORMERS_ALLOWED = {"source/assets.py", "source/loading.py", "source/inputs_truth.py", "data/mel.py"}
FACELESS = (
    "fusions.rules",
    "targets._tensorrt",
    "targets._onnxruntime",
    "targets._onnxruntime_cuda",
    "ops.bodies",
    "source.modules",
    "source.contrib",
)
TORCH = re.compile(r"^\s*(import|from) (torch|transformers)\b", re.MULTILINE)
FILES = sorted(p for p in COMPILER.rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    return ".".join(part for part in path.relative_to(COMPILER).with_suffix("").parts if part != "__init__")


MODULES = {name_of(path): path for path in FILES}
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
ROOMS = {name for name in PACKAGES if name and "." not in name}


def room_of(module: str) -> str:
    return module.partition(".")[0] or "bertc"


@functools.cache
def imported(path: Path) -> tuple[tuple[str, str], ...]:
    """(package or module, name) of every import from bertc in a file, wherever it stands; the face of a package is its stub."""
    here = name_of(path)
    package = here.split(".") if path.name == "__init__.py" else here.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [part for part in package if part][: len([part for part in package if part]) - node.level + 1]
            found += [(".".join([*base, *(node.module or "").split(".")]).strip("."), alias.name) for alias in node.names]
    return tuple(found)


def source_of(base: str, name: str) -> str:
    """The module that `from base import name` leads to."""
    full = f"{base}.{name}".strip(".")
    return full if full in MODULES else base


def outside(path: Path) -> Iterator[tuple[str, str]]:
    """What a file imports from other rooms."""
    own = room_of(name_of(path))
    return ((base, name) for base, name in imported(path) if room_of(source_of(base, name)) != own)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(COMPILER).as_posix())
def test_imports_point_down_to_faces(path: Path) -> None:
    own = room_of(name_of(path))
    assert own in ORDER, f"{own} has no place in the order of rooms: add it to ORDER"
    for base, name in outside(path):
        target = source_of(base, name)
        assert ORDER.index(room_of(target)) > ORDER.index(own), f"{own} imports {target}, which stands above it"
        if room_of(target) in ROOMS - {"cli"}:
            assert base in {"", *PACKAGES}, f"import {name} from the face of {room_of(base)}, not from the file {base}"
            assert "._" not in f".{target}" and not name.startswith("_"), f"{target}: a leading underscore is private to its room"


def test_no_circle_of_files() -> None:
    """A face that hands out its own files is no circle; everything else counts, late imports and those for types too."""
    graph = {}
    for name, path in MODULES.items():
        stub = path.with_suffix(".pyi") if path.name == "__init__.py" else None
        found = {source_of(base, each) for base, each in imported(path)} - {name}
        graph[name] = found - {each for each in found if stub and each.startswith(f"{name}.")}
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of files: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", sorted(PACKAGES - {"", "cli"}))
def test_each_package_says_what_it_is(package: str) -> None:
    """In a docstring; its face, where it has one, hands out nothing that is missing, private or named as a file."""
    path = MODULES[package]
    assert len(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") > 30
    stub = path.with_suffix(".pyi")
    assert stub.is_file() or package in FACELESS
    for node in ast.parse(stub.read_text("utf-8")).body if stub.is_file() else []:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            module = f"{package}.{node.module}" if node.module else f"{package}.{alias.name}"
            assert module in MODULES, module
            assert node.module is None or f"{package}.{alias.name}" not in MODULES, f"{alias.name} is a file of {package}, too"


def test_nothing_else_at_the_root() -> None:
    assert {path.name for path in COMPILER.glob("*.py")} == AT_THE_ROOT
    assert {path.parent.name for path in COMPILER.glob("*/__init__.py")} == set(ORDER) & ROOMS


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(COMPILER).as_posix())
def test_torch_and_size(path: Path) -> None:
    text = path.read_text("utf-8")
    place = path.relative_to(COMPILER).as_posix()
    if place not in TORCH_ALLOWED and not place.startswith(("source/modules/", "distill/", "compress/", "search/")):
        found = {each[2] for each in TORCH.finditer(text)}
        assert found <= ({"transformers"} if place in TRANSFORMERS_ALLOWED else set())
    assert len(text.splitlines()) <= 400


def test_packages_match_the_folders_on_disk() -> None:
    """A sub-package missing from the list works in an editable install and vanishes from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    recipes = {".".join(("bertc", *path.parent.relative_to(ROOT).parts)) for path in (ROOT / "recipes").rglob("__init__.py")}
    beside = {"bertc.plugins", "bertc.plugins.kernels", *recipes}
    on_disk = {f"bertc.{name}".removesuffix(".") for name in PACKAGES} | beside
    assert set(settings["packages"]) == on_disk
    for folder in settings["package-dir"].values():
        assert (ROOT / folder / "__init__.py").is_file()


def test_no_machine_path_in_any_file() -> None:
    """The project speaks of bertc alone."""
    folders = [
        path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name not in ("out", "build")
    ]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.iterdir())
    texts = [path for path in files if path.suffix in (".py", ".md", ".toml", ".txt", ".log", ".yml", ".html") and path.is_file()]
    assert len(texts) > 300
    for path in texts:
        if path != Path(__file__):
            assert not re.search(r"/work/|/root/|/home/", path.read_text("utf-8", "replace")), path


# Whatever reads JSON or TOML by itself, and how often; all else goes through core/reading.py: bounded, held against a type.
READS_ITSELF = {
    "data/tables.py": (1, "a cell of a user's table, which is bounded; an error names its row"),
    "data/tokenizer.py": (1, "the state of an object of the tokenizers package, no file"),
    "fleet/keys.py": (1, "a dataclass, there and back again, no file"),
    "search/run.py": (1, "facts, there and back again, to be compared with those of a file"),
    "serve/http/bodies.py": (1, "a body, bounded, which msgspec has read by its type"),
    "serve/http/knock.py": (1, "a line of the parent's pipe"),
    "serve/recipe_edit.py": (5, "a recipe's text, which recipe.read has just read, and candidates for it"),
    "serve/triton/artifact_model.py": (1, "runs in the Python of Triton: what the server hands over"),
    "serve/triton/tokenizer_model.py": (1, "runs in the Python of Triton: what the server hands over"),
    "serve/triton/verify.py": (1, "runs beside a package, without bertc"),
    "source/assets.py": (1, "the text of a tokenizer that the tokenizers package has just written, no file"),
    "targets/_onnxruntime_cuda/kernels.py": (1, "a table in the package itself"),
    "targets/_tensorrt/adapter.py": (1, "what the worker process, a child, wrote before it ended"),
    "targets/_tensorrt/plugin_nodes.py": (1, "metadata that this process has written into its own graph"),
    "targets/_tensorrt/worker.py": (1, "the job that the parent process wrote for it"),
}
PARSERS = {("json", "loads"), ("json", "load"), ("tomllib", "loads"), ("tomllib", "load"), ("json", "JSONDecoder")}


def test_json_and_toml_are_read_in_one_place() -> None:
    found: dict[str, int] = {}
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
        count = sum((node.value.id, node.attr) in PARSERS for node in names if isinstance(node.value, ast.Name))
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module in ("json", "tomllib")]
        assert not any(alias.name.startswith("load") for node in imported for alias in node.names), path
        if count and path != COMPILER / "core" / "reading.py":
            found[path.relative_to(COMPILER).as_posix()] = count
    assert found == {place: count for place, (count, _) in READS_ITSELF.items()}
