"""A Python factory, `package.module:function`: any model of the user's own, with example inputs and named dynamic dims.

    def student():
        model = Student().eval()
        ids = torch.ones(2, 16, dtype=torch.int64)
        return FactoryModel(model, {"input_ids": ids}, {"input_ids": ("batch", "length")}, limits={"length": (1, 128)})

The current directory is searched for the module first.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..core import ALLOWED_SIZES, Dim, SourceError, derived, did_you_mean, names_of, with_computed

PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
NAME = re.compile(r"[A-Za-z_]\w*")
WANTED = (
    "expected FactoryModel(module, inputs, dims) or that tuple: torch.nn.Module, {input: example tensor}, {input: (dim, ...)}; "
    "or (module, inputs) alone, whose dims are searched for"
)


class FactoryModel(NamedTuple):
    """What a factory returns.

    inputs: {name: example tensor}, in the order of the graph's inputs. dims: {input name: one entry per axis}, a str for a
    dynamic dimension, an int or None for a fixed one; an example's size along a dynamic axis is at least 2. A str may be computed
    from names: `past + 1`, `2*length`. outputs: names (default: the keys of a dict, else output, or output_0, output_1 ...).
    limits: {dim: (min, max or None)}, else (1, None); a minimum of 0 is for a cache that may be empty.
    assets: a folder whose tokenizer or preprocessor files go into the artifact.
    """

    module: Any
    inputs: Mapping[str, Any]
    dims: Mapping[str, Sequence[int | str | None]]
    outputs: Sequence[str] | None = None
    limits: Mapping[str, tuple[int, int | None]] | None = None
    assets: str | os.PathLike[str] | None = None


def is_factory(reference: str) -> bool:
    """Whether a reference has the form package.module:function."""
    return PATTERN.fullmatch(reference) is not None


def named_folder(reference: str) -> Path | None:
    """The folder that `package.module:NAME` names, where NAME is a path: packages that carry a checkpoint do that."""
    name, _, attribute = reference.partition(":")
    value = getattr(_import(name, reference), attribute, None)
    return Path(value) if isinstance(value, str | os.PathLike) else None


def call_factory(reference: str, module_type: type, tensor_type: Any) -> FactoryModel:
    """Import the factory (the current directory is searched first), call it, and check what it returns.

    The types are torch.nn.Module and torch.Tensor, handed in so that this file needs no torch.
    Raises SourceError naming what is wrong and, for an exception in the user's code, its last line.
    """
    module_name, _, function_name = reference.partition(":")
    module = _import(module_name, reference)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        hint = did_you_mean(function_name, known)
        raise SourceError(f"factory {reference!r}: module {module_name!r} has no function {function_name!r}{hint}")
    try:
        result = function()
    except Exception as error:  # any exception of the user's code becomes a message about the user's code
        raise SourceError(f"factory {reference!r} raised {_last_line(error)}") from error
    return _checked(reference, result, module_type, tensor_type)


def _import(name: str, reference: str) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        # For good: the user's code may import more of its own later, when it runs.
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name and (name == error.name or name.startswith(error.name + "."))):
            raise SourceError(f"factory {reference!r}: importing {name!r} failed: {_last_line(error)}") from error
        leaf = error.name.rpartition(".")[2]
        hint = "; write module:function, without .py" if name.endswith(".py") else did_you_mean(leaf, _siblings(error.name))
        raise SourceError(
            f"factory {reference!r}: no module {error.name!r} in {folder}, on PYTHONPATH or installed{hint}"
        ) from error
    except Exception as error:  # as above
        raise SourceError(f"factory {reference!r}: importing {name!r} failed: {_last_line(error)}") from error


def _siblings(name: str) -> list[str]:
    """Names of the modules that lie where this one was looked for."""
    parent = name.rpartition(".")[0]
    spec = importlib.util.find_spec(parent) if parent else None
    folders = list(spec.submodule_search_locations or ()) if spec else [os.getcwd()]
    found = [entry for folder in folders for entry in Path(folder).iterdir()]
    packages = [entry.name for entry in found if (entry / "__init__.py").is_file()]
    return [entry.stem for entry in found if entry.suffix == ".py"] + packages


def _last_line(error: BaseException) -> str:
    found = traceback.extract_tb(error.__traceback__)
    frames = [f for f in found if f.filename != __file__ and not f.filename.startswith("<frozen")]
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}{where}"


def _checked(reference: str, result: Any, module_type: type, tensor_type: Any) -> FactoryModel:
    if not (isinstance(result, tuple | list) and 2 <= len(result) <= 6):
        raise SourceError(f"factory {reference!r} returned a {type(result).__name__}; {WANTED}")
    made = _pair(result[0], result[1], tensor_type) if len(result) == 2 else FactoryModel(*result)
    if not isinstance(made.module, module_type):
        raise SourceError(f"factory {reference!r} returned a {type(made.module).__name__} as module; {WANTED}")
    if not isinstance(made.inputs, Mapping) or not made.inputs or not isinstance(made.dims, Mapping):
        raise SourceError(f"factory {reference!r}: inputs and dims must be non-empty dicts; {WANTED}")
    for name in made.dims:
        if name not in made.inputs:
            raise SourceError(f"factory {reference!r}: dims name input {name!r}{did_you_mean(str(name), map(str, made.inputs))}")
    for name, example in made.inputs.items():
        if not isinstance(example, tensor_type):
            raise SourceError(f"factory {reference!r}: example {name!r} is a {type(example).__name__}, not a tensor")
        if len(result) > 2:
            _check_input(reference, name, tuple(example.shape), made.dims.get(name))
    _check_computed(reference, made)
    _refuse_double(reference, made)
    if made.limits:
        _check_limits(reference, made)
    if made.assets is not None and not Path(made.assets).is_dir():
        raise SourceError(f"factory {reference!r}: assets {str(made.assets)!r} is not a folder")
    return made


def _refuse_double(reference: str, made: FactoryModel) -> None:
    """Every target computes in float32 or less: a model in float64 is not that model any more."""
    double = [
        name for name, tensor in made.module.named_parameters() if str(tensor.dtype) in ("torch.float64", "torch.complex128")
    ]
    if double:
        listed = f"{double[0]} and {len(double) - 1} more" if len(double) > 1 else double[0]
        raise SourceError(f"factory {reference}: {listed} is float64, which no target computes in; return module.float()")


def _pair(module: Any, examples: Any, tensor_type: Any) -> FactoryModel:
    """Examples as people have them: by name, in the order of forward's parameters, or the one there is. dims are found later."""
    if isinstance(examples, Mapping):
        return FactoryModel(module, {str(name): value for name, value in examples.items()}, {})
    values = [examples] if isinstance(examples, tensor_type) or not isinstance(examples, tuple | list) else list(examples)
    parameters = inspect.signature(module.forward).parameters.values() if hasattr(module, "forward") else ()
    named = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    names = named + [f"input_{at}" for at in range(len(named), len(values))]
    return FactoryModel(module, dict(zip(names, values, strict=False)), {})


def _check_input(reference: str, name: str, shape: tuple[int, ...], dims: Sequence[int | str | None] | None) -> None:
    where = f"factory {reference!r}: input {name!r}"
    if dims is None:
        raise SourceError(f"{where} has no dims; give one entry per axis of its example {list(shape)}, a str for a dynamic one")
    if isinstance(dims, str) or len(dims) != len(shape):
        raise SourceError(f"{where} has dims {dims!r}, but its example has shape {list(shape)}: give one entry per axis")
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(dim, str) and not NAME.fullmatch(dim) and derived(dim) is None:
            raise SourceError(
                f"{where}: dimension {dim!r} is no name (letters, digits and underscores) and not computed from names as in "
                f"{ALLOWED_SIZES}"
            )
        if isinstance(dim, str) and size < 2:
            raise SourceError(
                f"{where}: its example has {dim}={size}; torch.export takes sizes 0 and 1 for constants, so give an example with "
                f"{dim} of 2 or more (the exported graph is valid for 1 as well)"
            )
        if isinstance(dim, int) and dim != size:
            raise SourceError(f"{where}: dims say {dim} where its example has {size}")


def _check_computed(reference: str, made: FactoryModel) -> None:
    """What is computed must be computed from dimensions that an input shows, and be so in the examples."""
    sizes = _plain_sizes(made)
    for name, dims in made.dims.items():
        for axis, dim in enumerate(dims):
            computed = derived(dim) if isinstance(dim, str) else None
            if computed is None:
                continue
            where, size = f"factory {reference!r}: input {name!r}", made.inputs[name].shape[axis]
            for unknown in (each for each in computed.names if each not in sizes):
                raise SourceError(
                    f"{where}: {dim!r} is computed from {unknown!r}, which is no dimension of any input"
                    f"{did_you_mean(unknown, sizes)}; an axis of some input must be called {unknown!r}"
                )
            if computed.at(sizes) != size:
                given = ", ".join(f"{each}={sizes[each]}" for each in computed.names)
                raise SourceError(
                    f"{where}: its example has {dim} = {size} on axis {axis}, which is {computed.at(sizes)} for {given}"
                )


def _plain_sizes(made: FactoryModel) -> dict[str, int]:
    """The size in the examples of each dimension that an input shows by itself."""
    axes = [(d, s) for n, e in made.inputs.items() if n in made.dims for d, s in zip(made.dims[n], e.shape, strict=True)]
    return {dim: int(size) for dim, size in axes if isinstance(dim, str) and derived(dim) is None}


def _check_limits(reference: str, made: FactoryModel) -> None:
    sizes = _plain_sizes(made)
    for name, (low, high) in (made.limits or {}).items():
        if name not in sizes:
            raise SourceError(f"factory {reference!r}: limits name dimension {name!r}{did_you_mean(name, sizes)}")
        if low < 0 or (high is not None and not low <= sizes[name] <= high) or sizes[name] < low:
            raise SourceError(f"factory {reference!r}: the example has {name}={sizes[name]}, outside its limits {low}..{high}")


def dims_of(made: FactoryModel) -> dict[str, Dim]:
    """The named dynamic dimensions of a factory's model with their limits."""
    axes = [dim for name in made.inputs for dim in made.dims[name] if isinstance(dim, str)]
    limits = made.limits or {}
    return with_computed({name: Dim(name, *limits.get(name, (1, None))) for name in names_of(axes)}, axes)
