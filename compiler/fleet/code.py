"""Which source files a piece of code is made of, read from its import statements; nothing is imported to find out."""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
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
    text = path.read_text("utf-8")
    for node in _imports(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else folder
            parts = (node.module or "").split(".") if node.module else []
            found |= _files(base, parts)
            for alias in node.names:
                found |= _files(base, [*parts, alias.name]) | _behind_face(base.joinpath(*parts), alias.name)
                package, called = base.joinpath(*parts, alias.name), alias.asname or alias.name
                used = re.findall(rf"\b{called}\.(\w+)", text) if _face(package) else ()
                found |= {file for name in used for file in _behind_face(package, name)}
        else:
            found |= {f for alias in node.names for f in _files(folder, alias.name.split("."))}
    return frozenset(found - {path})


@functools.cache
def _face(package: Path) -> Mapping[str, tuple[str, ...]]:
    """{a name that a package hands out: the module it comes from}, as its __init__.pyi lists them; {} for one without."""
    stub = package / "__init__.pyi"
    listed = ast.parse(stub.read_text("utf-8")).body if stub.is_file() else []
    imports = [node for node in listed if isinstance(node, ast.ImportFrom)]
    return {a.name: tuple((node.module or a.name).split(".")) for node in imports for a in node.names}


def _behind_face(package: Path, name: str) -> set[Path]:
    """The file that a name of a package's face comes from: what else the face lists is not run for it."""
    module = _face(package).get(name)
    return _files(package, list(module)) if module else set()


def _imports(block: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements anywhere in the statements of a file; only statements are walked, expressions hold none."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for node in getattr(block, part, ()):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                continue
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node
            elif isinstance(node, ast.AST):
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
    if top == __package__.partition(".")[0] and rest[:1] == ["recipes"]:
        return _made_of(_under(_recipes(), rest[1:]))  # a folder of its own in an editable install
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
    names = {name for path in files for name in _outside(path)} - sys.stdlib_module_names
    return files, {name: version for name in sorted(names) if (version := _version(name))}


def _version(module: str) -> str | None:
    """Of the distribution that a module comes from, None for one that comes from none."""
    try:
        return metadata.version(module)  # most are named alike, and asking all of them takes a second
    except metadata.PackageNotFoundError:
        found = _distributions().get(module)
        return metadata.version(found[0]) if found else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


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
