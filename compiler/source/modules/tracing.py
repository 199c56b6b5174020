"""A module through torch.export, with its declared sizes dynamic."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...core import Dim, derived
from ..factory import FactoryModel, dims_of
from .branches import agrees, examples
from .caches import without_caches
from .calling import call_arguments, eager, model_name
from .guards import unproven
from .pooling import dynamic_pooling
from .recurrent import as_operators
from .refusals import explain


def trace(made: FactoryModel) -> tuple[Any, dict[Any, Callable[..., Any]]]:
    """(the exported program, the translations that torch.onnx.export needs for it). Raises SourceError for what is refused."""
    # torch.export makes one input of two that are the same tensor, and the graph then reads one name for both.
    args, kwargs = call_arguments(made, {name: example.clone() for name, example in made.inputs.items()})
    dims = dims_of(made)
    with as_operators(made.module) as translations, without_caches(made.module), dynamic_pooling(), eager():
        try:
            return _export(made, args, kwargs, dims), translations
        except Exception as error:  # the exporter raises what the model's code raises
            program = _left_free(made, args, kwargs, dims) or _again(made, dims, error)
            if program is not None:
                return program, translations
            # Where no size is dynamic it may be refused for another reason: that one is to be told, or the advice would not work.
            raise explain(_refused_anyway(made, args, kwargs) or error, made, model_name(made)) from error


def _left_free(made: FactoryModel, args: Any, kwargs: Any, dims: Mapping[str, Dim]) -> Any | None:
    """The program where computed sizes are for torch.export to find: it fails on `length - 2` where a slice makes it."""
    axes = [dim for each in made.dims.values() for dim in each if isinstance(dim, str)]
    if not any(map(derived, axes)):
        return None
    try:
        return _export(made, args, kwargs, dims, free=True)
    except Exception:  # noqa: BLE001  the first refusal is told
        return None


def _again(made: FactoryModel, dims: Mapping[str, Dim], error: Exception) -> Any | None:
    """The program without the guards that were not proven: they are left to run time then, which an ONNX graph does not keep.

    One that holds at every size says nothing. One that does not is a branch, and the program must be right on both its sides.
    """
    found = unproven(error, made, dims)
    if found is None:
        return None
    above = {name: dataclasses.replace(dim, min=max(dim.min, found.least.get(name, dim.min))) for name, dim in dims.items()}
    for each in examples(made, found.branches):
        args, kwargs = call_arguments(each, {name: example.clone() for name, example in each.inputs.items()})
        try:
            program = _export(each, args, kwargs, above, prefer_deferred_runtime_asserts_over_guards=True)
            if not found.branches or agrees(program, made, found.branches):
                return program
        except Exception:  # noqa: BLE001  the first refusal is told
            continue
    return None


def _export(made: FactoryModel, args: Any, kwargs: Any, dims: Mapping[str, Dim], free: bool = False, **options: Any) -> Any:
    symbols = {name: torch.export.Dim(name, min=dim.min, max=dim.max) for name, dim in dims.items()}
    shapes = {n: {a: _size(d, symbols, free) for a, d in enumerate(made.dims[n]) if isinstance(d, str)} for n in made.inputs}
    dynamic = {name: shapes[name] for name in kwargs} if kwargs else tuple(shapes.values())
    return torch.export.export(made.module, args, kwargs, dynamic_shapes=dynamic, strict=False, **options)


def _size(dim: str, symbols: Mapping[str, Any], free: bool) -> Any:
    """A size as torch.export takes it: a symbol, or one computed from a symbol. A sum of symbols it finds itself."""
    computed = derived(dim)
    if computed is None:
        return symbols[dim]
    if free or len(computed.factors) > 1:
        return torch.export.Dim.AUTO
    name, factor = computed.factors[0]
    size = symbols[name] if factor == 1 else factor * symbols[name]
    return size + computed.offset if computed.offset > 0 else size - -computed.offset if computed.offset else size


def _refused_anyway(made: FactoryModel, args: Any, kwargs: Any) -> Exception | None:
    try:
        torch.export.export(made.module, args, kwargs, strict=False)
    except Exception as error:  # noqa: BLE001  as above
        return error
    return None
