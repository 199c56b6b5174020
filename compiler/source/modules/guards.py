"""Guards that torch.export cannot prove. It refuses a range of sizes unless it sees that a condition of its own holds at each;
arithmetic of two floors is beyond it. Here the condition is computed at each size.

A guard `!= 1` is about the sizes 0 and 1, which torch.export takes for constants of their own. The graph is traced above them,
and the export check runs it there.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator, Mapping

from ...core import Dim, names_of
from ..factory import FactoryModel

GUARD = re.compile(r"^Not all values of .*? satisfy the generated guard (.+?)\.?$")
SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
SPAN, FEW = 4096, 6  # sizes tried of the first dimension of a guard, and of each other one
SMALL = re.compile(r"!= [01]$")
FUNCTIONS = {"min": min, "max": max, "IntInfinity": lambda: float("inf")}
ARITHMETIC = (
    ast.Call,
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Name, ast.Constant, ast.Load, ast.operator),
    *(ast.unaryop, ast.cmpop, ast.boolop),
)


def provable_minimums(error: Exception, made: FactoryModel, dims: Mapping[str, Dim]) -> dict[str, int] | None:
    """{dimension: the size from which all guards of a refusal hold}; None where one of them is a limit of the model."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip(" -")]
    told = [line for line in lines if line.startswith(("You marked", "Not all values"))]
    guards = [match[1] for line in told if (match := GUARD.match(line))]
    if not guards or len(guards) < len(told):
        return None
    found: dict[str, int] = {}
    # What is about 0 and 1 first: a lower bound that follows from it is no branch of the model's code.
    for guard in sorted(guards, key=lambda guard: SMALL.search(guard) is None):
        least = _holds_from(guard, made, dims)
        if least is None:
            return None
        name, size = least
        if SMALL.search(guard) is None and size > found.get(name, dims[name].min):
            return None
        found[name] = max(found.get(name, 0), size)
    return found


def _holds_from(guard: str, made: FactoryModel, dims: Mapping[str, Dim]) -> tuple[str, int] | None:
    """(the first dimension of a guard, the size from which it holds); None where it does not hold at the example or above."""
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
    ranges = [list(_sizes(dims[name], SPAN if name == first else FEW)) for name in (first, *others)]
    code = compile(tree, "guard", "eval")
    broken = [
        sizes[0]
        for sizes in itertools.product(*ranges)
        if not eval(code, {"__builtins__": {}, **FUNCTIONS}, dict(zip((first, *others), sizes, strict=True)))
    ]
    least = max(broken) + 1 if broken else dims[first].min
    return (first, least) if least <= _example(made, first) else None


def _arithmetic(text: str, names: set[str]) -> ast.Expression | None:
    """A condition that is made of sizes and numbers alone."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return None
    nodes = list(ast.walk(tree))
    known = all(isinstance(node, ARITHMETIC) for node in nodes)
    return tree if known and {node.id for node in nodes if isinstance(node, ast.Name)} <= {*names, *FUNCTIONS} else None


def _sizes(dim: Dim, count: int) -> Iterator[int]:
    return iter(range(dim.min, min(dim.max or dim.min + count, dim.min + count) + 1))


def _example(made: FactoryModel, name: str) -> int:
    found = [e.shape[a] for n, e in made.inputs.items() for a, each in enumerate(made.dims[n]) if each == name]
    return int(min(found))
