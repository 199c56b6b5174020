"""Sizes that are computed from others: the `past + 1` of a decoder's mask, `2*length`, `length - 2`, `past + length`.

A dimension of an input is a number, a name, or such an expression of names; what is none of these is a name that a tool made up.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections.abc import Iterable, Mapping

ALLOWED_SIZES = (
    "'past + 1', '2*length', 'length - 2' or 'past + length': a sum of whole numbers and of names times whole numbers above 0"
)


@dataclasses.dataclass(frozen=True)
class Affine:
    """offset + the sum of factor * size; the factors are above 0."""

    factors: tuple[tuple[str, int], ...]
    offset: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.factors)

    def at(self, sizes: Mapping[str, int]) -> int:
        return self.offset + sum(factor * sizes[name] for name, factor in self.factors)

    def renamed(self, names: Mapping[str, str | int]) -> Affine:
        """With other names, and numbers in the place of some."""
        found, offset = dict[str, int](), self.offset
        for name, factor in self.factors:
            new = names.get(name, name)
            if isinstance(new, int):
                offset += factor * new
            else:
                found[new] = found.get(new, 0) + factor
        return Affine(tuple(found.items()), offset)

    def __str__(self) -> str:
        terms = [name if factor == 1 else f"{factor}*{name}" for name, factor in self.factors]
        text = " + ".join(terms) or str(self.offset)
        return text if not terms or not self.offset else f"{text} {'-' if self.offset < 0 else '+'} {abs(self.offset)}"

    def same(self, other: Affine | None) -> bool:
        """Whether another one is the same sum, in whatever order."""
        return other is not None and dict(self.factors) == dict(other.factors) and self.offset == other.offset


@functools.lru_cache(maxsize=1024)
def affine(text: str) -> Affine | None:
    """A name, or a sum of names and numbers; None for what is neither."""
    if text.isidentifier():
        return Affine(((text, 1),), 0)
    try:
        found = _terms(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ast.parse raises all of them
        return None
    if found is None:
        return None
    factors = tuple((name, factor) for name, factor in found.items() if name and factor)
    if not factors or any(factor < 0 for _, factor in factors):
        return None
    return Affine(factors, found.get("", 0))


def _terms(node: ast.expr) -> dict[str, int] | None:
    """{name: factor}, the number under ""."""
    if isinstance(node, ast.Name):
        return {node.id: 1}
    if isinstance(node, ast.Constant):
        return {"": node.value} if type(node.value) is int else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _scaled(_terms(node.operand), -1 if isinstance(node.op, ast.USub) else 1)
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _terms(node.left), _terms(node.right)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.Add | ast.Sub):
        right = _scaled(right, -1 if isinstance(node.op, ast.Sub) else 1)
        return {name: left.get(name, 0) + (right or {}).get(name, 0) for name in {**left, **(right or {})}}
    if isinstance(node.op, ast.Mult):
        numbers = [each.get("", 0) for each in (left, right) if not set(each) - {""}]
        return _scaled(right if not set(left) - {""} else left, numbers[0]) if numbers else None
    return None


def _scaled(terms: dict[str, int] | None, by: int) -> dict[str, int] | None:
    return None if terms is None else {name: factor * by for name, factor in terms.items()}


def derived(dim: int | str) -> Affine | None:
    """What a dimension is computed from; None for a number, a name, and what is no sum of names."""
    return None if isinstance(dim, int) or dim.isidentifier() else affine(dim)


def names_of(dims: Iterable[int | str]) -> tuple[str, ...]:
    """The names of some dimensions, those in expressions too, in order of appearance."""
    found: dict[str, None] = {}
    for dim in dims:
        if isinstance(dim, str):
            computed = derived(dim)
            found |= dict.fromkeys(computed.names if computed else (dim,))
    return tuple(found)


def size_at(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension where its names have these sizes."""
    if isinstance(dim, int):
        return dim
    computed = derived(dim)
    return computed.at(sizes) if computed else sizes[dim]
