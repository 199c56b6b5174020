"""One export for equal modules: most of what the tests open is exported many times over, each time to the same graph.

What a graph is made of is the key: the module with its classes, settings and weights, the example, the dimensions, the opset. The
path that a checkpoint was read from is not. A test that puts something in the place of a part of torch, transformers or bertc's
exporter gets an export of its own, and so does a module that cannot be described (a class or a hook made inside a function).
"""

from __future__ import annotations

import collections
import copyreg
import functools
import hashlib
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest

PATHS = ("name_or_path", "_name_or_path")
MOST_BYTES = 256 * 2**20  # of weights, which the kept graphs hold
EXPORTING = ("torch", "transformers", "onnxscript", "onnx_ir", "bertc.source", "bertc.graph", "bertc.core")

Export = Callable[[Any, int], tuple[Any, tuple[str, ...]]]
patches: list[pytest.MonkeyPatch] = []  # of the test that runs


def remembering(export: Export) -> Export:
    """`export_module` that gives a copy of the graph it made of an equal module."""
    kept: collections.OrderedDict[bytes, tuple[Any, tuple[Any, tuple[str, ...]], int]] = collections.OrderedDict()

    def export_module(made: Any, opset: int) -> tuple[Any, tuple[str, ...]]:
        described = None if _patched() else describe(made, opset)
        if described is None:
            return export(made, opset)
        key, size = described
        # A kept graph shares its weights with its module, which may have been trained since.
        if key in kept and describe(kept[key][0], opset) != described:
            del kept[key]
        if key not in kept:
            kept[key] = made, export(made, opset), size
        kept.move_to_end(key)
        graph, outputs = kept[key][1]
        copy = graph.copy()
        while sum(each[2] for each in kept.values()) > MOST_BYTES:
            kept.popitem(last=False)
        return copy, outputs

    export_module.remembers = True  # type: ignore[attr-defined]
    return export_module


def read_once() -> None:
    """What torch.onnx.export makes anew for each model, and never changes: its table of operators and torch's list of those."""
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)  # type: ignore[assignment]
    whole = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(cls: Any, **opset: int) -> Any:
        own, made = cls(), whole(**opset)
        own._opset_version = made.opset_version
        own.functions = {name: list(found) for name, found in made.functions.items()}  # an export adds its own
        return own

    ONNXRegistry.from_torchlib = classmethod(from_torchlib)  # type: ignore[method-assign,assignment]


def describe(made: Any, opset: int) -> tuple[bytes, int] | None:
    """The hash of what an export is made of, and the bytes of its weights; None for what cannot be described."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump((made.module, dict(made.inputs), made.dims, made.outputs, made.limits, opset))
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(file.getbuffer()).digest(), pickler.nbytes


class _Pickler(pickle.Pickler):
    """Modules by class and state, tensors by their bytes, no paths."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.nbytes = 0

    def reducer_override(self, obj: Any) -> Any:
        import torch
        import transformers

        if isinstance(obj, torch.Tensor):
            array = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.nbytes += array.nbytes
            facts = (type(obj).__name__, obj.dtype, tuple(obj.shape), obj.stride(), obj.requires_grad)
            return str, (f"{facts} {hashlib.sha256(array).hexdigest()}",)
        if isinstance(obj, torch.nn.Module | transformers.PretrainedConfig):
            state = {name: value for name, value in vars(obj).items() if name not in PATHS}
            # Two tests may each have a class of one name: they are told apart as long as the first is alive, as what is kept is.
            code = [id(each) for each in (type(obj), getattr(type(obj), "forward", None))]
            return copyreg.__newobj__, (type(obj),), {**state, "": code}
        return NotImplemented


def _patched() -> bool:
    """Whether the test that runs has put something in the place of a part of what exports."""
    targets = (target for patch in patches for target, *_ in patch._setattr)
    return any(_home(target).startswith(EXPORTING) for target in targets)


def _home(target: Any) -> str:
    return str(getattr(target, "__module__", None) or getattr(target, "__name__", None) or type(target).__module__)
