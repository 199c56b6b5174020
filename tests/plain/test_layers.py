"""The shape of the package: imports point down, torch stays in its corner, files stay small, the wheel is complete."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = ROOT / "compiler"
# Top to bottom: a module imports only what stands below it (at module level; a late import inside a function may look up).
ORDER = (
    "__main__ cli commands fleet pipeline doctor inspection_diff inspection bench baselines recipe_file page calibrate "
    "quant work timings explaining verification smallest drift boundaries bisection putback originals export_check fuse "
    "opset recipe report targets prove proof_feeds activations subgraph canonical fusions cleanup dims sizes shapes "
    "families limits rewrite ranges places meter artifact precision value_ranges source onnx_source torch_export heads "
    "exported assets hub checkpoint factory reference metrics closeness scores confidence decisions goldens rows "
    "tensor_stats thresholds histogram buckets traffic readers labels tables data text progress runner padding profiles "
    "bodies builder plots graph origin onnx_file collector errors"
).split()
TORCH_ALLOWED = {"torch_export.py", "heads.py", "factory.py", "baselines.py"}


def modules() -> list[Path]:
    return sorted(p for p in COMPILER.rglob("*.py") if "__pycache__" not in p.parts)


def imported(path: Path) -> set[str]:
    """bertc modules imported at module level, by their first name; TYPE_CHECKING blocks count for nothing at run time."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(COMPILER).parts
            if node.level < len(package):  # inside targets/ or precision/
                continue
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(COMPILER).as_posix())
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(COMPILER).parts
    own = parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in ORDER, f"{own} has no place in the order of modules: add it to ORDER"
    upward = [name for name in imported(path) if name != own and name in ORDER and ORDER.index(name) < ORDER.index(own)]
    assert not upward, f"{own} imports {upward}, which stand above it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(COMPILER).as_posix())
def test_torch_and_size(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.name not in TORCH_ALLOWED:
        assert not re.search(r"^\s*(import|from) (torch|transformers)\b", text, re.MULTILINE) or path.name == "assets.py"
    assert len(text.splitlines()) <= 400


def test_packages_match_the_folders_on_disk() -> None:
    """A sub-package missing from the list works in an editable install and vanishes from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    on_disk = {"bertc", "bertc.plugins", "bertc.recipes"}
    on_disk |= {f"bertc.{p.parent.name}" for p in COMPILER.glob("*/__init__.py")}
    assert set(settings["packages"]) == on_disk
    for folder in settings["package-dir"].values():
        assert (ROOT / folder / "__init__.py").is_file()


def test_no_machine_path_in_any_file() -> None:
    """The project speaks of bertc alone."""
    for path in ROOT.rglob("*"):
        tracked = path.suffix in (".py", ".md", ".toml", ".txt", ".log") and not {".venv", ".mypy", "out"} & set(path.parts)
        if path.is_file() and tracked and path != Path(__file__):
            assert not re.search(r"/work/|/root/|/home/", path.read_text("utf-8", "replace")), path
