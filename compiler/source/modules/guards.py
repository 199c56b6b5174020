"""Guards that torch.export cannot prove. It refuses a range of sizes unless it sees that a condition of its own holds at each;
arithmetic of two floors is beyond it. Here the condition is computed at each size.

A guard `!= 1` is about the sizes 0 and 1, which torch.export takes for constants of their own. The graph is traced above them,
and the export check runs it there.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

from ...core import Dim, names_of
from ..factory import FactoryModel

GUARD = re.compile(r"^Not all values of .*? satisfy the generated guard (.+?)\.?$")
SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
SPAN, FEW = 4096, 6  # sizes tried of the first dimension of a guard where it has no limit, and of each other one
WHOLE = 2**16  # up to a limit so large every size is tried; beyond, SPAN at each end and SPAN between
SMALL = re.compile(r"!= [01]$")
FUNCTIONS = {"min": min, "max": max, "IntInfinity": lambda: float("inf")}
ARITHMETIC = (
    ast.Call,
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Name, ast.Constant, ast.Load, ast.operator),
    *(ast.unaryop, ast.cmpop, ast.boolop),
)


@dataclasses.dataclass(frozen=True)
class Unproven:
    """The guards of a refusal. `least`: the size of a dimension from which those hold that hold from there on, to trace above it;
    `branches`: the sizes at which one holds and breaks that is more than torch.export's own 0 and 1. That is a branch of the
    model's code, and only a trial shows whether what was followed is right beyond it."""

    least: Mapping[str, int]
    branches: tuple[Branch, ...] = ()


@dataclasses.dataclass(frozen=True)
class Branch:
    """Sizes of one dimension on both sides of a guard, in order."""

    name: str
    holds: tuple[int, ...]
    breaks: tuple[int, ...]


def unproven(error: Exception, made: FactoryModel, dims: Mapping[str, Dim]) -> Unproven | None:
    """What a refusal is about; None where one of its guards is not made of declared sizes."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    told = [line for line in lines if line.startswith(("You marked", "Not all values"))]
    guards = [match[1] for line in told if (match := GUARD.match(line))]
    if not guards or len(guards) < len(told):
        return None
    found: dict[str, int] = {}
    branches = []
    # What is about 0 and 1 first: a lower bound that follows from it is no branch of the model's code.
    for guard in sorted(guards, key=lambda guard: SMALL.search(guard) is None):
        each = _sides(guard, made, dims)
        if each is None:
            return None
        least = max(each.breaks, default=dims[each.name].min - 1) + 1
        known = found.get(each.name, dims[each.name].min)
        if least <= example_size(made, each.name):
            found[each.name] = max(known, least)
        if least > example_size(made, each.name) or (SMALL.search(guard) is None and least > known):
            branches.append(each)
    return Unproven(found, tuple(branches))


def _sides(guard: str, made: FactoryModel, dims: Mapping[str, Dim]) -> Branch | None:
    """The first dimension of a guard, the sizes at which it holds whatever the others are, and the rest; None for no sizes."""
    names: list[str] = []

    def named(match: re.Match[str]) -> str:
        if match[1] not in made.dims:
            return match[0]
        dim = str(made.dims[match[1]][int(match[2])])
        names.extend(names_of([dim]))
        return f"({dim})"

    text = SIZE.sub(named, guard)
    tree = _arithmetic(text, set(names))
    if tree is None or not names or not set(names) <= set(dims):
        return None
    first, *others = dict.fromkeys(names)
    ranges = [_all_sizes(dims[first]), *(_few_sizes(dims[name]) for name in others)]
    code = compile(tree, "guard", "eval")
    broken = {
        sizes[0] for sizes in itertools.product(*ranges) if not _holds(code, dict(zip((first, *others), sizes, strict=True)))
    }
    return Branch(first, tuple(size for size in ranges[0] if size not in broken), tuple(sorted(broken)))


def _holds(code: Any, sizes: Mapping[str, int]) -> bool:
    try:
        return bool(eval(code, {"__builtins__": {}, **FUNCTIONS}, dict(sizes)))
    except ZeroDivisionError:  # a size of nothing, below those that the model takes
        return False


def _arithmetic(text: str, names: set[str]) -> ast.Expression | None:
    """A condition that is made of sizes and numbers alone."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return None
    nodes = list(ast.walk(tree))
    known = all(isinstance(node, ARITHMETIC) for node in nodes)
    return tree if known and {node.id for node in nodes if isinstance(node, ast.Name)} <= {*names, *FUNCTIONS} else None


def _all_sizes(dim: Dim) -> list[int]:
    """Every size up to the limit: what a claim of it rests on. Nobody tries all of a limit of hours of audio, or of none."""
    if dim.max is None:
        return list(range(dim.min, dim.min + SPAN + 1))
    if dim.max - dim.min <= WHOLE:
        return list(range(dim.min, dim.max + 1))
    between = range(dim.min, dim.max, (dim.max - dim.min) // SPAN)
    ends = (*range(dim.min, dim.min + SPAN), *range(dim.max - SPAN, dim.max + 1))
    return sorted({*ends, *between})


def _few_sizes(dim: Dim) -> list[int]:
    return list(range(dim.min, min(dim.max or dim.min + FEW, dim.min + FEW) + 1))


def example_size(made: FactoryModel, name: str) -> int:
    """The size of a dimension in the examples."""
    found = [e.shape[a] for n, e in made.inputs.items() for a, each in enumerate(made.dims[n]) if each == name]
    return int(min(found))
