"""Feeds: seeded synthetic samples of every mask shape, and a user's own file as samples (the readers are in readers.py)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import AUDIO_DIM, UNBOUNDED_LENGTH, DataError, Dim, TensorSpec, did_you_mean, size_at
from ..graph import Graph
from .choices import choices_of, chosen, turns
from .mask_kinds import ADDITIVE, LOW, mask_kinds, rows_masked
from .mask_uses import INVERTED
from .samples import Layout, Sample, batch_dims
from .special_tokens import sprinkle_ids

if TYPE_CHECKING:
    import onnx_ir as ir


DEFAULT_BOUND = 2  # an integer input that indexes no table is most likely a flag or a segment: 0 and 1 are safe
MAX_ELEMENTS = 2**15
AUDIO_MIN = 400  # 25 ms at 16 kHz, the receptive field of wav2vec2's convolutions
AUDIO_MAX = 17601  # 1.1 s at 16 kHz, odd
PADDINGS = {
    "full": "no padding",
    "right": "right padding",
    "left": "left padding",
    "holes": "holes in the mask",
    "random": "random mask",
    "dead": "one row all masked",
}

MIXED = "mixed"  # all of them in one batch, for graphs of one large size: each more sample costs what the first does
_CYCLE = ("right", "left", "holes", "random")
_LABELS = PADDINGS | {MIXED: "each row padded in another way"}

ORDINARY = ("full", "right")  # masks that every user's batch has; the others show what an exporter got wrong

# Ops that index a table, as (position of the indices, position of the table).
_INDEXING = {"Gather": ((1, 0),), "GatherElements": ((1, 0),), "EmbedLayerNormalization": ((0, 2), (1, 4), (8, 3))}
# Ops whose output holds values of these inputs, unchanged or fewer.
_CARRYING = {"Concat": range(1 << 10), "Where": (1, 2)} | dict.fromkeys(
    ("Cast", "CastLike", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand", "Transpose", "Slice", "Tile"),
    (0,),
)
_SAME_SHAPE = ("Cast", "CastLike", "Identity", "DequantizeLinear")


def index_bounds(graph: Graph) -> dict[str, int]:
    """For each integer input that indexes tables of known size: the exclusive upper bound of its values.

    Follows the input through ops that keep values (Cast, Unsqueeze, Slice ...), an added constant and local functions, to
    Gather and its kin; the smallest table counts. An input that reaches none is absent.
    """
    found = {str(v.name): _bound(graph.model, v) for v in graph.model.graph.inputs if v.dtype and v.dtype.numpy().kind in "iu"}
    return {name: bound for name, bound in found.items() if bound is not None}


def _bound(model: ir.Model, start: ir.Value) -> int | None:
    limits: list[int] = []
    todo: list[tuple[ir.Value, int, Mapping[ir.Value, ir.Value]]] = [(start, 0, {})]
    seen: dict[tuple[int, int, int], Any] = {}  # holds the bindings too, so that no id is reused
    while todo:
        value, offset, bindings = todo.pop()
        key = (id(value), offset, id(bindings))
        if key in seen:
            continue
        seen[key] = bindings
        for node, position in value.uses():
            limits += [size - offset for size in _tables(node, position, bindings)]
            todo += _onward(model, node, position, offset, bindings)
    return max(1, min(limits)) if limits else None


def _tables(node: ir.Node, position: int, bindings: Mapping[ir.Value, ir.Value]) -> Iterator[int]:
    """Sizes of the tables this node indexes by its input at `position`, where known."""
    for indices, table in _INDEXING.get(node.op_type, ()):
        if indices != position or (value := node.inputs[table]) is None:
            continue
        shape = _shape(bindings.get(value, value))
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        if shape is not None and isinstance(shape[axis], int):
            yield int(shape[axis])


def _shape(value: ir.Value | None) -> Sequence[Any] | None:
    """The shape of a value, also where a weight is stored in another type and cast."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(value.const_value.shape)
    if value.shape is not None:
        return tuple(value.shape)
    node = value.producer()
    return _shape(node.inputs[0]) if node is not None and node.op_type in _SAME_SHAPE else None


def _onward(
    model: ir.Model, node: ir.Node, position: int, offset: int, bindings: Mapping[ir.Value, ir.Value]
) -> list[tuple[ir.Value, int, Mapping[ir.Value, ir.Value]]]:
    """Where the values of a node's input live on: its output, or the inside of the local function it calls."""
    function = model.functions.get(node.op_identifier())
    if function is not None:
        given = zip(function.inputs, node.inputs, strict=False)  # trailing inputs may be left out
        inner = {formal: bindings.get(actual, actual) for formal, actual in given if actual is not None}
        return [(function.inputs[position], offset, inner)]
    if node.op_type == "Add" and node.domain == "":
        other = node.inputs[1 - position]
        constant = None if other is None else bindings.get(other, other).const_value
        if constant is None or not constant.size:
            return []
        return [(node.outputs[0], offset + int(constant.numpy().max()), bindings)]
    return [(node.outputs[0], offset, bindings)] if position in _CARRYING.get(node.op_type, ()) else []


_Patterns = dict[tuple[int | str, ...], np.ndarray]  # by the dims of their axes, the length last


@dataclasses.dataclass(frozen=True)
class _Plan:
    """One synthetic sample to make: the size of every named dimension, the kind of padding, and what to call it."""

    sizes: tuple[tuple[str, int], ...]
    kind: str
    cut: str = ""

    @property
    def label(self) -> str:
        shape = ", ".join(f"{name} {size}" for name, size in self.sizes) or "the graph's fixed shape"
        return shape + self.cut + (f", {_LABELS[self.kind]}" if self.kind else "")


def synthetic_samples(
    graph: Graph, dims: Mapping[str, Dim], seed: int = 0, max_elements: int = MAX_ELEMENTS, *, special: Sequence[int] = ()
) -> tuple[Sample, ...]:
    """Seeded feeds at shapes an exporter never saw: batch 1, minimum, odd and maximum sizes, and every kind of padding.

    The maximum is `Dim.max`, 512 where there is none, and 1.1 s for a dimension called "samples". Masks (see mask_kinds.py)
    hold 0 and 1, or what is added to scores. Integer inputs are uniform below their `index_bounds` (2 where unknown), also in
    masked places, and single ones take in turn what the graph compares them with (choices.py); float inputs are standard normal,
    zero in masked places. The sample with a dead row needs two rows, so a graph with a fixed batch of 1 has none. `max_elements`
    limits the product of the named sizes of a sample: the batch is lowered first, then the longest other dimension, which the
    label tells; no size goes below its minimum. Token ids hold some of the `special` tokens in every row.

    Raises DataError for an input with a dimension that is not in `dims`, or of a type that cannot be made up.
    """
    used = _used_dims(graph.inputs, dims)
    rng, other = (np.random.default_rng(s) for s in (seed, [seed, 1]))  # the rest of the feeds is the same without `special`
    bounds = index_bounds(graph)
    masks = mask_kinds(graph)
    layout = Layout.of(graph.inputs, ())
    samples: list[Sample] = []
    choices = choices_of(graph)
    plans = _plans(used, batch_dims(graph.inputs, used), bool(masks), max_elements)
    if not used and _is_large([spec for spec in graph.inputs if spec.name in masks], graph.inputs, max_elements):
        plans = (_Plan((), "full"), _Plan((), MIXED))
    for plan in plans * -(-turns(choices) // len(plans)):  # of one fixed size, as often as there are choices
        feeds = sprinkle_ids(_feeds(graph.inputs, plan, used, bounds, masks, rng), bounds, special, other)
        feeds = chosen(feeds, choices, len(samples))
        dead = rows_masked(feeds, masks, layout)
        if plan.kind != "dead" or dead:
            made_up = _LABELS[plan.kind] if masks and plan.kind not in ORDINARY else ""
            samples.append(Sample(plan.label, feeds, dead, made_up=made_up))
    return tuple(samples)


def sample_at(
    graph: Graph, dims: Mapping[str, Dim], sizes: Mapping[str, int], seed: int = 0, kind: str = "full", turn: int = 0
) -> Sample:
    """Seeded feeds as those of `synthetic` at given sizes, under a mask of one of PADDINGS. `turn`: which of `choices_of`.

    Raises DataError for a dimension of the inputs that has no size, or one that the model does not take.
    """
    used = _used_dims(graph.inputs, dims)
    for name, dim in used.items():
        if name not in sizes:
            raise DataError(f"no size for {name}; sizes are given for {', '.join(sizes) or 'nothing'}")
        if sizes[name] < dim.min or (dim.max is not None and sizes[name] > dim.max):
            raise DataError(f"{name}={sizes[name]} is not a size that the model takes: {name} {dim.min} to {dim.max or 'any'}")
    plan = _Plan(tuple((name, sizes[name]) for name in used), kind)
    feeds = _feeds(graph.inputs, plan, used, index_bounds(graph), mask_kinds(graph), np.random.default_rng(seed))
    feeds = chosen(feeds, choices_of(graph), turn)
    return Sample(plan.label, feeds)


def _used_dims(inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> dict[str, Dim]:
    """The named dimensions of the inputs, in order of appearance."""
    used: dict[str, Dim] = {}
    for spec in inputs:
        if np.dtype(spec.dtype).kind not in "biuf":
            raise DataError(f"input {spec} has a type without synthetic data; give data in an .npz file")
        for dim in spec.names:
            if dim not in dims:
                raise DataError(f"input {spec} has an unknown dimension {dim!r}{did_you_mean(dim, dims)}")
            used[dim] = dims[dim]
    return used


def _plans(used: Mapping[str, Dim], batches: Sequence[str], masked: bool, max_elements: int) -> tuple[_Plan, ...]:
    wanted = [(1, "odd", "full"), (1, "low", "full"), (2, "low", "full")]
    wanted += [(3, "odd", kind) for kind in PADDINGS]
    wanted += [(5, "odder", "right"), (1, "top", "full"), (1, "top", "left")]
    plans: dict[_Plan, None] = {}  # a set that keeps its order: small models make several plans equal
    others = [name for name in used if name not in batches]
    for rows, which, kind in wanted:
        sizes = {
            name: _rows(dim, rows, which, batches.index(name)) if name in batches else _size(dim, which, others.index(name))
            for name, dim in used.items()
        }
        cut = _cut(sizes, used, batches, max_elements)
        plans[_Plan(tuple(sizes.items()), kind if masked else "", cut)] = None
    return tuple(plans)


def _is_large(masks: Sequence[TensorSpec], inputs: Sequence[TensorSpec], max_elements: int) -> bool:
    """Whether a graph of fixed sizes has rows for every kind of padding, and more numbers in its inputs than a sample should."""
    rows = [spec.dims[0] for spec in masks if len(spec.dims) > 1]
    sizes = [math.prod(dim for dim in spec.dims if isinstance(dim, int)) for spec in inputs]
    return bool(rows) and all(isinstance(n, int) and n >= len(PADDINGS) for n in rows) and max(sizes) > max_elements


def _rows(dim: Dim, rows: int, which: str, at: int) -> int:
    """A size of the `at`-th dimension that counts rows: the others are one more than the batch, and 1 at the smallest sizes."""
    size = rows if at == 0 else 1 if (rows, which) == (1, "low") else rows + at
    return min(max(size, dim.min), dim.max or size)


def sizes_tried(dim: Dim) -> tuple[int, int]:
    """Smallest and largest size tried."""
    if dim.name != AUDIO_DIM:
        return dim.min, dim.max or max(UNBOUNDED_LENGTH, dim.fit(dim.min))
    top = min(dim.max or AUDIO_MAX, max(AUDIO_MAX, dim.min))
    return (dim.min if dim.min > 1 else min(AUDIO_MIN, top)), top


def _size(dim: Dim, which: str, at: int) -> int:
    """A size of one dimension; `at` keeps the odd sizes of different dimensions apart, so that a swap of two shows."""
    low, top = sizes_tried(dim)
    sizes = {"low": low, "odd": (3 * low + 13 + 2 * at) | 1, "odder": (7 * low + 29 + 2 * at) | 1, "top": top}
    return dim.fit(min(sizes[which], top))


def _cut(sizes: dict[str, int], used: Mapping[str, Dim], batches: Sequence[str], max_elements: int) -> str:
    """Lower sizes in place until their product fits; returns a note of what was cut."""
    note = ""
    others = sorted((name for name in sizes if name not in batches), key=lambda name: -sizes[name])
    for name in [*batches, *others]:
        total = math.prod(sizes.values())
        if total <= max_elements:
            break
        size = used[name].fit(max(sizes_tried(used[name])[0], max_elements // (total // sizes[name])))
        if size < sizes[name]:
            note += f" ({name} cut from {sizes[name]})"
            sizes[name] = size
    return note


def _feeds(
    inputs: Sequence[TensorSpec],
    plan: _Plan,
    used: Mapping[str, Dim],
    bounds: Mapping[str, int],
    masks: Mapping[str, str],
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    sizes, lows = dict(plan.sizes), {name: sizes_tried(dim)[0] for name, dim in used.items()}
    batches = batch_dims(inputs, used)
    patterns: _Patterns = {}
    for spec in inputs:
        if spec.name in masks and spec.dims:
            axes = _mask_axes(spec, batches)
            key = tuple(spec.dims[axis] for axis in axes)
            least = max(1, size_at(key[-1], lows)) if isinstance(key[-1], str) else 1
            patterns.setdefault(key, _pattern(plan.kind, tuple(size_at(dim, sizes) for dim in key), least, rng))
    largest = {spec.name: bounds.get(spec.name, DEFAULT_BOUND) for spec in inputs}
    return {s.name: _feed(s, sizes, patterns, _mask_axes(s, batches), masks.get(s.name), largest[s.name], rng) for s in inputs}


def _mask_axes(spec: TensorSpec, batches: Sequence[str]) -> tuple[int, ...]:
    """The axes of a mask that count rows, and behind them the one of its length: the last one but the batch. Where no dimension
    is known as the batch, axis 0 counts rows."""
    if not spec.dims:
        return ()
    length = max((axis for axis, dim in enumerate(spec.dims) if not batches or dim != batches[0]), default=0)
    rows = [axis for axis, dim in enumerate(spec.dims) if dim in batches and axis != length]
    if not rows and length:
        rows = [0]
    return (*rows, length)


def _pattern(kind: str, shape: tuple[int, ...], least: int, rng: np.random.Generator) -> np.ndarray:
    """`mask_pattern` of a shape [rows..., length]: each row has its own, and a dead row is one of axis 0."""
    rows, length = shape[:-1], shape[-1]
    if len(rows) < 2 and kind != MIXED:
        return mask_pattern(kind, math.prod(rows), length, least, rng).reshape(shape)
    pattern = mask_pattern("right" if kind == "dead" else kind, math.prod(rows), length, least, rng).reshape(shape)
    if kind in ("dead", MIXED) and rows and rows[0] > 1:
        pattern[1] = 0
    return pattern


def _feed(
    spec: TensorSpec,
    sizes: Mapping[str, int],
    patterns: _Patterns,
    axes: tuple[int, ...],
    mask: str | None,
    bound: int,
    rng: np.random.Generator,
) -> np.ndarray:
    shape = spec.shape_at(sizes)
    dtype = np.dtype(spec.dtype)
    if mask:
        return _mask(spec, shape, patterns, axes, mask).astype(dtype)
    if dtype.kind != "f":
        return np.asarray(rng.integers(0, 2 if dtype.kind == "b" else bound, shape)).astype(dtype)
    values = np.asarray(rng.standard_normal(shape))
    for key, pattern in patterns.items():
        if len(key) > 1 and spec.dims[: len(key)] == key:
            values = values * pattern.reshape(pattern.shape + (1,) * (len(shape) - pattern.ndim))
            break
    return values.astype(dtype)


def _mask(spec: TensorSpec, shape: tuple[int, ...], patterns: _Patterns, axes: tuple[int, ...], kind: str) -> np.ndarray:
    if not shape:
        return np.full(shape, kind != INVERTED)
    pattern = patterns[tuple(spec.dims[axis] for axis in axes)]
    ordered = pattern.transpose(np.argsort(axes))
    filled = np.broadcast_to(ordered.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)]), shape)
    return np.where(filled > 0, 0.0, LOW) if kind == ADDITIVE else filled <= 0 if kind == INVERTED else filled


def mask_pattern(kind: str, rows: int, length: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """A mask [rows, length] of 0 and 1 (int64). In a batch row 0 is full; every live row keeps `least` places or more.

    "dead" clears row 1 and pads the others on the right; with one row there is nothing beside it to disturb, so none is cleared.
    "mixed" pads row by row on the right, on the left, with holes and at random.
    """
    mask = np.ones((rows, length), np.int64)
    for row in range(min(1, rows - 1), rows):
        mask[row] = _mask_row(_CYCLE[row % len(_CYCLE)] if kind == MIXED else kind, length, least, rng)
    if kind == "dead" and rows > 1:
        mask[1] = 0
    return mask


def _mask_row(kind: str, length: int, least: int, rng: np.random.Generator) -> np.ndarray:
    places = np.arange(length)
    if length <= least or kind in ("full", ""):
        return np.ones(length, np.int64)
    count = int(rng.integers(least, length))
    if kind == "left":
        return (places >= length - count).astype(np.int64)
    if kind == "random":
        return (rng.permutation(length) < count).astype(np.int64)
    if kind == "holes" and length > 2:
        hole = min(length - count, length - 2)
        start = int(rng.integers(1, length - hole))
        return ((places < start) | (places >= start + hole)).astype(np.int64)
    return (places < count).astype(np.int64)
