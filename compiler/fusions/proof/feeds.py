"""What a proof feeds a match: activations of every awkward size, ids within their tables, masks of every pattern."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import AUDIO_DIM, Dim, is_mask
from ...data import AUDIO_MIN, DEFAULT_BOUND, index_bounds, mask_pattern
from ...graph import DOMAIN, OPSET, Graph, Refused, evaluate_dim, model_from_nodes
from ...graph import MASK_LOW as REPLACED
from ...ops import MASK_INPUTS
from ...ops import expansion as canonical
from ..rewrite import Match

LOW = -3.4028234663852886e38  # the lowest float32, where the graph tells of no other
IR_VERSION = 10
MUCH = 2**20  # numbers fed to one replay; each of a dozen of that many takes a second or more
ROWS, DEAD = 3, 1  # row 0 of a batch is never padded, row 1 is the dead one
# Beside -10000 float32 keeps three digits of a score, and another order of sums rounds to others. A row that is masked whole is
# the softmax of its scores whatever number they all get, so it is proven with one that leaves them their digits. A low that
# swallows any score, as float32 is 64 apart there, makes such a row the mean of the values, exactly, and is fed as it is.
SHALLOW = -16.0
LOST, SWALLOWS = -100.0, -1e9
SMALL = 1e-3  # activations so small that an epsilon of 1e-12 in place of 1e-5 shows
PATTERNS = ("right", "left", "holes", "random", "dead", "bias")


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of feeds by value, and what to call it.

    `may_fail`: at so short a length an original may be undefined (a convolution wider than its input), which proves nothing and
    refutes nothing. `weights`: it feeds weights too, other than the match's own: not for a lowering, which may have folded them.
    `dead`: this row of the batch has no place to attend to under -inf, where an original says 0 or NaN and nobody reads it: the
    new form must be finite where the original is, and is not compared, as in `data.Sample`. Nor is it under the low that clean-up
    put for -inf. Under any other low it is compared: what is added is fed as SHALLOW there. `rounded`: the mask is made inside
    the match, with a low that takes digits from the scores. The canonical body rounds alike; a lowering was judged with SHALLOW
    where its operator was found, and here its row is only looked at. `batch` names the batch's dimension.
    """

    label: str
    feeds: Mapping[ir.Value, np.ndarray]
    may_fail: bool = False
    weights: bool = False
    dead: int | None = None
    rounded: bool = False
    batch: str | None = None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Batch, which of three lengths, the mask pattern, and the size of the activations."""

    rows: int
    step: int
    kind: str = "full"
    size: float = 1.0
    weights: bool = False  # scale shared vectors along with the activations

    @property
    def label(self) -> str:
        return f"batch {self.rows}, {('shortest', 'odd', 'longer odd')[self.step]} length, mask {self.kind}, size {self.size:g}"


PLANS = (
    _Plan(1, 0),
    _Plan(1, 1),
    _Plan(ROWS, 2),
    _Plan(ROWS, 2, "random", SMALL),
    _Plan(ROWS, 2, "random", SMALL, weights=True),
)
MASKED = tuple(_Plan(ROWS, 2, kind) for kind in PATTERNS)


class Feeder:
    """Makes the cases of a match; seeded, so that matches of one shape get the same feeds."""

    def __init__(self, graph: Graph, dims: Mapping[str, Dim], seed: int) -> None:
        self.dims, self.seed = dict(dims), seed
        self.infinite, self.low = _lows(graph)
        self.unread = self.infinite or self.low == REPLACED
        shapes = [value.shape for value in graph.model.graph.inputs if value.shape is not None]
        first = {str(dim) for shape in shapes for dim in list(shape)[:1]}
        self.lengths = {str(dim) for shape in shapes for dim in list(shape)[1:]} - first

    def cases(
        self,
        nodes: Sequence[ir.Node],
        values: Sequence[ir.Value],
        match: Match,
        constants: Mapping[ir.Value, np.ndarray],
        shared: Iterable[ir.Value],
        fixed: int | None = None,
    ) -> Iterator[Case]:
        """`values` are what is to be fed, `shared` what both sides read: vectors that both sides read are scaled along with the
        activations, or a bias would hide what an epsilon does to small ones. Of a batch of `fixed` rows, ROWS are made. Raises
        Refused."""
        for value in values:
            _check(value)
        masks = find_masks(nodes, values, match)
        bounds = _bounds(nodes, values)
        patterned = masks or any(v.dtype != ir.DataType.FLOAT for v in values)
        vectors = [v for v in shared if v in constants and constants[v].ndim == 1 and constants[v].dtype.kind == "f"]
        batches = {str(v.shape[0].value) for v in values if len(v.shape) > 1 and isinstance(v.shape[0], ir.SymbolicDim)}  # type: ignore
        batches -= self.lengths  # of what runs length first
        batch = _batch_of(masks)
        for plan, shapes in self._plans(values, batches, (*PLANS, *MASKED) if patterned else PLANS, bool(vectors)):
            rng = np.random.default_rng(self.seed)
            if fixed:
                shapes = [(ROWS, *shape[1:]) if shape[:1] == (fixed,) else shape for shape in shapes]
            pairs = zip(values, shapes, strict=True)
            feeds = {v: self._feed(v, shape, plan, v in masks, bounds.get(v), rng) for v, shape in pairs}
            if plan.weights:
                feeds |= {v: constants[v] * np.asarray(plan.size, constants[v].dtype) for v in vectors}
            rounded = plan.kind == "dead" and not self.unread and not masks and self.low > SWALLOWS
            dead = DEAD if plan.kind == "dead" and self.unread else None
            yield Case(plan.label, feeds, plan.step < 2, plan.weights, dead, rounded, batch)

    def _plans(
        self, values: Sequence[ir.Value], batches: set[str], plans: Sequence[_Plan], vectors: bool
    ) -> list[tuple[_Plan, list[tuple[int, ...]]]]:
        """Plans with the shapes of the values under them; of those that are the same, as all lengths of a fixed one, the last."""
        found: dict[Any, tuple[_Plan, list[tuple[int, ...]]]] = {}
        for plan in plans:
            sizes = _Sizes(self.dims, batches, plan)
            shapes = [tuple(sizes[dim] for dim in value.shape or ()) for value in values]
            if vectors or not plan.weights:
                found[tuple(shapes), plan.kind, plan.size, plan.weights] = plan, shapes
        return list(found.values())

    def _feed(
        self, value: ir.Value, shape: tuple[int, ...], plan: _Plan, mask: bool, bound: int | None, rng: np.random.Generator
    ) -> np.ndarray:
        assert value.dtype is not None
        dtype = value.dtype.numpy()
        if mask and dtype.kind == "f":
            return self._score_mask(shape, plan.kind, rng).astype(dtype)
        if dtype.kind == "f" and value.is_graph_input() and is_mask(str(value.name), "int64"):
            return _places("full" if plan.kind == "bias" else plan.kind, shape, rng).astype(dtype)  # 0 and 1, as a float
        if dtype.kind == "f":
            return np.asarray(rng.standard_normal(shape) * plan.size).astype(dtype)
        places = _places("full" if plan.kind == "bias" else plan.kind, shape, rng)
        if dtype.kind == "b" or (bound is None and len(shape) > 1):
            return places.astype(dtype)
        ids = np.asarray(rng.integers(0, bound or DEFAULT_BOUND, shape))
        # BERT pads with 0, RoBERTa with 1 and counts its positions by that.
        padding = min(1 if plan.kind in ("right", "holes") else 0, (bound or DEFAULT_BOUND) - 1)
        return np.where(places > 0, ids, padding).astype(dtype)

    def _score_mask(self, shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> np.ndarray:
        """0 where attended to, the graph's low elsewhere; "bias" is any number, which an added term may be."""
        noise = rng.standard_normal(shape)
        if kind == "bias":
            return noise
        masked = np.where(_places(kind, shape, rng) > 0, 0.0, -np.inf if self.infinite else self.low)
        masked = masked if self.unread else keep_digits(masked)
        per_head = len(shape) == 4 and shape[1] > 1
        return masked + noise * (masked == 0) if per_head else masked


class _Sizes:
    """Sizes of dimensions under one plan. A name has the same size everywhere, two names have different ones."""

    def __init__(self, dims: Mapping[str, Dim], batches: Iterable[str], plan: _Plan) -> None:
        self.dims, self.batches, self.plan = dims, set(batches), plan
        self.bound: dict[str, int] = {}

    def __getitem__(self, dim: int | ir.SymbolicDim) -> int:
        if isinstance(dim, int):
            return dim
        text = str(dim.value)
        if text not in self.bound:
            self.bound[text] = self._computed(dim) or self._free(text)
        return self.bound[text]

    def _computed(self, dim: ir.SymbolicDim) -> int | None:
        """The value of an expression over known dimensions, when it is one and comes out positive."""
        text = str(dim.value)
        if text in self.dims or text.isidentifier():
            return None
        try:
            names = sorted(dim.free_symbols())
        except ValueError:  # not arithmetic
            return None
        found = evaluate_dim(dim, {name: self[ir.SymbolicDim(name)] for name in names})
        return found if found is not None and found > 0 else None

    def _free(self, text: str) -> int:
        dim = self.dims.get(text, Dim(text))
        low = max(dim.min, AUDIO_MIN) if dim.name == AUDIO_DIM else dim.min
        others = sum(name not in self.batches for name in self.bound)
        step = (0, 6 + 2 * others, 16 + 2 * others)[self.plan.step]
        size = self.plan.rows if text in self.batches else low + step
        return dim.fit(size)


def keep_digits(added: np.ndarray) -> np.ndarray:
    """What is added to scores, with SHALLOW in the rows that are masked whole by a low beside which the scores lose digits."""
    deep = ((added <= LOST) & (added > SWALLOWS)).all(axis=-1, keepdims=True)
    return np.where(deep, np.asarray(SHALLOW, added.dtype), added)


def fixed_rows(values: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> int | None:
    """The rows of a batch that the graph fixes, where fewer of them are much less to replay: axis 0 of all that is fed, but of
    what all rows share, and of all that is made."""
    firsts = [v.shape[0] if v.shape is not None and v.shape.rank() else None for v in (*values, *outputs)]
    rows = max((each for each in firsts if isinstance(each, int)), default=0)
    if rows <= ROWS or any(each not in (1, rows) for each in firsts) or any(each != rows for each in firsts[len(values) :]):
        return None
    sizes = [math.prod(dim if isinstance(dim, int) else 1 for dim in v.shape or ()) for v in values]
    return rows if sum(sizes) > MUCH else None


def _batch_of(masks: Iterable[ir.Value]) -> str | None:
    """The name of the batch's dimension: the first of what is added to the scores [batch, heads, queries, keys]."""
    first = [value.shape[0] for value in masks if value.shape is not None and len(value.shape) == 4]
    return next((str(dim.value) for dim in first if isinstance(dim, ir.SymbolicDim) and dim.value), None)


def _check(value: ir.Value) -> None:
    if value.dtype is None or value.shape is None:
        raise Refused(f"the type or shape of {value.name!r} is unknown; run onnx.shape_inference on the file first")
    if value.dtype.numpy().kind not in "fiub":
        raise Refused(f"no test data can be generated for {value.name!r} of type {value.dtype.name}")
    if any(not isinstance(d, int) and d.value is None for d in value.shape):
        raise Refused(f"{value.name!r} has an unnamed dimension in {value.shape}; run onnx.shape_inference on the file first")


def _lows(graph: Graph) -> tuple[bool, float]:
    """(whether the graph masks with -inf, the finite number it masks with), from its scalar constants."""
    found = []
    for value in [*graph.model.graph.initializers.values(), *(v for n in graph.model.graph for v in n.outputs)]:
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None and constant.dtype.is_floating_point() and constant.size == 1:
            found.append(float(constant.numpy().reshape(-1)[0]))
    finite = [evaluate_dim for evaluate_dim in found if np.isfinite(evaluate_dim) and evaluate_dim <= -1e4]
    return -np.inf in found, min(finite, default=LOW)


def _places(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """1 where attended to; rows are axis 0, and for "random" every axis but the last."""
    if not shape:
        return np.ones(shape, np.int64)
    rows = (shape[0] if kind != "random" else int(np.prod(shape[:-1]))) if len(shape) > 1 else 1
    pattern = mask_pattern(kind, rows, shape[-1], 1, rng)
    if kind == "random" or len(shape) == 1:
        return pattern.reshape(shape)
    return np.broadcast_to(pattern.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1]), shape)


def find_masks(nodes: Sequence[ir.Node], values: Sequence[ir.Value], match: Match) -> set[ir.Value]:
    """What is added to scores: called a mask by the rule, or read as one by an operator, or of a score mask's shape."""
    found = {v for name, v in match.bindings.items() if "mask" in name and isinstance(v, ir.Value)}
    for node in (*nodes, *match.new_nodes):
        position = MASK_INPUTS.get(node.op_type) if node.domain == DOMAIN else None
        if position is not None and len(node.inputs) > position:
            found.add(node.inputs[position])  # type: ignore[arg-type]
    found |= {v for v in values if v.shape is not None and len(v.shape) == 4 and v.shape[1] == 1 and _is_added(v, nodes)}
    return {v for v in found if v in values}


def _is_added(value: ir.Value, nodes: Sequence[ir.Node]) -> bool:
    return any(user in nodes and user.op_type == "Add" for user, _ in value.uses())


def _bounds(nodes: Sequence[ir.Node], values: Sequence[ir.Value]) -> dict[ir.Value, int]:
    """The exclusive upper bound of integers that index a table; a mask has none, so that it gets 0 and 1."""
    integers = [v for v in values if v.dtype is not None and v.dtype.numpy().kind in "iu"]
    if not integers:
        return {}
    model, inputs = model_from_nodes(nodes, nodes[-1].outputs, {"": OPSET}, IR_VERSION)
    canonical.inline(model)
    for index, value in enumerate(model.graph.inputs):
        value.name = f"i{index}"
    found = index_bounds(Graph(model))
    return {v: found[f"i{i}"] for i, v in enumerate(inputs) if f"i{i}" in found and not is_mask(str(v.name), "int64")}
