"""Dimensions of a model whose factory names none: which sizes its code leaves free, and which of them are one size.

torch.export is asked for a graph with every size free. Those that the code fixes (a hidden width, a number of heads) come back as
numbers, those that it ties (ids and their mask) as one symbol. The export check then runs sizes that nobody tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...core import AUDIO_DIM, SourceError, affine, first_line
from ..factory import FactoryModel
from ..silence import quiet
from .calling import call_arguments, call_order, eager, exportable, model_name
from .recurrent import as_operators
from .refusals import explain

LEAST_SAMPLES = 400  # of a float input [batch, n]: 25 ms at 16 kHz; fewer are features


def find_dims(made: FactoryModel) -> tuple[FactoryModel, list[str]]:
    """The model with dims, and notes of what was found and of what stays 1.

    Raises SourceError where torch.export refuses the module."""
    given = made
    made, notes = _with_two_rows(made)
    called = exportable(made)
    args, kwargs = call_arguments(called, {name: example.clone() for name, example in made.inputs.items()})
    free = {n: dict.fromkeys(range(e.dim()), torch.export.Dim.AUTO) for n, e in made.inputs.items()}
    shapes = {name: free[name] for name in kwargs} if kwargs else tuple(free[name] for name in made.inputs)
    with quiet(), torch.no_grad(), eager(), as_operators(called.module):
        try:
            program = torch.export.export(called.module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # the exporter raises what the model's code raises
            unnamed = made._replace(dims={name: example.shape for name, example in made.inputs.items()})
            raise explain(error, unnamed, model_name(made)) from error
    found = dict(zip(call_order(called), _user_inputs(program), strict=True))
    least = _least(program)
    counts = {str(size): int(made.inputs[n].shape[a]) for n in made.inputs for a, size in enumerate(found[n])}
    # As many as the code reads one by one: layers of a stack. The exporter only says that there are no fewer.
    found = {n: [counts[str(s)] if least.get(str(s)) == counts[str(s)] else s for s in sizes] for n, sizes in found.items()}
    names = _names(made, found)
    dims = {name: tuple(_renamed(size, names) for size in found[name]) for name in made.inputs}
    shown = ", ".join(f"{name} [{', '.join(map(str, each))}]" for name, each in dims.items())
    notes.append(f"the factory names no dims; torch.export finds {shown}; name them with FactoryModel(module, inputs, dims)")
    return made._replace(dims=dims), [*notes, *_ones(given, dims)]


def _least(program: Any) -> dict[str, int]:
    """{symbol: the smallest size that the code takes}, of those above the 2 that torch.export takes for granted."""
    found = {str(symbol): int(each.lower) for symbol, each in program.range_constraints.items() if each.lower.is_finite}
    return {symbol: lower for symbol, lower in found.items() if lower > 2}


def _ones(given: FactoryModel, dims: dict[str, tuple[int | str, ...]]) -> list[str]:
    """A note of every axis that is 1 in the example and stays so: torch.export takes 1 for a constant."""
    shapes = {name: example.shape for name, example in given.inputs.items()}
    stay = {name: [axis for axis, dim in enumerate(each) if dim == 1 == shapes[name][axis]] for name, each in dims.items()}
    listed = [f"axis {', '.join(map(str, axes))} of {name!r}" for name, axes in stay.items() if axes]
    if not listed:
        return []
    return [f"stays 1, as in the example: {'; '.join(listed)}; where it may be more, give an example with 2 there"]


def _with_two_rows(made: FactoryModel) -> tuple[FactoryModel, list[str]]:
    """torch.export takes a size of 1 for a constant: a single row is doubled, where the model takes two.

    Rows are axis 0, and axis 1 of what has more in front: a stack of caches [layers, 1, heads, past, width].
    """
    rows = {name: 0 for name, example in made.inputs.items() if example.dim() and example.shape[0] == 1}
    others = {name: example for name, example in made.inputs.items() if example.dim() and name not in rows}
    stacks = {name: 1 for name, example in others.items() if example.dim() > 2 and example.shape[1] == 1}
    if not rows or (others and not stacks):  # beside examples of more rows, 1 is spread over them
        return made, []
    refused = ""
    for axes in ({**rows, **stacks}, rows) if stacks else (rows,):
        wider = made._replace(inputs={n: torch.cat([e, e], axes[n]) if n in axes else e for n, e in made.inputs.items()})
        args, kwargs = call_arguments(wider, wider.inputs)
        try:
            with torch.no_grad(), quiet(), eager():
                made.module(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  the user's own code
            refused = refused or first_line(error)
            continue
        listed = ", ".join(f"axis {axis} of {name!r}" for name, axis in axes.items())
        return wider, [f"the example has one row: the batch was found by trying two ({listed})"] if others else []
    return made, [f"the batch is fixed at 1: the model does not take two rows ({refused})"]


def _user_inputs(program: Any) -> Iterator[list[int | str]]:
    """Sizes of each input: a number, or the expression of its symbol."""
    wanted = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta["val"]
            sizes = value.shape if isinstance(value, Tensor) else ()
            yield [_size(size) for size in sizes]


def _size(size: Any) -> int | str:
    """A number, also where it is one behind a symbol, or the expression of a symbol."""
    expression = str(size if isinstance(size, int) else size.node.expr)
    return int(expression) if expression.isdecimal() else expression


def _names(made: FactoryModel, found: dict[str, list[int | str]]) -> dict[str, str]:
    """{symbol: the name of its dimension}."""
    names: dict[str, str] = {}
    for name, example in made.inputs.items():
        for axis, size in enumerate(found[name]):
            if not isinstance(size, str) or not size.isidentifier() or size in names:
                continue
            wanted = f"{name}_d{axis}".replace(".", "_")
            if axis == 0 and example.dim() > 1:
                wanted = "batch"
            elif axis == 1:
                audio = example.dim() == 2 and example.is_floating_point() and example.shape[1] >= LEAST_SAMPLES
                wanted = AUDIO_DIM if audio else "length"
            names[size] = wanted if wanted not in names.values() else f"{name}_d{axis}".replace(".", "_")
    return names


def _renamed(size: int | str, names: dict[str, str]) -> int | str:
    if isinstance(size, int):
        return size
    computed = affine(size)
    if computed is None or not set(computed.names) <= names.keys():
        raise SourceError(f"the factory names no dims, and one is {size} in the exported graph; return a FactoryModel with dims")
    return str(computed.renamed(names))
