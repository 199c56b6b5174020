"""An existing .onnx file as a source: checked, typed, its dimensions named, with ONNX Runtime as its truth. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import Dim, SourceError, counted, hash_file, names_of, with_computed
from ..graph import DATA_FILES, Graph, load_graph, mark_origins, name_apart
from .dim_names import name_dims, settle_dims
from .float_form import as_float
from .inference import infer_types

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_OPSET = 11  # the first with negative axes and with Pad, Clip and Slice that take tensors, which everything later relies on
PIECE = 2**22  # numbers that are looked at together
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "bertc"})


def read_onnx_file(path: Path, known: bool = False) -> tuple[Graph, dict[str, Dim], list[str]]:
    """Read a file: its graph with every input and output typed and every dynamic dimension named, those dims, and notes.

    Raises SourceError for what graph.load refuses, an opset below 11, an invalid graph, operators no runtime knows, NaN
    weights, and inputs or outputs whose type cannot be inferred. `known`: this very file was checked before, so its weights are
    not read: they stay in the file.
    """
    graph = load_graph(path, mapped=known)
    _check_links(path, graph)
    files = data_files(path, graph)[1:]
    _check_ops(path, graph)
    if not known:
        _check_weights(path, graph)
    notes: list[str] = []
    inner = graph.model.graph
    defaults = [value for value in inner.inputs if value.is_initializer()]
    for value in defaults:
        inner.inputs.remove(value)
    if defaults:
        notes.append(f"constants now: {counted(len(defaults), 'initializer')} that the graph also had as input")
    graph, changed = as_float(graph)
    inner = graph.model.graph
    notes += changed
    model = graph.model
    _forget_negative(model)
    typed = all(v.dtype is not None and v.shape is not None for v in (*inner.inputs, *inner.outputs))
    name_apart(model)
    notes += settle_dims(model)  # before inference: what is equal has one name wherever it goes
    notes += infer_types(graph)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if "\0" in str(value.name):
            raise SourceError(f"{path}: the name {value.name!r} has a NUL in it, where other programs end a name; rename it")
        if value.dtype is None or value.shape is None:
            raise SourceError(f"{path}: {value.name!r} has no type or no rank, and it cannot be inferred; export it with shapes")
    _own_names(model)
    notes += name_dims(model.graph.outputs)
    if not known:
        linked = any(file.is_symlink() for file in files)  # onnx's checker follows no links
        _check_valid(path, model if notes or not typed or linked else None)
    mark_origins(model)
    result = Graph(model)
    return result, dims_of(result), notes


def dims_of(graph: Graph) -> dict[str, Dim]:
    """The named dimensions of a graph's inputs, of which nothing more is known."""
    axes = [dim for spec in graph.inputs for dim in spec.dims]
    return with_computed({name: Dim(name) for name in names_of(axes)}, axes)


def data_files(path: Path, graph: Graph) -> list[Path]:
    """The file and the external data files it uses, in a stable order."""
    return [path, *sorted({path.parent / name for name in graph.model.meta.get(DATA_FILES, ())} - {path})]


def _check_links(path: Path, graph: Graph) -> None:
    """Raises SourceError for weights that onnx_ir does not read: it takes a second name of a file for an attack."""
    for file in data_files(path, graph)[1:]:
        names = file.stat().st_nlink
        if names > 1:
            raise SourceError(
                f"{path}: the external data {file.name!r} has {names} names (hard links), which onnx_ir does not read; "
                f"copy the folder: cp -rL {path.parent} COPY"
            )


def sha256(path: Path) -> str:
    """Of the file and its external data, as they lie on disk."""
    digest = hashlib.sha256()
    for file in data_files(path, load_graph(path, mapped=True)):
        digest.update(f"{file.name}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _check_ops(path: Path, graph: Graph) -> None:
    if graph.opset < MIN_OPSET:
        raise SourceError(
            f"{path} has opset {graph.opset}; bertc reads {MIN_OPSET} and newer: export it again, or use onnx.version_converter"
        )
    functions = {(key[0], key[1]) for key in graph.model.functions}
    unknown = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in graph.model.graph.all_nodes()
            if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in functions
        }
    )
    if unknown:
        raise SourceError(
            f"{path} uses operators of unknown domains: {', '.join(unknown[:5])}; export it without them, or with "
            "their definition as ONNX functions in the file"
        )


def _check_valid(path: Path, mended: ir.Model | None) -> None:
    """Check the file itself, or what was made of it where types or names had to be filled in."""
    import onnx
    import onnx_ir as ir

    try:
        onnx.checker.check_model(str(path) if mended is None else _without_external(ir.to_proto(mended)))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SourceError(f"{path} is not a valid ONNX model: {lines[0] if lines else error}") from error


def _without_external(proto: Any) -> Any:
    """The weights that lie outside as inputs: the checker would look for their files in the current folder."""
    import onnx

    inside = [tensor for tensor in proto.graph.initializer if tensor.data_location != tensor.EXTERNAL]
    outside = [tensor for tensor in proto.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    described = [onnx.helper.make_tensor_value_info(each.name, each.data_type, list(each.dims)) for each in outside]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(inside)
    proto.graph.input.extend(described)
    return proto


def _check_weights(path: Path, graph: Graph) -> None:
    bad = [name for name, value in graph.model.graph.initializers.items() if _has_nan(value.const_value)]
    if bad:
        names = ", ".join(bad[:3])
        raise SourceError(
            f"{path} has NaN in {counted(len(bad), 'weight')}: {names}; the model is damaged or its training diverged"
        )


def _has_nan(tensor: ir.TensorProtocol | None) -> bool:
    import numpy as np

    if tensor is None or not tensor.dtype.is_floating_point():
        return False
    # -inf is fine: masks are made of it. A piece at a time: weights may lie on disk, and be larger than what is free.
    flat = tensor.numpy().reshape(-1)
    pieces = (flat[at : at + PIECE].astype(np.float32, copy=False) for at in range(0, flat.size, PIECE))
    return any(np.isnan(piece.min()) for piece in pieces)  # a minimum is NaN where anything is


def _forget_negative(model: ir.Model) -> None:
    """A size of -1, as paddle writes what is dynamic, is no size: the dimension has none, and gets a name."""
    import onnx_ir as ir

    nodes = [value for node in model.graph.all_nodes() for value in node.outputs]
    for value in (*model.graph.inputs, *model.graph.outputs, *nodes):
        if any(isinstance(dim, int) and dim < 0 for dim in value.shape or ()):
            dims = [ir.SymbolicDim(None) if isinstance(dim, int) and dim < 0 else dim for dim in value.shape or ()]
            value.shape = ir.Shape(dims)


def _own_names(model: ir.Model) -> None:
    """Dims of outputs that inference made a name up for have none: `name_dims` names them after their output."""
    import onnx_ir as ir

    given = {str(dim.value) for value in model.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)}
    for value in model.graph.outputs:
        names = [str(dim.value) if isinstance(dim, ir.SymbolicDim) else "" for dim in value.shape or ()]
        made_up = [name.startswith("unk__") and name not in given for name in names]
        if any(made_up):
            dims = [ir.SymbolicDim(None) if new else dim for new, dim in zip(made_up, value.shape or (), strict=True)]
            value.shape = ir.Shape(dims)
