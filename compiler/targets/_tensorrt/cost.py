"""Work of an engine by layer, from its graph and build log alone: kernels, FLOPs and bytes, no time.

FLOPs are those of the products: 2 for each multiply and add of MatMul, Gemm, Conv, Einsum and Attention at the given sizes.
Bytes are a lower bound of what kernels read and write: every tensor that leaves a kernel is written once and read once by each
kernel that takes it, or as much of it as the kernel picks; every weight is read once by each kernel that uses it, but for what a
builder folds (`_folded`). Caches, scratch memory, tensors that are read twice and those that a builder makes up between the nodes
of the graph are not in it. Where all sizes are numbers a build log lists every tensor of every kernel (`engine_choice`): by that
all-MiniLM-L6-v2 at batch 8, length 128 moves 150.5 MiB in float16 and 176.5 in int8, and 150.2 and 176.2 by this count. What is
missing: the log does not tell which indices are for the table of positions, so all of it is counted there, and here the rows that
are read; sums of a norm that two kernels share are in the log alone. Of a weight that several kernels name, such as the scales of
an int8 weight, the log may have the second reader and this count the first: it is a lower bound of the sum, not of each kernel.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir

from ...artifact import Artifact
from ...core import DataError, Shape
from ...graph import GEMM_OPS, ConcreteShapes, Graph, module_path
from . import kernel_log as _kernels
from . import weight_check as _weights

REST = "outside layers"
MULTI_HEAD = "MultiHeadAttention"  # of com.microsoft, which has an Attention of its own, too
SHAPE_OPS = frozenset({"Shape", "Size"})
VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Expand", "Flatten"})  # of their first input
MOVING = VIEWS | {"Transpose", "Identity", "Cast", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND"}
INDICES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


@dataclasses.dataclass(frozen=True)
class Layer:
    """One transformer layer, or what lies outside of them; `moved` bytes, None where there is no list of kernels."""

    name: str
    kernels: int
    flops: int
    moved: int | None


@dataclasses.dataclass(frozen=True)
class Work:
    """The layers of an engine at one shape, under the optimisation profile that takes it.

    `unknown` counts products and tensors whose sizes the graph does not tell, `nameless` kernels that name no node of it: what
    they move is missing from the sums.
    """

    shape: Shape
    profile: int
    layers: tuple[Layer, ...]
    unknown: int
    nameless: int = 0

    def total(self) -> Layer:
        moved = [layer.moved for layer in self.layers]
        whole = None if None in moved else sum(m or 0 for m in moved)
        return Layer("total", sum(x.kernels for x in self.layers), sum(x.flops for x in self.layers), whole)

    def to_json(self) -> dict[str, Any]:
        rows = [dataclasses.asdict(layer) for layer in (*self.layers, self.total())]
        left_out = {"unknown": self.unknown, "nameless": self.nameless}
        return {"shape": dict(self.shape.sizes), "profile": self.profile, "layers": rows, **left_out}


def artifact_work(found: Artifact, shapes: Sequence[Shape]) -> tuple[Work, ...]:
    """The work of an artifact at each shape. DataError for a shape that no profile takes."""
    graph = found.graph()
    rows = found.manifest["engine"].get("kernels", {}).get("rows")
    return tuple(graph_work(graph, rows, shape, _profile(found, shape)) for shape in shapes)


def _profile(found: Artifact, shape: Shape) -> int:
    sizes = dict(shape.sizes)
    for index, profile in enumerate(found.profiles):
        if all(profile[name].min <= size <= profile[name].max for name, size in sizes.items() if name in profile):
            return index
    known = " or ".join(",".join(f"{name}={r.min}..{r.max}" for name, r in p.items()) for p in found.profiles)
    raise DataError(f"{found.path.name} takes no {shape}; its profiles are {known}")


def graph_work(graph: Graph, rows: Sequence[Mapping[str, Any]] | None, shape: Shape, profile: int) -> Work:
    """The work of a graph at one shape; `rows` are the kernels of its build log (`kernel_rows`), None without one."""
    sizes = _Sizes(graph, dict(shape.sizes))
    kernels = [row for row in rows or () if row["profile"] == profile]
    namers: dict[str, list[int]] = {}
    for at, row in enumerate(kernels):
        for name in row["onnx_nodes"]:
            namers.setdefault(name, []).append(at)
    flops: collections.Counter[str] = collections.Counter()
    for node in graph.model.graph.all_nodes():
        if node.op_type in GEMM_OPS or node.op_type == MULTI_HEAD:
            named = namers.get(_kernels.node_name(node))
            flops[kernels[named[0]]["layer"] or REST if named else _layer(node)] += sizes.flops(node)
    counts = collections.Counter(row["layer"] or REST for row in kernels)
    moved: collections.Counter[str] = collections.Counter()
    for at, count in enumerate(_moved(graph, namers, len(kernels), sizes) if kernels else ()):
        moved[kernels[at]["layer"] or REST] += count
    names = [*sorted({*counts, *flops} - {REST}, key=_order), REST]
    layers = tuple(Layer(name, counts[name], flops[name], moved[name] if kernels else None) for name in names)
    return Work(shape, profile, layers, sizes.unknown, sum(not row["onnx_nodes"] for row in kernels))


def _layer(node: ir.Node) -> str:
    home = _kernels.layer_of(module_path(node))
    return f"{home[0]}.{home[1]}" if home else REST


def _order(name: str) -> tuple[str, int]:
    stack, _, number = name.rpartition(".")
    return stack, int(number)


def _moved(graph: Graph, namers: Mapping[str, Sequence[int]], count: int, sizes: _Sizes) -> list[int]:
    """Bytes that each of `count` kernels reads and writes. `namers`: node name -> the kernels that name it, in their order."""
    flow = _Flow(namers, sizes)
    reads: list[set[Read]] = [set() for _ in range(count)]
    crossing: dict[ir.Value, set[Read]] = {}
    computing = [node for node in graph.model.graph.all_nodes() if node.op_type not in MOVING and flow.owner(node) is not None]
    wanted = [(flow.owner(node), value) for node in computing for value in node.inputs]
    wanted += [(None, output) for output in graph.model.graph.outputs]
    for reader, value in wanted:  # grows: what a kernel only moves it reads because another kernel wants it
        for found in flow.behind(value, reader):
            if reader is not None:
                reads[reader].add(found)
            maker = found.value.producer()
            if maker is not None and found.value not in crossing and maker.op_type in MOVING:
                wanted += [(flow.owner(maker), found.value)]
            crossing.setdefault(found.value, set()).add(found)
    moved = [_nbytes(each, sizes) for each in reads]
    for value, parts in crossing.items():
        maker = value.producer()
        owner = flow.owner(maker) if maker is not None else None
        if owner is not None:
            moved[owner] += _nbytes(parts, sizes)
    return moved


def _nbytes(reads: Iterable[Read], sizes: _Sizes) -> int:
    """Bytes of parts of values. Parts may overlap: together they are never more than the value."""
    parts: collections.Counter[ir.Value] = collections.Counter()
    for read in reads:
        parts[read.value] += sizes.nbytes(read.part, read.bits)
    return sum(min(nbytes, sizes.nbytes(value)) for value, nbytes in parts.items())


class Read(NamedTuple):
    """What is read of a value: as many elements as `part` has, the smallest value on the way to who reads it, each of `bits`."""

    value: ir.Value
    part: ir.Value
    bits: int


class _Flow:
    """Which values cross from one kernel to another.

    Nodes that no kernel names, views and folded casts, are looked through. The first kernel that names a node makes it; but one
    that only moves data each kernel does for itself that names it.
    """

    def __init__(self, namers: Mapping[str, Sequence[int]], sizes: _Sizes) -> None:
        self._namers = namers
        self._sizes = sizes

    def owner(self, node: ir.Node) -> int | None:
        return next(iter(self._namers.get(_kernels.node_name(node), ())), None)

    def behind(self, value: ir.Value | None, reader: int | None, part: ir.Value | None = None, bits: int = 64) -> Iterator[Read]:
        """The values of other kernels, inputs and weights that a value comes from; nothing for what the reader makes itself."""
        maker = value.producer() if value is not None else None
        if value is None or (maker is not None and maker.op_type in SHAPE_OPS):
            return
        part = value if part is None or self._sizes.fits(value, part) else part
        own = value.dtype.bitwidth if value.dtype is not None else bits
        read = Read(value, part, own if value.is_graph_input() else min(bits, own))
        if maker is None or value.const_value is not None:
            yield from () if _folded(value) else (read,)
            return
        namers, moves = self._namers.get(_kernels.node_name(maker), ()), maker.op_type in MOVING
        if namers and not (moves and reader in namers):
            yield from () if namers[0] == reader else (read,)
            return
        # Who casts, where several kernels may: what they hand on may be of either type. Alone, the reader reads what it casts.
        bits = 64 if not moves or list(namers) == [reader] else read.bits
        for at, each in enumerate(maker.inputs[:1] if maker.op_type in VIEWS else maker.inputs):
            yield from self.behind(each, reader, part if moves and at == 0 else None, bits)


def _folded(value: ir.Value) -> bool:
    """Whether a builder may fold a weight: indices and shapes, and one value for all elements (zero points, weights of ones)."""
    tensor = value.const_value
    return tensor is not None and (tensor.dtype in INDICES or _weights.is_uniform(tensor))


class _Sizes(ConcreteShapes):
    """What follows from shapes. `unknown` counts the values that have none."""

    def __init__(self, graph: Graph, named: Mapping[str, int]) -> None:
        super().__init__(graph, named)
        self._unknown: set[str] = set()

    @property
    def unknown(self) -> int:
        return len(self._unknown)

    def nbytes(self, value: ir.Value, bits: int | None = None) -> int:
        """Bytes of a value, of its own type or of elements of so many bits."""
        dims, bits = self.dims(value), value.dtype.bitwidth if bits is None and value.dtype is not None else bits
        if dims is None or bits is None:
            self._unknown.add(str(value.name))
            return 0
        return -(-math.prod(dims) * bits // 8)

    def fits(self, value: ir.Value, part: ir.Value) -> bool:
        """Whether a value has no more elements than another, as far as that is known."""
        one, other = self.dims(value), self.dims(part)
        return one is not None and (other is None or math.prod(one) <= math.prod(other))

    def flops(self, node: ir.Node) -> int:
        """2 for each multiplication and addition of a product."""
        out, *given = (self.dims(value) for value in (node.outputs[0], *node.inputs[:2]))
        if out is None or any(dims is None for dims in given):
            self._unknown.add(_kernels.node_name(node))
            return 0
        first, second = (dims or [] for dims in given)
        grown = self.dims(node.outputs[1]) if node.op_type == MULTI_HEAD and len(node.outputs) > 1 else None
        if grown is not None:  # a cache: [B,h,T,d]
            second = [*second[:1], grown[2], *second[2:]]
        return 2 * _products(node, out, first, second)


def _products(node: ir.Node, out: Sequence[int], first: Sequence[int], second: Sequence[int]) -> int:
    """Multiplications of a node by the shapes of its output and of its first two inputs."""
    if node.op_type == MULTI_HEAD:
        return 2 * math.prod(out) * second[1]
    if node.op_type == "Attention" and node.domain == "com.microsoft":  # it projects x first
        return math.prod(first) * second[1] + 2 * math.prod(out) * out[1]
    if node.op_type == "Attention":  # q k^T, and the same again with v
        return 2 * math.prod(first) * second[-2]
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    if node.op_type == "Einsum":
        terms = node.attributes["equation"].as_string().replace(" ", "").partition("->")[0].split(",")
        named = [pair for term, dims in zip(terms, (first, second), strict=False) for pair in zip(term, dims, strict=False)]
        return math.prod(dict(named).values())
    turned = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
    return math.prod(out) * first[0 if turned else -1]
