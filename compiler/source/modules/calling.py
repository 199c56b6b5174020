"""How a module is called, and what it gives back: tensors by name in, tensors by name out."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core import Feeds, Outputs, SourceError
from .. import heads
from ..factory import FactoryModel
from ..loading import root_cause
from ..silence import quiet

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Modules whose forward is open (*args, **kwargs), and whether they take their inputs by name: tried once, on the example.
_by_name: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


def eager() -> contextlib.AbstractContextManager[Any]:
    """What is decorated with torch.compile runs as plain PyTorch: that is the truth, and nothing is compiled for it."""
    # Not imported for this alone, which takes a second: what was compiled has imported it.
    compiled = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()


def model_name(made: FactoryModel) -> str:
    inner = getattr(made.module, "model", None)
    return type(inner if isinstance(made.module, heads.TextHead | heads.Audio | _Called) else made.module).__name__


def _parameters(module: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(module.forward).parameters


def _named(module: nn.Module) -> set[str]:
    return {name for name, each in _parameters(module).items() if each.kind not in (*VARIABLE, inspect.Parameter.POSITIONAL_ONLY)}


def call_order(made: FactoryModel) -> list[str]:
    """Input names in the order of forward's parameters, where they match; else in the declared order."""
    parameters = _parameters(made.module)
    matching = set(made.inputs) <= _named(made.module)
    return [name for name in parameters if name in made.inputs] if matching else list(made.inputs)


def call_arguments(made: FactoryModel, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Tensors by name, where forward has parameters of these names or takes any; else by position."""
    if set(made.inputs) <= _named(made.module) or _takes_any_name(made):
        return (), {name: tensors[name] for name in call_order(made)}
    return tuple(tensors[name] for name in made.inputs), {}


def _takes_any_name(made: FactoryModel) -> bool:
    """Whether forward(**kwargs) takes the inputs by name. What it hands them on to need not know the names: this is tried."""
    kinds = {each.kind for each in _parameters(made.module).values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return False
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return True
    if made.module not in _by_name:
        try:
            with torch.no_grad(), quiet(), eager():
                made.module(**made.inputs)
            _by_name[made.module] = True
        except TypeError:  # the names of its parameters are others
            _by_name[made.module] = False
    return _by_name[made.module]


def output_names(made: FactoryModel) -> tuple[str, ...]:
    """Names of the module's outputs, given or derived; runs it on its example. Raises SourceError for what is no tensor."""
    names, tensors = _flat(_result(made))
    for name, value in zip(names, tensors, strict=True):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise SourceError(
                f"{model_name(made)} returns a {kind} as {name}; expected tensors in tuples, lists or dicts, or None"
            )
    if not names:
        raise SourceError(f"{model_name(made)} returns no tensor; expected one, or tuples, lists or dicts of them")
    if made.outputs is not None and len(made.outputs) != len(names):
        raise SourceError(f"{model_name(made)} returns {len(names)} tensors, {len(made.outputs)} output names are given")
    wanted = tuple(made.outputs or names)
    for position, name in enumerate(wanted):
        if name in made.inputs or name in wanted[:position]:
            what = "an input" if name in made.inputs else "another output"
            raise SourceError(f"{model_name(made)}: output {name!r} has the name of {what}; give `outputs` with other names")
    return wanted


def output_notes(made: FactoryModel) -> list[str]:
    """What is left out of the outputs, and where each comes from in a nest."""
    missing = [name for name, value in _leaves(_result(made), ()) if value is None]
    return [f"outputs that are None are left out: {', '.join(map(_joined, missing))}"] if missing else []


def _result(made: FactoryModel) -> Any:
    args, kwargs = call_arguments(made, made.inputs)
    try:
        with torch.no_grad(), quiet(), eager():
            return made.module(*args, **kwargs)
    except Exception as error:  # the user's own code
        raise SourceError(f"{model_name(made)} fails on its own example: {root_cause(error)}") from error


Path = tuple[str, ...]


def _flat(result: Any) -> tuple[list[str], list[Any]]:
    found = [(path, value) for path, value in _leaves(result, ()) if value is not None]
    return [_joined(path) for path, _ in found], [value for _, value in found]


def _joined(path: Path) -> str:
    if not path:
        return "output"
    return f"output_{'_'.join(path)}" if path[0].isdecimal() else "_".join(path)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """What is in a nest of dicts, tuples, lists and dataclasses, depth first, under the keys that lead there."""
    parts = _parts(value)
    if parts is None:
        yield path, value
        return
    for key, part in parts:
        yield from _leaves(part, (*path, str(key)))


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        return list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return None


def exportable(made: FactoryModel) -> FactoryModel:
    """The same model in a form that torch.export takes: one parameter an input, a flat tuple of tensors back.

    It is `made` itself where it has that form, so that the module paths of its nodes stay.
    """
    result = _result(made)
    parts = _parts(result) or []
    open_ = any(each.kind in VARIABLE for each in _parameters(made.module).values()) and not set(made.inputs) <= _named(
        made.module
    )
    plain = isinstance(result, Tensor) or (parts and all(isinstance(part, Tensor) for _, part in parts))
    registered = isinstance(result, Tensor | tuple | list | Mapping)
    return made if plain and registered and not open_ else made._replace(module=_Called(made))


class _Called(nn.Module):
    """Takes the inputs of a model as parameters of its forward, and gives back its tensors one after the other."""

    def __init__(self, made: FactoryModel) -> None:
        super().__init__()
        self.model = made.module
        self._made, self.training = made, False
        names = [f"input_{position}" for position in range(len(made.inputs))]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        self.forward = _with_signature(self._call, inspect.Signature(parameters))

    def _call(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = call_arguments(self._made, dict(zip(self._made.inputs, tensors, strict=True)))
        return tuple(_flat(self.model(*args, **kwargs))[1])


def _with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    def call(*tensors: Tensor) -> Any:
        return function(*tensors)

    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def module_runner(made: FactoryModel, outputs: Sequence[str]) -> Callable[[Feeds], Outputs]:
    """Runs the module itself: numpy in, numpy out (floats as float32) in the graph's order of outputs."""

    def run(feeds: Feeds) -> Outputs:
        with torch.inference_mode(), quiet(), eager():
            args, kwargs = module_arguments(made, feeds)
            return outputs_to_arrays(made.module(*args, **kwargs), outputs)

    return run


def module_arguments(made: FactoryModel, feeds: Feeds) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The module's positional and named arguments from numpy arrays, in the types of its examples."""
    tensors = {n: torch.from_numpy(np.ascontiguousarray(feeds[n])).to(e.dtype) for n, e in made.inputs.items()}
    return call_arguments(made, tensors)


def outputs_to_arrays(result: Any, outputs: Sequence[str]) -> Outputs:
    """What the module returned as numpy arrays by name, floats as float32."""
    found = [value.float() if value.is_floating_point() else value for value in _flat(result)[1]]
    return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}
