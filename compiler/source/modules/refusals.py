"""What torch.export refuses, in the terms of the model's own code: which dimension, which line, what to write there."""

from __future__ import annotations

import ast
import inspect
import os
import re
import textwrap
import traceback
from collections.abc import Iterator

import torch
from torch import nn

from ...core import SourceError, names_of
from ..factory import FactoryModel
from ..loading import root_cause

FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")
LOOPS = (ast.For, ast.While, ast.ListComp, ast.GeneratorExp)
BOUNDED = re.compile(r"(\w+) = Dim\('\w+', ([^)]*)\)")
DATA = ("data-dependent", "DataDependent", "_local_scalar_dense", "unbacked")


def explain(error: Exception, made: FactoryModel, name: str) -> SourceError:
    """The exporter's refusal as an error that names the dimension, where it is about one, and the line of the model's code."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if lines and "Constraints violated" in lines[0]:
        return SourceError(f"{name}: {_about_dims(lines, made)}")
    if any(word in str(error) or word in type(error).__name__ for word in DATA):
        where = _raised_at(error) or _loop(made.module)
        return SourceError(
            f"{name} cannot be exported: its Python code asks for the values of a tensor{where}, and a graph has none "
            "before it runs (data-dependent). Write a branch with torch.where, and a loop over rows with a mask over all of them"
        )
    return SourceError(f"{name} cannot be exported: {root_cause(error)}")


def _about_dims(lines: list[str], made: FactoryModel) -> str:
    detail = next((line for line in lines[1:] if line.startswith(("You marked", "Not all values"))), lines[0])
    violated = lines[0].partition("(")[2]
    ports = [(dim, name) for name in made.inputs for dim in names_of(d for d in made.dims[name] if isinstance(d, str))]
    named = [(d, n) for d, n in ports if re.search(rf"\b{d}\b", detail) or re.search(rf"\b{d}\b", violated)]
    dim, name = named[0] if named else ("?", "?")
    fixes = [f for f in lines if f.startswith(f"{dim} = ")]
    if fixes and fixes[-1].partition(" = ")[2] in {d for d, _ in ports}:
        return f"dimension {dim!r} of input {name!r} always equals {fixes[-1].partition(' = ')[2]!r}; give both one name"
    fixed = FIXED.search(detail)
    if fixed:
        dims = tuple(int(fixed[1]) if each == dim else each for each in made.dims[name])
        return (
            f"dimension {dim!r} of input {name!r} is fixed at {fixed[1]} by the model's code{_loop(made.module)}: torch.export "
            f"follows Python once, with the sizes of the example. Write it with operators over the whole axis, or give the size "
            f"as a number wherever {dim!r} stands, as in dims {{{name!r}: {dims}}}"
        )
    found = _bounds(lines)
    if dim in found:
        limits = {**(made.limits or {}), **found}
        return (
            f"dimension {dim!r} of input {name!r} ends at {found[dim][1]} in the code that the example runs through (a table of "
            f"positions, or a branch on the size); where the model ends there, say so: limits={limits}"
        )
    hint = f" (torch.export suggests: {fixes[-1]})" if fixes else ""
    return f"dimension {dim!r} of input {name!r} does not take every size it was declared for: {detail}{hint}"


def _bounds(lines: list[str]) -> dict[str, tuple[int, int]]:
    """What torch.export found of each dimension, as `length = Dim('length', max=64)`, in the form of a factory's limits.

    A smallest size is mostly no end of the model: the example went past a branch.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, said in (match.groups() for line in lines if (match := BOUNDED.fullmatch(line))):
        ends = dict(each.split("=") for each in said.replace(" ", "").split(",") if "=" in each)
        if "min" not in ends and "max" in ends:
            found[name] = (1, int(ends["max"]))
    return found


def _raised_at(error: BaseException) -> str:
    """The last line of the model's own code on the way to an error, as ` (file.py, line 7: if ...)`."""
    inside = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.isfile(f.filename)]
    own = [(f.filename, f.lineno or 0) for f in frames if not f.filename.startswith(inside)]
    return f" ({os.path.basename(own[-1][0])}, line {own[-1][1]}{_line(*own[-1])})" if own else ""


def _line(path: str, number: int) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return f": {file.read().splitlines()[number - 1].strip()}"
    except (OSError, IndexError, UnicodeDecodeError):  # code made in an interpreter
        return ""


def _loop(module: nn.Module) -> str:
    """The first Python loop in the code of a module that is not PyTorch's own, as ` (file.py, line 7: for ...)`."""
    seen: set[type] = set()
    for each in module.modules():
        if type(each) in seen or type(each).__module__.startswith("torch."):
            continue
        seen.add(type(each))
        for path, number in _loops(type(each)):
            return f" ({os.path.basename(path)}, line {number}{_line(path, number)})"
    return ""


def _loops(kind: type) -> Iterator[tuple[str, int]]:
    try:
        path = str(inspect.getsourcefile(kind))
        lines, first = inspect.getsourcelines(kind.forward)  # type: ignore[attr-defined]
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):  # no source
        return
    found = [node for node in ast.walk(tree) if isinstance(node, LOOPS)]
    yield from ((path, first + node.lineno - 1) for node in sorted(found, key=lambda node: node.lineno))
