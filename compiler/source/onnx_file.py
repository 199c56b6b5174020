"""An existing .onnx file as a source: checked, typed, its dimensions named, with ONNX Runtime as its truth. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import BuildFailed, Dim, Feeds, NotFused, Outputs, SourceError, hash_file
from ..graph import Graph, load_graph, mark_origins
from .float_form import as_float

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_OPSET = 11  # the first with negative axes and with Pad, Clip and Slice that take tensors, which everything later relies on
INVENTED = re.compile(r"\w+(_dynamic_axes_|_d)\d+")  # by torch.jit where it is given axes without names, and by _name_dims
PIECE = 2**22  # numbers that are looked at together
TIE_ROUNDS = 2  # what is equal by the first names more of what lies behind
KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "bertc"})


def read_onnx_file(path: Path, known: bool = False) -> tuple[Graph, dict[str, Dim], list[str]]:
    """Read a file: its graph with every input and output typed and every dynamic dimension named, those dims, and notes.

    Raises SourceError for what graph.load refuses, an opset below 11, an invalid graph, operators no runtime knows, NaN
    weights, and inputs or outputs whose type cannot be inferred. `known`: this very file was checked before, so its weights are
    not read: they stay in the file.
    """
    graph = load_graph(path, mapped=known)
    _check_ops(path, graph)
    if not known:
        _check_weights(path, graph)
    notes: list[str] = []
    inner = graph.model.graph
    defaults = [value for value in inner.inputs if value.is_initializer()]
    for value in defaults:
        inner.inputs.remove(value)
    if defaults:
        notes.append(f"{len(defaults)} initializers that were also graph inputs are constants now")
    graph, changed = as_float(graph)
    inner = graph.model.graph
    notes += changed
    typed = all(v.dtype is not None and v.shape is not None for v in (*inner.inputs, *inner.outputs))
    model = graph.model
    if not typed:
        from onnx_ir.passes.common import ShapeInferencePass

        model = ShapeInferencePass()(model).model
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype is None or value.shape is None:
            raise SourceError(f"{path}: {value.name!r} has no type or no rank, and it cannot be inferred; export it with shapes")
    notes += _name_dims(model)
    notes += _tie_dims(model)
    if not known:
        _check_valid(path, model if notes or not typed else None)
    mark_origins(model)
    result = Graph(model)
    names = [dim for spec in result.inputs for dim in spec.dims if isinstance(dim, str)]
    return result, {name: Dim(name) for name in names}, notes


def data_files(path: Path, graph: Graph) -> list[Path]:
    """The file and the external data files it uses, in a stable order."""
    import onnx_ir as ir

    tensors = [v.const_value for v in graph.model.graph.initializers.values()]
    return [path, *sorted({path.parent / t.location for t in tensors if isinstance(t, ir.ExternalTensor)} - {path})]


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
        onnx.checker.check_model(str(path) if mended is None else ir.to_proto(mended))
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SourceError(f"{path} is not a valid ONNX model: {lines[0] if lines else error}") from error


def _check_weights(path: Path, graph: Graph) -> None:
    bad = [name for name, value in graph.model.graph.initializers.items() if _has_nan(value.const_value)]
    if bad:
        names = ", ".join(bad[:3])
        raise SourceError(f"{path} has NaN in {len(bad)} weights: {names}; the model is damaged or its training diverged")


def _has_nan(tensor: ir.TensorProtocol | None) -> bool:
    import numpy as np

    if tensor is None or not tensor.dtype.is_floating_point():
        return False
    # -inf is fine: masks are made of it. A piece at a time: weights may lie on disk, and be larger than what is free.
    flat = tensor.numpy().reshape(-1)
    pieces = (flat[at : at + PIECE].astype(np.float32, copy=False) for at in range(0, flat.size, PIECE))
    return any(np.isnan(piece.min()) for piece in pieces)  # a minimum is NaN where anything is


def _name_dims(model: ir.Model) -> Iterator[str]:
    """Give unnamed dynamic dimensions stable names, `<value>_d<axis>`."""
    import onnx_ir as ir

    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        dims = list(value.shape.dims)
        unnamed = [axis for axis, dim in enumerate(dims) if isinstance(dim, ir.SymbolicDim) and not dim.value]
        if not unnamed:
            continue
        for axis in unnamed:
            dims[axis] = ir.SymbolicDim(re.sub(r"\W", "_", f"{value.name}_d{axis}"))
        value.shape = ir.Shape(dims)
        named = ", ".join(str(dims[axis].value) for axis in unnamed)  # type: ignore[union-attr]
        yield f"unnamed dynamic dimensions are named {named}"


def _tie_dims(model: ir.Model) -> Iterator[str]:
    """Give dims of inputs that the graph adds to each other one name, where torch.jit or `_name_dims` made the names up, one an
    input: ids and their mask are of one length."""
    import onnx_ir as ir

    inputs = [value for value in model.graph.inputs if value.shape is not None]
    names = dict.fromkeys(str(dim.value) for value in inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim))
    loose = frozenset(name for name in names if INVENTED.fullmatch(name))
    if len(loose) < 2:
        return
    tied = _equal_dims(model, loose)
    tied |= _equal_batches(inputs, loose, tied)
    for value in inputs:
        dims = [tied.get(str(dim.value), dim.value) if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape or ()]
        value.shape = ir.Shape(dims)
    if tied:
        yield "equal dimensions, because the graph adds them: " + ", ".join(f"{name} = {tied[name]}" for name in sorted(tied))


def _equal_batches(inputs: list[ir.Value], loose: frozenset[str], tied: dict[str, str | int]) -> dict[str, str | int]:
    """Where all other axes of two inputs are tied, axis 0 is, too: torch.jit reads a mask's rows by index, which adds nothing."""
    first: dict[tuple[Any, ...], str] = {}
    found: dict[str, str | int] = {}
    for value in inputs:
        dims = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
        batch, rest = dims[:1], tuple(tied.get(str(dim), dim) for dim in dims[1:])
        if not rest or isinstance(batch[0], int) or not set(rest) & {*tied.values()}:
            continue
        kept = first.setdefault(rest, str(tied.get(batch[0], batch[0])))
        if batch[0] in loose and batch[0] != kept:
            found[batch[0]] = kept
    return found


def _equal_dims(model: ir.Model, loose: frozenset[str]) -> dict[str, str | int]:
    from ..graph import infer_shapes, upgrade_opset  # onnxscript takes its time

    try:
        copy = upgrade_opset(Graph(model)).graph.copy().model  # shape inference reads sizes from opset 13 on
    except NotFused:
        copy = model.clone()
    found: dict[str, str | int] = {}
    for _ in range(TIE_ROUNDS):
        found |= infer_shapes(copy, loose)
    return found


def reference_runner(path: Path) -> Callable[[Feeds], Outputs]:
    """Runs the file as it is on ONNX Runtime's CPU provider, all optimisations off. The session is made on first use."""
    session: Any = None

    def run(feeds: Feeds) -> Outputs:
        nonlocal session
        session = session or _session(path)
        wanted = {entry.name: entry.type for entry in session.get_inputs()}
        # Integer ids may come as int32 where the file wants int64.
        cast = {name: feeds[name].astype("int64") if wanted[name] == "tensor(int64)" else feeds[name] for name in wanted}
        names = [entry.name for entry in session.get_outputs()]
        return dict(zip(names, session.run(names, cast), strict=True))

    return run


def _session(path: Path) -> Any:
    from ..runtime import open_session, reference_options

    try:
        return open_session(path, reference_options())
    except BuildFailed as error:
        raise SourceError(f"{path} does not load in ONNX Runtime: {str(error.__cause__).splitlines()[0]}") from error
