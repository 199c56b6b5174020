"""Dynamic dimensions of an .onnx file: each gets a name, equal ones the same, and the batch and the length are called so.

Exporters name them as they please: not at all, `?`, `unk__616`, `DynamicDimension.0`, another name for each input. The graph says
which are equal: it adds, concatenates or multiplies them. What only a run can tell is asked in `size_ties`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from ..core import NotFused, derived
from ..graph import Graph, subgraphs

# Names that a tool made up: torch.jit's where it is given axes without names, tf2onnx's, paddle2onnx's, torch.export's, and those
# of `_name_dims`. They say nothing, so that they give way to any other.
INVENTED = re.compile(r"(?:.*(?:_dynamic_axes_|_d|[_.]?dim_?|DynamicDimension\.)|unk_*|[a-z])\d+", re.IGNORECASE)
NO_NAME = frozenset({"?", "*", "-1", "none", "null", "dynamic", "unknown", "unk"})
BATCH, LENGTH = "batch", "length"
TIE_ROUNDS = 2  # what is equal by the first names more of what lies behind


def settle_dims(model: ir.Model) -> Iterator[str]:
    """Name and tie the dims of a model's inputs, in place; notes of what was done."""
    yield from name_dims(model.graph.inputs)
    yield from _settle_computed(model)
    _forget_invented(model.graph, frozenset(_symbols(model.graph.inputs)))
    yield from _tie_by_graph(model)
    yield from call_by_role(model)


def name_dims(values: Iterable[ir.Value]) -> Iterator[str]:
    """Give unnamed dynamic dimensions stable names, `<value>_d<axis>`."""
    for value in values:
        if value.shape is None:
            continue
        dims = list(value.shape.dims)
        unnamed = [axis for axis, dim in enumerate(dims) if isinstance(dim, ir.SymbolicDim) and _is_no_name(dim.value)]
        if not unnamed:
            continue
        for axis in unnamed:
            dims[axis] = ir.SymbolicDim(re.sub(r"\W", "_", f"{value.name}_d{axis}"))
        value.shape = ir.Shape(dims)
        named = ", ".join(str(dims[axis].value) for axis in unnamed)  # type: ignore[union-attr]
        yield f"unnamed dynamic dimensions are named {named}"


def _is_no_name(name: str | None) -> bool:
    return not name or name.strip().lower() in NO_NAME


def _symbols(values: Iterable[ir.Value]) -> Iterator[str]:
    yield from (str(dim.value) for value in values for dim in value.shape or () if isinstance(dim, ir.SymbolicDim))


def _settle_computed(model: ir.Model) -> Iterator[str]:
    """Spell what is computed of other dims (`past_sequence_length+1`) in one way; where no input has these dims it is a name."""
    written = [name for name in _symbols(model.graph.inputs) if derived(name) is not None]
    plain = {name for name in _symbols(model.graph.inputs) if derived(name) is None}
    new = {name: str(computed) for name in written if (computed := derived(name)) and set(computed.names) <= plain}
    unknown = {name: re.sub(r"\W+", "_", name).strip("_") for name in written if name not in new}
    rename_dims(model, new | unknown)
    if new:
        yield "dimensions that follow from others: " + ", ".join(dict.fromkeys(new.values()))
    for name, other in unknown.items():
        yield f"dimension {name} is taken for one of its own, {other}: no input has the dimensions that it names"


def _forget_invented(graph: ir.Graph, given: frozenset[str]) -> None:
    """Names that an exporter's own inference made up for inner values and outputs hide what ours would find."""
    for value in [*graph.outputs, *(value for node in graph for value in node.outputs)]:
        made_up = [name not in given and (_is_no_name(name) or INVENTED.fullmatch(name)) for name in _names(value)]
        if any(made_up):
            dims = [ir.SymbolicDim(None) if new else dim for new, dim in zip(made_up, value.shape or (), strict=True)]
            value.shape = ir.Shape(dims)
    for inner in (inner for node in graph for inner in subgraphs(node)):
        _forget_invented(inner, given)


def _names(value: ir.Value) -> list[str]:
    """The name of each dim: a number is its own."""
    return [str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape or ()]


def rename_dims(model: ir.Model, names: Mapping[str, str | int]) -> None:
    """Call dims otherwise, or put a number in their place, in every value: what a file says of inner values has them too."""
    if names:
        _rename(model.graph, {name: new for name, new in names.items() if name != new})


def _rename(graph: ir.Graph, names: Mapping[str, str | int]) -> None:
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        dims = [_renamed(dim, names) for dim in value.shape]
        if any(new is not old for new, old in zip(dims, value.shape, strict=True)):
            value.shape = ir.Shape(dims)
    for node in graph:
        for inner in subgraphs(node):
            _rename(inner, names)


def _renamed(dim: Any, names: Mapping[str, str | int]) -> Any:
    """One dim; a sum with a renamed one (`past + 1`) follows, any other expression is left to inference."""
    if isinstance(dim, int) or not dim.value:
        return dim
    if dim.value in names:
        new = names[dim.value]
        return new if isinstance(new, int) else ir.SymbolicDim(new)
    computed = derived(dim.value)
    if computed is not None and names.keys() & set(computed.names):
        made = computed.renamed(names)
        return ir.SymbolicDim(str(made)) if made.factors else made.offset
    words = set(re.findall(r"[A-Za-z_][\w.]*", dim.value))
    return ir.SymbolicDim(None) if words & names.keys() and words != {dim.value} else dim


def _tie_by_graph(model: ir.Model) -> Iterator[str]:
    """Give dims of inputs that the graph adds to each other one name, where a tool made the names up, one an input: ids and their
    mask are of one length."""
    inputs = [value for value in model.graph.inputs if value.shape is not None]
    names = dict.fromkeys(_symbols(inputs))
    loose = frozenset(name for name in names if INVENTED.fullmatch(name))
    if not loose or len(names) < 2:
        return
    tied = _equal_dims(model, loose)
    tied |= _equal_batches(inputs, loose, tied)
    rename_dims(model, tied)
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


def call_by_role(model: ir.Model) -> Iterator[str]:
    """Names that say nothing become `batch`, the leading dim of all inputs, and `length`, the next one of ids or of vectors."""
    inputs = [value for value in model.graph.inputs if value.shape is not None and len(value.shape) > 1]
    used = set(_symbols(inputs))
    roles: dict[str, str | int] = {}
    leading = dict.fromkeys(_symbol(value, 0) for value in inputs if _symbol(value, 0))
    if len(leading) == 1 and BATCH not in used and INVENTED.fullmatch(name := str(next(iter(leading)))):
        roles[name] = BATCH
    # Beside inputs that lead with a dynamic batch, one that leads with a number leads with layers: [layers, batch, size].
    sequences = [value for value in inputs if _is_sequence(value) and (_symbol(value, 0) or not leading)]
    following = [name for value in sequences if (name := _symbol(value, 1)) and name not in leading]
    if following and LENGTH not in used and INVENTED.fullmatch(following[0]):
        roles[following[0]] = LENGTH
    rename_dims(model, roles)
    if roles:
        yield "dimensions are called " + ", ".join(f"{role} ({name})" for name, role in roles.items())


def _symbol(value: ir.Value, axis: int) -> str:
    dim = value.shape[axis] if value.shape is not None else None
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) else ""


def _is_sequence(value: ir.Value) -> bool:
    """Ids or a mask [batch, length], or vectors [batch, length, a number]."""
    assert value.shape is not None
    if len(value.shape) == 2:
        return value.dtype is not None and not value.dtype.is_floating_point()
    return len(value.shape) == 3 and isinstance(value.shape[2], int)
