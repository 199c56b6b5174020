"""The proof of matches: true ones pass on a small encoder, every mutation is caught, and what cannot be run is refused."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from mutations import Mutation, attribute, changed, dropped, replaced, swapped
from onnx_ir.passes.common import ShapeInferencePass

from bertc.core.profiles import Dim
from bertc.data import synthetic as data
from bertc.fusions import engine as fuse
from bertc.fusions.proof import prover as prove
from bertc.fusions.proof.prover import Prover, distance
from bertc.fusions.rewrite import Match, apply_rules
from bertc.graph import normalization as cleanup
from bertc.graph.model import Graph
from bertc.graph.subgraph import Refused
from bertc.ops import expansion as canonical
from bertc.ops.registry import BODIES
from bertc.runtime import reference

H, HEADS, F, V, P = 12, 3, 20, 30, 24
DIMS = {"batch": Dim("batch"), "length": Dim("length", 1, P)}
VECTORS = "bq bk bv bo g1 b1 bf be g2 b2"
LAYER = """
    {p}q0 = MatMul ({x}, {p}wq)
    {p}q1 = Add ({p}q0, {p}bq)
    {p}k0 = MatMul ({x}, {p}wk)
    {p}k1 = Add ({p}k0, {p}bk)
    {p}v0 = MatMul ({x}, {p}wv)
    {p}v1 = Add ({p}v0, {p}bv)
    {p}q2 = Reshape ({p}q1, split)
    {p}k2 = Reshape ({p}k1, split)
    {p}v2 = Reshape ({p}v1, split)
    {p}q = Transpose <perm = [0, 2, 1, 3]> ({p}q2)
    {p}k = Transpose <perm = [0, 2, 3, 1]> ({p}k2)
    {p}v = Transpose <perm = [0, 2, 1, 3]> ({p}v2)
    {p}s0 = MatMul ({p}q, {p}k)
    {p}s1 = Mul ({p}s0, scale)
    {p}s2 = Add ({p}s1, mask)
    {p}p = Softmax <axis = -1> ({p}s2)
    {p}c0 = MatMul ({p}p, {p}v)
    {p}c1 = Transpose <perm = [0, 2, 1, 3]> ({p}c0)
    {p}c2 = Reshape ({p}c1, merge)
    {p}o0 = MatMul ({p}c2, {p}wo)
    {p}o1 = Add ({p}o0, {p}bo)
    {p}r1 = Add ({p}o1, {x})
    {p}n1 = LayerNormalization <axis = -1, epsilon = 1e-12> ({p}r1, {p}g1, {p}b1)
    {p}f0 = MatMul ({p}n1, {p}wf)
    {p}f1 = Add ({p}f0, {p}bf)
    {p}f2 = Gelu ({p}f1)
    {p}e0 = MatMul ({p}f2, {p}we)
    {p}e1 = Add ({p}e0, {p}be)
    {p}r2 = Add ({p}e1, {p}n1)
    {p}n2 = LayerNormalization <axis = -1, epsilon = 1e-12> ({p}r2, {p}g2, {p}b2)
"""
TEXT = f"""
<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch,length] ids, int64[batch,length] attention_mask, float[{V},{H}] word, WEIGHTS) => (float[batch,length,{H}] y)
<int64[4] split = {{0, 0, {HEADS}, {H // HEADS}}}, int64[3] merge = {{0, 0, {H}}}, float scale = {{0.5}},
 int64[2] axes = {{1, 2}}, float one = {{1}}, float low = {{-3.4028234663852886e38}}>
{{
    x0 = Gather (word, ids)
    a0 = Unsqueeze (attention_mask, axes)
    a1 = Cast <to = 1> (a0)
    a2 = Sub (one, a1)
    mask = Mul (a2, low)
LAYERS
    y = Identity (l1n2)
}}
"""


def shapes() -> dict[str, tuple[int, ...]]:
    made: dict[str, tuple[int, ...]] = {}
    for layer in ("l0", "l1"):
        made |= {f"{layer}{name}": (F,) if name == "bf" else (H,) for name in VECTORS.split()}
        made |= {f"{layer}w{name}": (H, H) for name in "qkvo"} | {f"{layer}wf": (H, F), f"{layer}we": (F, H)}
    return made


@functools.cache
def encoder() -> Graph:
    """Two BERT layers, weights seeded: biases matter as much as products."""
    weights = shapes()
    text = TEXT.replace("WEIGHTS", ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in weights.items()))
    text = text.replace("LAYERS", LAYER.format(p="l0", x="x0") + LAYER.format(p="l1", x="l0n2"))
    model = ir.from_proto(onnx.parser.parse_model(text))
    rng = np.random.default_rng(0)
    for value in list(model.graph.inputs)[2:]:
        model.graph.inputs.remove(value)
        shape = weights.get(str(value.name), (V, H))
        array = rng.standard_normal(shape) / (shape[0] ** 0.5 if len(shape) > 1 else 2) + (value.name or "")[2:].startswith("g")
        value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
        model.graph.register_initializer(value)
    ShapeInferencePass()(model)
    return Graph(model)


@functools.cache
def fused() -> tuple[Graph, tuple[Match, ...], tuple[float | str, ...]]:
    """The encoder fused with proof, the matches that were kept and what was answered for each."""
    matches: list[Match] = []
    answers: list[float | str] = []
    call = Prover.__call__

    def record(self: Prover, match: Match) -> float | str:
        answers.append(call(self, match))
        matches.append(match)
        return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prover, "__call__", record)
        graph = fuse.fuse(encoder(), DIMS).graph
    return graph, tuple(matches), tuple(answers)


def test_every_match_of_an_encoder_is_proven() -> None:
    graph, _, answers = fused()
    assert [answer for answer in answers if isinstance(answer, str)] == []
    assert max(answers) < 1e-5  # type: ignore[type-var]
    counts = graph.op_counts()
    assert counts["bertc.FusedAttention"] == 2 and counts["bertc.FusedBiasGelu"] == 2 and counts["bertc.FusedSkipLayerNorm"] == 4


def test_no_weight_is_held_twice() -> None:
    """Those of q, k and v go when the packed one comes."""
    graph = fused()[0]
    unread = [name for name, weight in graph.model.graph.initializers.items() if not weight.uses()]
    assert not unread and any("+" in name for name in graph.model.graph.initializers)
    assert graph.initializer_bytes <= 1.05 * encoder().initializer_bytes


def test_the_whole_graph_gives_the_same_fused_expanded_and_as_functions() -> None:
    graph = fused()[0]
    for sample in data.synthetic_samples(encoder(), DIMS):
        wanted = reference.ReferenceRunner(encoder()).run(sample.feeds)["y"]
        for made in (canonical.expand(graph), canonical.as_functions(graph)):
            assert distance(reference.ReferenceRunner(made).run(sample.feeds)["y"], wanted) < 1e-5


def permuted(index: int, order: str) -> Mutation:
    """The packed q, k, v parts of an input in another order."""

    def mutate(node: ir.Node) -> None:
        parts = dict(zip("qkv", np.split(node.inputs[index].const_value.numpy(), 3, -1), strict=True))  # type: ignore[union-attr]
        replaced(index, lambda _: np.concatenate([parts[c] for c in order], -1))(node)

    return mutate


def other_layer(index: int) -> Mutation:
    """Another layer's weight: the parameter of the same place in the other layer."""

    def mutate(node: ir.Node) -> None:
        name = str(node.inputs[index].name)  # type: ignore[union-attr]
        other = ("l1" if name.startswith("l0") else "l0") + name[2:]
        node.replace_input_with(index, encoder().model.graph.initializers[other])

    return mutate


MUTATIONS: Mapping[str, tuple[str, Mutation]] = {
    "q and k swapped in the packed weights": ("FusedAttention", permuted(2, "kqv")),
    "k and v swapped in the packed weights": ("FusedAttention", permuted(2, "qvk")),
    "q and k biases swapped": ("FusedAttention", permuted(3, "kqv")),
    "packed bias dropped": ("FusedAttention", dropped(3)),
    "mask dropped": ("FusedAttention", dropped(1)),
    "scale's sign": ("FusedAttention", attribute("scale", lambda s: -s)),
    "scale not given": ("FusedAttention", attribute("scale", lambda _: 1.0)),
    "number of heads": ("FusedAttention", attribute("num_heads", lambda _: HEADS + 1)),
    "output bias dropped": ("FusedAttention", dropped(5)),
    "another layer's output weight": ("FusedAttention", other_layer(4)),
    "mask of sdpa dropped": ("FusedSdpa", dropped(3)),
    "scale's sign of sdpa": ("FusedSdpa", attribute("scale", lambda s: -s)),
    "bias of linear dropped": ("FusedLinear", dropped(2)),
    "bias of linear rolled": ("FusedLinear", replaced(2, lambda b: np.roll(b, 1))),
    "another layer's weight": ("FusedLinear", other_layer(1)),
    "another layer's bias": ("FusedLinear", other_layer(2)),
    "gelu's tanh form": ("FusedBiasGelu", attribute("form", lambda _: "tanh")),
    "gelu's quick form": ("FusedBiasGelu", attribute("form", lambda _: "quick")),
    "gelu's bias rolled": ("FusedBiasGelu", replaced(1, lambda b: np.roll(b, 1))),
    "wrong epsilon": ("FusedSkipLayerNorm", attribute("epsilon", lambda _: 1e-5)),
    "slightly wrong epsilon": ("FusedSkipLayerNorm", attribute("epsilon", lambda _: 1e-7)),
    "gamma and beta swapped": ("FusedSkipLayerNorm", swapped(3, 4)),
    "beta dropped": ("FusedSkipLayerNorm", dropped(4)),
    "skip taken twice": ("FusedSkipLayerNorm", lambda node: node.replace_input_with(0, node.inputs[1])),
    "another layer's gamma": ("FusedSkipLayerNorm", other_layer(3)),
}


def mutated(mutate: Mutation, op: str) -> list[float | str]:
    """What the prover answers for each match of an operator, changed."""
    answers, prover = [], Prover(encoder(), DIMS)

    def prove(match: Match) -> float | str:
        if match.new_nodes[-1].op_type != op or not applicable(match.new_nodes[-1]):
            return 0.0
        mutant = changed(match, mutate)
        answers.append(prover(mutant))
        for index in range(len(mutant.new_nodes[-1].inputs)):
            mutant.new_nodes[-1].replace_input_with(index, None)  # no reader of the graph
        return 0.0

    def applicable(node: ir.Node) -> bool:
        return op != "FusedLinear" or (len(node.inputs) == 3 and node.inputs[2] is not None)

    graph = cleanup.normalize(encoder())
    for name in fuse.ORDER:
        module = importlib.import_module(f"bertc.fusions.rules.{name}")
        graph = (
            module.apply(graph)[0]
            if hasattr(module, "apply")
            else apply_rules(graph, fuse.named_rules(name, module.RULES), prove)[0]
        )
    return answers


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught_in_every_match(name: str) -> None:
    op, mutate = MUTATIONS[name]
    answers = mutated(mutate, op)
    assert answers and all(isinstance(answer, str) for answer in answers), answers
    # by its numbers, but for a number of heads that the mask or the width does not divide into
    assert all("relative error" in str(answer) for answer in answers) or name == "number of heads", answers


@pytest.mark.parametrize("op", sorted({op for op, _ in MUTATIONS.values()}))
def test_an_identity_mutation_is_not_caught(op: str) -> None:
    answers = mutated(lambda node: None, op)
    assert answers and all(isinstance(answer, float) and answer < 1e-5 for answer in answers), answers


def test_a_refused_match_leaves_the_graph_as_it_was_and_says_why() -> None:
    linear = importlib.import_module("bertc.fusions.rules.linear")
    clean = cleanup.normalize(encoder())
    table = {"FusedLinear": lambda op, node: [op.Neg(op.MatMul(*node.inputs[:2]))]}
    prover = Prover(clean, DIMS, lowerings={"upside-down": table})
    graph, change = apply_rules(clean, fuse.named_rules("linear", linear.RULES), prover)
    assert not change.applied and graph.op_counts() == clean.op_counts()
    assert any("upside-down's lowering has" in r.reason for r in change.refusals)
    again, change = apply_rules(graph, fuse.named_rules("linear", linear.RULES))
    assert change.applied and "bertc.FusedLinear" in again.op_counts()


def test_sessions_are_shared_by_layers() -> None:
    prover = Prover(encoder(), DIMS)
    linear = importlib.import_module("bertc.fusions.rules.linear")
    _, change = apply_rules(cleanup.normalize(encoder()), fuse.named_rules("linear", linear.RULES), prover)
    assert len(change.applied) == 12 and len(prover._sessions) <= 6


def test_a_lowering_is_run_for_itself_where_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table without the operator inlines the canonical body: that is run once, and another form beside it."""
    runs: list[str] = []
    call = prove._run
    monkeypatch.setattr(prove, "_run", lambda side, *given: runs.append(side.what) or call(side, *given))
    linear = importlib.import_module("bertc.fusions.rules.linear")
    other = {"FusedLinear": lambda op, node: [op.Add(node.inputs[2], op.MatMul(*node.inputs[:2]))]}
    prover = Prover(encoder(), DIMS, lowerings={"none": {}, "other": other})
    _, change = apply_rules(cleanup.normalize(encoder()), fuse.named_rules("linear", linear.RULES), prover)
    assert len(change.applied) == 12
    assert set(runs) == {"the canonical body", "other's lowering"}


def test_captured_activations_are_fed_too() -> None:
    """A lowering that is wrong for a value no normal number has."""
    graph = cleanup.normalize(encoder())

    def clipped(op: Any, node: ir.Node) -> list[ir.Value]:
        return [op.Min(BODIES["FusedLinear"](op, node)[0], op.Constant(value=ir.tensor(np.float32(50))))]

    linear = importlib.import_module("bertc.fusions.rules.linear")
    found = {str(v.name): [np.full((2, 3, v.shape[-1]), 1e3, np.float32)] for v in activations(graph)}
    for captured, refused in (({}, False), (found, True)):
        prover = Prover(graph, DIMS, lowerings={"clipped": {"FusedLinear": clipped}}, activations=captured)
        _, change = apply_rules(graph, fuse.named_rules("linear", linear.RULES), prover)
        assert any("captured activations 0" in r.reason for r in change.refusals) == refused


def activations(graph: Graph) -> list[Any]:
    values = [value for node in graph.model.graph for value in node.outputs]
    return [v for v in values if v.shape is not None and len(v.shape) == 3 and v.dtype == ir.DataType.FLOAT]


def test_what_cannot_be_run_is_refused_with_the_reason() -> None:
    graph = cleanup.normalize(encoder())
    for value in activations(graph):
        value.shape = None
    linear = importlib.import_module("bertc.fusions.rules.linear")
    _, change = apply_rules(graph, fuse.named_rules("linear", linear.RULES), Prover(graph, DIMS))
    reasons = {r.reason for r in change.refusals}
    assert not change.applied and any("is unknown; run onnx.shape_inference" in reason for reason in reasons), reasons


def test_distance_looks_at_ordinary_numbers_beside_a_score_mask() -> None:
    low = np.float32(-3.4e38)
    wanted = np.array([0, 1, low], np.float32)
    assert distance(wanted, wanted) == 0
    assert distance(np.array([0, 0.5, low], np.float32), wanted) == 0.5
    assert distance(np.array([0, 1, low / 2], np.float32), wanted) == pytest.approx(0.5)
    assert distance(np.array([-1e5], np.float32), np.array([-np.inf], np.float32)) == 0
    for got in (0.0, np.nan, np.inf):
        with pytest.raises(Refused):
            distance(np.array([got], np.float32), np.array([-np.inf], np.float32))
    with pytest.raises(Refused, match="NaN or Inf"):
        distance(np.array([np.nan], np.float32), np.array([0], np.float32))
    with pytest.raises(Refused, match="the original"):
        distance(np.zeros(3, np.float32), np.zeros((1, 3), np.float32))


TAIL = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,2,length,4] q, float[batch,2,4,length] k, float[batch,2,length,4] v, bool[batch,1,1,length] seen)
=> (float[batch,2,length,4] y)
<float zero = {0}, float low = {LOW}, float scale = {0.5}>
{
    mask = Where (seen, zero, low)
    s0 = MatMul (q, k)
    s1 = Mul (s0, scale)
    s2 = Add (s1, mask)
    p0 = Softmax <axis = -1> (s2)
    n = IsNaN (p0)
    p = Where (n, zero, p0)
    y = MatMul (p, v)
}
"""


@pytest.mark.parametrize("low", ["-inf", "-3.4028234663852886e38"])
def test_torchs_sdpa_with_its_tail_is_proven(low: str) -> None:
    model = ir.from_proto(onnx.parser.parse_model(TAIL.replace("LOW", "-1")))
    ShapeInferencePass()(model)
    value = model.graph.initializers["low"]
    value.const_value = ir.tensor(np.float32(low), name="low")
    sdpa = importlib.import_module("bertc.fusions.rules.sdpa")
    _, change = apply_rules(Graph(model), fuse.named_rules("sdpa", sdpa.RULES), Prover(Graph(model), DIMS))
    assert change.counts() == {"sdpa": 1}, [str(r) for r in change.refusals]
    assert change.applied[0].error is not None and change.applied[0].error < 1e-5
