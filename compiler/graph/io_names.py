"""What is done to a graph fresh from an exporter: declared names, dimensions by name, no trace of the machine it came from.

No torch in here: an .onnx file gets the same treatment.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core import Affine, SourceError, affine, derived
from .model import Graph
from .provenance import fill_origins

if TYPE_CHECKING:
    import onnx_ir as ir

Dims = Mapping[str, Sequence[int | str | None]]

STACK_TRACE = "pkg.torch.onnx.stack_trace"
# module_path() reads the scopes, a person the rest. Everything else an exporter leaves (fx node text, graph signatures) is noise.
KEPT_METADATA = frozenset({"namespace", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.name_scopes", STACK_TRACE})
FRAME = re.compile(r'File "([^"]+)"')
PACKAGES = re.compile(r".*/(?:site|dist)-packages/")
SYMBOL = re.compile(r"[A-Za-z_]\w*")


def name_io(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the graph's inputs and outputs these names, in this order; any other value that has one of them makes way."""
    import onnx_ir as ir

    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value.producer() is None or value in graph.outputs[:index]:
            # An input or a weight handed through, or one value under two names: an output needs a value of its own.
            node = ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
    wanted = {id(value): name for value, name in zip(graph.inputs, inputs, strict=True)}
    wanted |= {id(value): name for value, name in zip(graph.outputs, outputs, strict=True)}
    taken = {*inputs, *outputs}
    for value in [v for v in all_values(model) if id(v) not in wanted and v.name in taken]:
        value.name = _free(f"{value.name}_inner", model)
    # Through a name nobody has: two ports may want to swap theirs.
    ports = [*graph.inputs, *graph.outputs]
    for position, value in enumerate(ports):
        value.name = f"bertc_port_{position}"
    for value in ports:
        value.name = wanted[id(value)]


def restore_io(model: ir.Model, original: ir.Model) -> None:
    """The inputs and outputs of the original under their names: a pass that takes an Identity between two outputs away leaves one
    value that is given back twice, under one name."""
    names = [str(value.name) for value in original.graph.outputs]
    if [value.name for value in model.graph.outputs] != names:
        name_io(model, [str(value.name) for value in original.graph.inputs], names)


def _free(name: str, model: ir.Model) -> str:
    names = {value.name for value in all_values(model)}
    while name in names:
        name += "_"
    return name


def all_values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of a model: inputs, initializers and node outputs, those of subgraphs and functions included."""
    for graph in model.graphs():
        yield from graph.inputs
        yield from (v for v in graph.initializers.values() if v not in graph.inputs)
        for node in graph:
            yield from node.outputs
    for function in model.functions.values():
        for node in function.all_nodes():
            yield from node.outputs


def name_dims(model: ir.Model, dims: Dims) -> None:
    """Rename the exporter's symbols (s18, s41) to the declared dimensions everywhere, inside expressions too.

    Raises SourceError when a declared dynamic dimension became a number, or two dimensions became one symbol.
    """
    import onnx_ir as ir

    names: dict[str, str] = {}
    axes = [
        (str(value.name), wanted, dim)
        for value in model.graph.inputs
        for wanted, dim in zip(dims[str(value.name)], value.shape.dims if value.shape is not None else (), strict=True)
        if isinstance(wanted, str)
    ]
    computed = any(derived(wanted) for _, wanted, _ in axes)
    for value_name, wanted, dim in axes:
        if derived(wanted) is None and not (computed and isinstance(dim, ir.SymbolicDim) and derived(str(dim.value))):
            _bind(names, value_name, wanted, dim)
    if computed:
        _bind_computed(names, axes)
    for value in all_values(model):
        if value.shape is None or not any(isinstance(d, ir.SymbolicDim) and d.value for d in value.shape.dims):
            continue
        renamed = [d if isinstance(d, int) or not d.value else _renamed(str(d.value), names) for d in value.shape.dims]
        value.shape = ir.Shape(renamed)


def _bind(names: dict[str, str], value: str, wanted: str, dim: int | ir.SymbolicDim) -> None:
    where = f"dimension {wanted!r} of input {value!r}"
    if isinstance(dim, int):
        raise SourceError(f"{where} is fixed at {dim} in the exported graph: the model's code depends on the size of the example")
    symbol = str(dim.value)
    if not SYMBOL.fullmatch(symbol):
        raise SourceError(f"{where} became {symbol} in the exported graph: the model does not take every size")
    if names.setdefault(symbol, wanted) != wanted:
        raise SourceError(
            f"{where} always equals dimension {names[symbol]!r} in the exported model; give both one name, or change the model"
        )


def _bind_computed(names: dict[str, str], axes: Sequence[tuple[str, str, int | ir.SymbolicDim]]) -> None:
    """What symbols are that no declared name has alone: torch.export may take the `length - 2` of one input for the symbol, and
    the length for it + 2. SourceError where a size is not computed in the graph as it was declared."""
    for _, wanted, dim in axes:
        found, declared = (None if isinstance(dim, int) else affine(str(dim.value))), affine(wanted)
        unknown = [] if found is None else [name for name in found.names if name not in names]
        if found is None or declared is None or len(found.factors) != 1 or found.factors[0][1] != 1 or not unknown:
            continue
        names[unknown[0]] = f"({Affine(declared.factors, declared.offset - found.offset)})"
    for value, wanted, dim in axes:
        text = str(dim) if isinstance(dim, int) else _renamed(str(dim.value), names)
        declared = affine(wanted)
        if declared is None or not declared.same(affine(text)):
            raise SourceError(
                f"dimension {wanted!r} of input {value!r} is {text} in the exported graph; declare it so, or change the model"
            )


def _renamed(expression: str, names: Mapping[str, str]) -> str:
    """A sum is spelt in one way, so that equal sizes have equal names."""
    text = SYMBOL.sub(lambda match: names.get(match[0], match[0]), expression)
    computed = affine(text)
    return str(computed) if computed else text


def scrub_paths(model: ir.Model) -> None:
    """Drop or relativise what differs between two machines: absolute paths in stack traces, exporter noise, versions."""
    package = Path(__file__).resolve().parent.parent.as_posix()
    folders = [Path(p) for p in (*sys.path, sysconfig.get_path("stdlib"))]
    roots = sorted({p.as_posix() for f in folders for p in (f.absolute(), f.resolve())}, key=len, reverse=True)

    def relative(match: re.Match[str]) -> str:
        return f'File "{_relative(match[1], package, roots)}"'

    traces: dict[str, str] = {}
    for node in model.graph.all_nodes():
        trace = node.metadata_props.get(STACK_TRACE)
        if trace is not None and trace not in traces:
            traces[trace] = FRAME.sub(relative, trace)
        for key in [key for key in node.metadata_props if key not in KEPT_METADATA]:
            del node.metadata_props[key]
        if trace is not None:
            node.metadata_props[STACK_TRACE] = traces[trace]
    for value in all_values(model):
        value.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
    model.metadata_props.clear()


def _relative(path: str, package: str, roots: Sequence[str]) -> str:
    posix = path.replace("\\", "/")
    if posix.startswith(package + "/"):
        return "bertc" + posix[len(package) :]
    if PACKAGES.match(posix):
        return PACKAGES.sub("", posix)
    for root in roots:
        if posix.startswith(root.rstrip("/") + "/"):
            return posix[len(root.rstrip("/")) + 1 :]
    return posix.rpartition("/")[2]


def with_int32_ids(graph: Graph) -> Graph:
    """The same graph with int32 instead of int64 inputs and one Cast to int64 behind each. Names stay."""
    import onnx_ir as ir

    result = graph.copy()
    inner = result.model.graph
    casts = []
    for index, old in enumerate(inner.inputs):
        if old.dtype != ir.DataType.INT64:
            continue
        new = ir.Value(name=old.name, shape=old.shape, type=ir.TensorType(ir.DataType.INT32))
        old.name = _free(f"{old.name}_int64", result.model)
        cast = ir.node("Cast", [new], attributes={"to": ir.DataType.INT64}, name=f"{new.name}_to_int64")
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = old.name, old.shape, old.dtype
        old.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        inner.inputs[index] = new
        casts.append(cast)
    first = next(iter(inner), None)
    if first is None:
        inner.extend(casts)
    else:
        inner.insert_before(first, casts)
    fill_origins(inner)
    return result
