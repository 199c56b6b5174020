"""mask: what turns attention_mask [B,S] into an additive score mask, as one bertc.FusedScoreMask(attention_mask; low) [B,1,1,S].

    score[b,0,0,t] = 0 where attention_mask[b,t] is not 0, else low        (Vaswani et al. 2017, section 3.2.3, for padding)

Exporters spell this in too many ways for patterns: (1 - mask) * low, Where(mask, 0, low) per layer, a GatherND over index grids,
flattened and expanded to [B,1,S,S]. So it is found by meaning: of every float value of rank 4 that depends on the numbers of one
graph input alone (on others at most through their shapes) and enters the scores, the subgraph is run on masks of every kind.
Where it is FusedScoreMask exactly, its readers get the one node that all layers share; else the reason is kept.

A low of -inf becomes cleanup.LOW, which has the same softmax wherever anything is attended to. Masks hold 0 and 1. The runs reach
beyond every integer constant of the subgraph, so that a window is not taken for padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import pattern

from ...graph import DOMAIN, MASK_LOW, Graph
from ...graph import provenance as origin
from ...ops import MASK_INPUTS
from ..rewrite import RULE, Applied, Change, Match, Prove, Refusal
from ._mask_run import Run, dims_of

OP = "FusedScoreMask"
RULES: list[pattern.RewriteRule] = []
NAME = "mask"
FUSED = {op: (position,) for op, position in MASK_INPUTS.items()}
READERS = {"Add": (0, 1), **FUSED}
SHAPES = ((1, 1), (3, 1), (1, 5), (2, 8), (3, 7))
LONGEST = 4096
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "LayerNormalization", "Softmax"})


@dataclasses.dataclass(frozen=True)
class Score:
    """A value found to be FusedScoreMask(source; low)."""

    source: ir.Value
    low: float


def apply(graph: Graph, prove: Prove | None = None) -> tuple[Graph, Change]:
    """Replace every score mask of a graph by FusedScoreMask, one node for each (input, low); the given graph is not changed.

    With `prove` each is proven like any match, together with the first node that reads it: there the exporter's [B,1,S,S] and
    the operator's [B,1,1,S] come to the same. The error kept is that of the first mask a node stands for.

    Runs after `sdpa` and `attention`, and also where these found nothing: then an Add before the Softmax reads the mask.
    """
    copy = graph.copy()
    onnx_graph = copy.model.graph
    depends = dependencies(onnx_graph)
    made: dict[Score, ir.Value] = {}
    refusals: dict[ir.Value, Refusal] = {}
    applied: list[Applied] = []
    for value in _candidates(onnx_graph, depends):
        nodes = made_by(value, depends)
        if any(node.domain or node.op_type in PRODUCTS for node in nodes):
            continue  # activations of a model with one input, or a sum whose mask was found before
        answer = _meaning(value, nodes, depends)
        error = _proven(value, nodes, answer, prove) if isinstance(answer, Score) and prove else None
        answer = error if isinstance(error, str) else answer
        if isinstance(answer, str):
            if any(depends.get(reader.outputs[0]) != depends[value] or reader.op_type in FUSED for reader, _ in _readers(value)):
                refusals[value] = _refusal(value, answer)
            continue
        if answer not in made:
            made[answer] = _insert(copy.model, answer, value, nodes)
            applied.append(
                Applied(NAME, str(made[answer].producer().name), origin.unite_origins(map(origin.origin_of, nodes)).module, error)
            )
        else:
            origin.take_over_origins([made[answer].producer(), *nodes], [made[answer].producer()])
        for reader, index in _readers(value):
            reader.replace_input_with(index, made[answer])
    if applied:
        ir.passes.common.RemoveUnusedNodesPass()(copy.model)
        copy.model.opset_imports.setdefault(DOMAIN, 1)
    return copy, Change(tuple(applied), tuple(refusals.values()))


# ---- what could be one -----------------------------------------------------------------------------------------------


def dependencies(graph: ir.Graph) -> dict[ir.Value, frozenset[ir.Value]]:
    """The graph inputs on whose numbers each value depends; what is read through a Shape alone does not count."""
    found: dict[ir.Value, frozenset[ir.Value]] = {value: frozenset([value]) for value in graph.inputs}
    for node in graph:
        through = frozenset[ir.Value]()
        if node.op_type not in ("Shape", "Size"):
            inputs = [v for v in node.inputs if v is not None] + list(_captured(node))
            through = frozenset[ir.Value]().union(*(found.get(v, frozenset()) for v in inputs))
        found |= dict.fromkeys(node.outputs, through)
    return found


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Outer values that subgraphs of a node read."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None)


def _candidates(graph: ir.Graph, depends: Mapping[ir.Value, frozenset[ir.Value]]) -> list[ir.Value]:
    """Float values of rank 4 that depend on one input and enter a sum or an attention."""
    values = [v for node in graph for v in node.outputs if node.op_type != OP and len(depends[v]) == 1]
    # What an earlier rule has made may lack a type and a shape: the run tells them.
    floats = [v for v in values if v.dtype is None or v.dtype.is_floating_point()]
    ranked = [v for v in floats if v.shape is None or len(v.shape) == 4]
    return [v for v in ranked if _readers(v)]


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that take [B,1,1,S] as well as what the exporter expanded it to."""
    found = [(use.node, use.idx) for use in value.uses() if use.idx in READERS.get(use.node.op_type, ())]
    return [(node, index) for node, index in found if node.op_type != "Add" or _has_queries(node.inputs[1 - index])]


def _has_queries(other: ir.Value | None) -> bool:
    """Does the other term of a sum span the queries by itself? Else the sum would shrink."""
    return other is not None and other.shape is not None and len(other.shape) == 4 and other.shape[2] != 1


def made_by(value: ir.Value, depends: Mapping[ir.Value, frozenset[ir.Value]]) -> list[ir.Node]:
    """The nodes that make a value, in order, from its input and from Shape nodes of anything else."""
    source = depends[value]
    seen: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen[node] = None
        if not _is_foreign(node, depends, source):
            waiting += [v for v in node.inputs if v is not None]
    graph = value.graph
    assert graph is not None
    return [node for node in graph if node in seen]


def _is_foreign(node: ir.Node, depends: Mapping[ir.Value, frozenset[ir.Value]], source: frozenset[ir.Value]) -> bool:
    """Does a node ask for the shape of something that is not made from the mask? Then the shape is fed to the run."""
    return node.op_type == "Shape" and node.inputs[0] is not None and not depends.get(node.inputs[0], frozenset()) <= source


# ---- what it means ---------------------------------------------------------------------------------------------------


def _meaning(value: ir.Value, nodes: list[ir.Node], depends: Mapping[ir.Value, frozenset[ir.Value]]) -> Score | str:
    """The score mask that a value is on every mask tried, or why it is none."""
    (source,) = depends[value]
    if source.shape is None or len(source.shape) != 2:
        rank = "unknown rank" if source.shape is None else f"rank {len(source.shape)}"
        return f"{source.name} is a mask of {rank}, not [batch, length]: each query has a row of its own"
    if value.dtype not in (None, ir.DataType.FLOAT):
        return f"the mask is computed in {value.dtype}, not float32"
    foreign = [node for node in nodes if _is_foreign(node, depends, depends[value])]
    for node in foreign:
        if dims_of(node.inputs[0], source) is None:
            return f"the shape of {node.inputs[0].name} is not known in terms of {source.name}"
    longest = max([64, *(2 * n + 3 for n in _integers(nodes))])
    if longest > LONGEST:
        return f"it compares with {(longest - 3) // 2}: too many lengths to try"
    low: float | None = None
    try:
        run = Run(value, nodes, foreign, source)
    except Exception as error:  # noqa: BLE001 - an operator that the evaluator lacks
        return f"it cannot be run: {str(error).splitlines()[0][:120]}"
    for shape in dict.fromkeys(_fixed(source, shape) for shape in (*SHAPES, (1, longest))):
        for mask in masks(*shape):
            answer = _compare(run, mask, low)
            if isinstance(answer, str):
                return answer
            low = answer if answer is not None else low
    if low is None:
        return "nothing is ever masked"
    return Score(source, MASK_LOW if np.isinf(low) else low)


def _fixed(source: ir.Value, shape: tuple[int, int]) -> tuple[int, int]:
    """(batch, length), but what the graph declares as a number."""
    declared = source.shape or (None, None)
    batch, length = (dim if isinstance(dim, int) else wanted for dim, wanted in zip(declared, shape, strict=True))
    return batch, length


def _compare(run: Run, mask: np.ndarray, low: float | None) -> float | str | None:
    """The low value of one run (None where nothing is masked), or how it differs from FusedScoreMask."""
    batch, length = mask.shape
    with np.errstate(all="ignore"):
        try:
            got = run(mask)
        except Exception as error:  # noqa: BLE001 - the evaluator raises whatever numpy does
            return f"it cannot be run on a mask of {batch} x {length}: {str(error).splitlines()[0][:120]}"
    allowed = np.broadcast_to((mask != 0)[:, None, None, :], (batch, 1, 1, length))
    if got.dtype != np.float32:
        return f"the mask is computed in {got.dtype}, not float32"
    if got.ndim != 4 or got.shape[3] not in (1, length) or got.shape[0] not in (1, batch):
        return f"it has shape {list(got.shape)} for a mask of {batch} x {length}"
    wide = np.broadcast_shapes(got.shape, allowed.shape)
    got, allowed = np.broadcast_to(got, wide), np.broadcast_to(allowed, wide)
    if low is None and not allowed.all():
        low = float(got[~allowed][0])
        if not low <= -100:
            return f"a masked position gets {low}, which does not mask it"
    wanted = np.where(allowed, np.float32(0), np.float32(low if low is not None else 0))
    if np.array_equal(got, wanted):
        return low
    place = np.argwhere(~(got == wanted))[0]
    return _difference(mask, place, float(got[tuple(place)]))


def _difference(mask: np.ndarray, place: np.ndarray, found: float) -> str:
    row, _, query, key = (int(i) for i in place)
    row = min(row, mask.shape[0] - 1)
    if mask[row, key] and found > -100:
        return f"an attended position gets {found}, not 0"
    if mask.all() and key > query:
        return f"it is causal: query {query} does not attend to {key} of {mask.shape[1]} unmasked positions ({found})"
    if mask.all():
        return f"query {query} does not attend to {key} of {mask.shape[1]} unmasked positions ({found}): a window or a bias"
    if not mask[row].any():
        return f"a row that attends to nothing gets {found} at {key}"
    return f"query {query} at key {key} gets {found} where the mask is {int(mask[row, key])}"


def masks(batch: int, length: int) -> Iterator[np.ndarray]:
    """All attended, padded right, left, with holes, random, with a row that attends to nothing; [batch, length] of 0 and 1."""
    full = np.ones((batch, length), np.int64)
    keys, rows = np.arange(length), np.arange(batch)[:, None]
    yield full
    yield (keys < np.maximum(1, length - 1 - rows)).astype(np.int64)
    yield (keys >= np.minimum(length - 1, 1 + rows)).astype(np.int64)
    yield np.where((keys + rows) % 3 == 1, 0, full)
    yield np.random.default_rng(length).integers(0, 2, (batch, length))
    yield np.where(rows == batch - 1, 0, full)


def _integers(nodes: list[ir.Node]) -> list[int]:
    """The integer constants in a subgraph that could be a distance; indices meaning "to the end" are none."""
    constants = {v for node in nodes for v in node.inputs if v is not None and v.const_value is not None}
    found = [0]
    for value in constants:
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_integer() and tensor.size:
            found += [int(n) for n in np.unique(np.abs(tensor.numpy().astype(np.float64))) if n < 2**31]
    return found


def _proven(value: ir.Value, nodes: list[ir.Node], score: Score, prove: Prove) -> float | str:
    """What the proof says of the first reader of a mask with the operator in the mask's place."""
    reader, index = _readers(value)[0]
    node = _node(score, "proof")
    inputs = [node.outputs[0] if at == index else given for at, given in enumerate(reader.inputs)]
    count, attributes = len(reader.outputs), list(reader.attributes.values())
    copy = ir.Node(reader.domain, reader.op_type, inputs, attributes, num_outputs=count, name=f"{reader.name}.proof")
    answer = prove(Match(NAME, (*nodes, reader), tuple(reader.outputs), (node, copy), tuple(copy.outputs), (), {}))
    for new in (copy, node):
        for at in range(len(new.inputs)):
            new.replace_input_with(at, None)  # as readers they would stand in the way of later rules
    return answer


# ---- the new node ----------------------------------------------------------------------------------------------------


def _insert(model: ir.Model, score: Score, old: ir.Value, nodes: list[ir.Node]) -> ir.Value:
    """Put FusedScoreMask before everything that can read it."""
    graph = model.graph
    node = old.producer()
    assert node is not None
    made = _node(score, f"{NAME}.{node.name}")
    made.outputs[0].name = f"{old.name}.score"
    made.metadata_props[RULE] = NAME
    origin.take_over_origins(nodes, [made])
    graph.insert_before(graph[0], made)
    return made.outputs[0]


def _node(score: Score, name: str) -> ir.Node:
    """FusedScoreMask of a score, its output typed."""
    made = ir.Node(DOMAIN, OP, [score.source], [ir.AttrFloat32("low", score.low)], name=name)
    assert score.source.shape is not None
    batch, length = score.source.shape
    made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([batch, 1, 1, length])
    return made


def _refusal(value: ir.Value, reason: str) -> Refusal:
    node = value.producer()
    assert node is not None
    return Refusal(NAME, str(node.name), node.op_type, origin.origin_of(node).module, reason)


_GRAPH = """
<ir_version: 8, opset_import: ["" : 18]>
example ({kind} attention_mask, float[B, 2, S, S] scores) => (float[B, 2, S, S] y)
<float one = {{1.0}}, float low = {{-10000.0}}, float inf = {{-65504.0}}, float zero = {{0.0}},
 int64[2] axes = {{1, 2}}, int64[1] axis = {{1}},
 int64 start = {{0}}, int64 step = {{1}}, int64[1] first = {{0}}, int64 window = {{4}}> {{
{body}
a = Add(scores, m)
y = Softmax <axis = -1> (a)
}}
"""
_BOOL = "u = Unsqueeze(attention_mask, axes)\nc = Cast <to = 9> (u)\n"
_GRID = """n = Shape(attention_mask)
i = Shape <start = 1> (attention_mask)
k = Squeeze(i)
r = Range(start, k, step)
q = Unsqueeze(r, axis)
"""
_EXPANDED = """h = Constant <value_ints = [1]> ()
o = Shape <start = 0, end = 1> (scores)
l = Shape <start = 2> (scores)
t = Concat <axis = 0> (o, h, l)
s = Expand(c, t)
m = Where(s, zero, inf)"""


def _text(body: str, kind: str = "int64[B, S]") -> str:
    return _GRAPH.format(body=body, kind=kind)


EXAMPLES: list[str] = [
    _text("u = Unsqueeze(attention_mask, axes)\nf = Cast <to = 1> (u)\nd = Sub(one, f)\nm = Mul(d, low)"),
    _text(_BOOL + "m = Where(c, zero, inf)", "int32[B, S]"),
    _text(_BOOL + _EXPANDED),
]
NEAR_MISSES: list[tuple[str, str]] = [
    (_text(_BOOL + _GRID + "g = LessOrEqual(r, q)\nb = And(c, g)\nm = Where(b, zero, inf)"), "it is causal"),
    (_text(_BOOL + _GRID + "e = Sub(q, r)\nf = Abs(e)\ng = LessOrEqual(f, window)\nb = And(c, g)\nm = Where(b, zero, inf)"),
     "does not attend to"),
    (_text("u = Unsqueeze(attention_mask, axis)\nc = Cast <to = 9> (u)\nm = Where(c, zero, inf)", "int64[B, S, S]"),
     "attention_mask is a mask of rank 3"),
    (_text("u = Unsqueeze(attention_mask, axes)\nm = Cast <to = 1> (u)"), "an attended position gets 1.0"),
]  # fmt: skip
