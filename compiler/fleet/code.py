"""Which source files a piece of code is made of, read from its import statements; nothing is imported to find out."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def closure(roots: Iterable[Path], folder: Path, stop: frozenset[Path] = frozenset()) -> list[Path]:
    """The roots and every file below `folder` that they import, directly or not. Files in `stop` count for nothing."""
    found: set[Path] = set()
    waiting = [path for path in roots if path not in stop]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [each for each in local_imports(path, folder) if each not in stop]
    return sorted(found)


@functools.cache
def local_imports(path: Path, folder: Path) -> frozenset[Path]:
    """Files below `folder` that a file imports, inside functions too. What stands under TYPE_CHECKING does not run."""
    found: set[Path] = set()
    for node in _imports(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else folder
            parts = (node.module or "").split(".") if node.module else []
            found |= _files(base, parts) | {f for alias in node.names for f in _files(base, [*parts, alias.name])}
        else:
            found |= {f for alias in node.names for f in _files(folder, alias.name.split("."))}
    return frozenset(found - {path})


def _imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from _imports(node)


def _files(base: Path, parts: list[str]) -> set[Path]:
    """The file of a module and the __init__.py of each package on the way to it; empty where there is none."""
    packages = {base.joinpath(*parts[: n + 1], "__init__.py") for n in range(len(parts))}
    module = {base.joinpath(*parts[:-1], f"{parts[-1]}.py")} if parts else set()
    return {path for path in packages | module if path.is_file()}


def factory_files(reference: str) -> tuple[list[Path], dict[str, str]]:
    """(the source files of `package.module:function`, {other top-level module that they import: version of its distribution}).

    The files are those below the folder that holds the package or module; both are () and {} for a module that is not found.
    """
    name = reference.partition(":")[0]
    top, *rest = name.split(".")
    spec = importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if (spec is None and top == PACKAGE.name) or top == __package__.partition(".")[0]:
        return _made_of(_under(PACKAGE if rest[:1] != ["recipes"] else _recipes(), rest[1:] if rest[:1] == ["recipes"] else rest))
    if spec is None or spec.origin is None:
        return [], {}
    origin = Path(spec.origin)
    return _made_of(_under(origin.parent, rest) if origin.name == "__init__.py" else origin)


def _recipes() -> Path:
    from importlib import resources

    return Path(str(resources.files(f"{__package__.partition('.')[0]}.recipes")))


def _under(folder: Path, rest: list[str]) -> Path:
    file = folder.joinpath(*rest)
    return file.with_suffix(".py") if file.with_suffix(".py").is_file() and rest else file / "__init__.py"


def _made_of(file: Path) -> tuple[list[Path], dict[str, str]]:
    if not file.is_file():
        return [], {}
    files = closure([file], file.parent)
    names = {name for path in files for name in _outside(path)}
    distributions = metadata.packages_distributions()
    return files, {n: metadata.version(distributions[n][0]) for n in sorted(names) if n in distributions}


def _outside(path: Path) -> Iterator[str]:
    for node in _imports(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)


def is_function(reference: str) -> bool:
    """Whether the name behind the colon is a function in the module's own text: then the module need not be imported to know."""
    name = reference.partition(":")[2]
    files, _ = factory_files(reference)
    own = [f for f in files if f.stem == reference.partition(":")[0].rpartition(".")[2] or f.name == "__init__.py"]
    trees = [ast.parse(path.read_text("utf-8")) for path in own]
    return any(isinstance(node, ast.FunctionDef) and node.name == name for tree in trees for node in tree.body)
