"""Is a program that followed one side of a branch on sizes right on the other side too? It is run there, beside the module.

`if x.shape[1] < n: x = pad(x, n - x.shape[1])` is right for every length on the side that pads, and on the other one for none but
its own: what was traced decides, so the other side is traced where the first one fails.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..factory import FactoryModel
from .calling import call_arguments, output_names, outputs_to_arrays
from .guards import Branch, example_size

TRIED = 6  # sizes on each side of a guard that a program is run at
OTHERS = 2  # examples on the other side of a guard that are traced
TOLERANCE = 1e-4  # relative, float32 on both sides by the same kernels; a branch that matters moves an output by far more


def examples(made: FactoryModel, branches: Sequence[Branch]) -> Iterator[FactoryModel]:
    """The model with its own example, then with examples of sizes at which a guard breaks."""
    yield made
    for branch in branches:
        own = example_size(made, branch.name)
        near = sorted((size for size in branch.breaks if size > 1), key=lambda size: (size < own, abs(size - own)))
        for size in near[:OTHERS]:
            yield made._replace(inputs=at_sizes(made, {branch.name: size}))


def at_sizes(made: FactoryModel, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """The examples with some of their dimensions longer (from the beginning again) or shorter."""
    found = {}
    for name, example in made.inputs.items():
        for axis, dim in enumerate(made.dims[name]):
            if isinstance(dim, str) and dim in sizes:
                example = example.index_select(axis, torch.arange(sizes[dim]) % example.shape[axis])
        found[name] = example
    return found


def agrees(program: Any, made: FactoryModel, branches: Sequence[Branch]) -> bool:
    """Whether an exported program gives what the module gives, at sizes on both sides of every guard."""
    run = _without_asserts(program)
    names = output_names(made)
    for branch in branches:
        for size in (*_spread(branch.breaks), *_spread(branch.holds)):
            args, kwargs = call_arguments(made, at_sizes(made, {branch.name: size}))
            with torch.no_grad():
                wanted = outputs_to_arrays(made.module(*args, **kwargs), names)
                found = outputs_to_arrays(run(*args, *kwargs.values()), names)
            if any(not _close(found[name], wanted[name]) for name in names):
                return False
    return True


def _without_asserts(program: Any) -> Callable[..., Any]:
    """Tensors in, tensors out, as ONNX has it: no guard is kept. Node by node, because a call of the module checks its sizes."""
    module = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.op == "call_function" and "assert" in str(node.target)]:
        module.graph.erase_node(node)
    return functools.partial(torch.fx.Interpreter(module).run, enable_io_processing=False)


def _spread(sizes: Sequence[int]) -> list[int]:
    """A few of them, the first and the last among them."""
    return [sizes[at] for at in sorted({*np.linspace(0, len(sizes) - 1, TRIED).round().astype(int)})] if sizes else []


def _close(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape:
        return False
    peak = float(np.abs(wanted).max(initial=0.0)) or 1.0
    return bool(np.abs(found - wanted).max(initial=0.0) <= TOLERANCE * peak)
