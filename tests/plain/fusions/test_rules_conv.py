"""conv1d_gelu and weight_norm: examples fire and are proven, near-misses say why not, mutations are caught, numbers hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from mutations import Mutation, attribute, changed, dropped, replaced, swapped
from rules import fuse, lines, parse, relative_error, rules

from bertc import precision
from bertc.fusions import rewrite
from bertc.fusions.proof.prover import Prover
from bertc.graph.model import Graph
from bertc.ops import expansion as canonical
from bertc.plugins import conv1d_gelu as oracle
from bertc.runtime.reference import ReferenceRunner
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

FILES = ("conv1d_gelu", "weight_norm")
EXAMPLES = [(name, index) for name in FILES for index in range(len(rules(name).EXAMPLES))]
NEAR_MISSES = [(name, index) for name in FILES for index in range(len(rules(name).NEAR_MISSES))]
LOWERINGS = {"tensorrt": _lower_trt.LOWERINGS}


def proven(name: str, graph: Graph) -> tuple[Graph, rewrite.Change]:
    """A rule file applied with its proof, TensorRT's lowering included."""
    return rewrite.apply_rules(graph, [(name, rule) for rule in rules(name).RULES], Prover(graph, {}, lowerings=LOWERINGS))


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_fires_once_and_is_proven(name: str, index: int) -> None:
    _, change = proven(name, parse(rules(name).EXAMPLES[index]))
    assert change.counts() == {name: 1}, [str(r) for r in change.refusals]
    assert change.applied[0].error is not None and change.applied[0].error < 1e-5


@pytest.mark.parametrize(("name", "index"), NEAR_MISSES)
def test_refuses_with_the_reason(name: str, index: int) -> None:
    text, reason = rules(name).NEAR_MISSES[index]
    before, after, change = fuse(name, text)
    assert change.counts() == {}
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]
    assert lines(after) == lines(before)


def test_golden() -> None:
    plain = "dilations=(1,), form=erf, group=1"
    with_bias = f"{plain}, norm=none, pads=(0, 0), strides=(2,)"
    golden = [lines(fuse("conv1d_gelu", text)[1]) for text in rules("conv1d_gelu").EXAMPLES]
    assert golden == [
        [f"FusedConv1dGelu(x, w, b, , ; {with_bias}) -> y"],
        ["FusedConv1dGelu(x, w, , , ; dilations=(2,), form=tanh, group=1, norm=none, pads=(3, 1), strides=(1,)) -> y"],
        [
            "FusedConv1dGelu(x, w, b, gc.flat, bc.flat; dilations=(1,), epsilon=1e-05, form=erf, group=1, norm=group, "
            "pads=(0, 0), strides=(2,)) -> y"
        ],
        [
            "FusedConv1dGelu(x, w, b, g, beta; dilations=(1,), epsilon=0.0001, form=erf, group=1, norm=group, "
            "pads=(0, 0), strides=(2,)) -> y"
        ],
        [
            "FusedConv1dGelu(x, w, b, g, beta; dilations=(1,), epsilon=0.001, form=erf, group=1, norm=group, "
            "pads=(0, 0), strides=(2,)) -> y"
        ],
        [
            "FusedConv1dGelu(x, w, b, g, beta; dilations=(1,), epsilon=1e-06, form=erf, group=1, norm=layer, "
            "pads=(0, 0), strides=(2,)) -> y"
        ],
        ["FusedConv1dGelu(x, wg, b, , ; dilations=(1,), form=erf, group=2, norm=none, pads=(2, 1), strides=(1,)) -> y"],
        [f"FusedConv1dGelu(x, w, b, , ; {with_bias.replace('erf', 'quick')}) -> y"],
    ]


def test_a_weight_of_direction_and_length_is_one_constant() -> None:
    before, after, _ = fuse("weight_norm", rules("weight_norm").EXAMPLES[0])
    assert [line.partition("(")[0] for line in lines(after)] == ["Conv"]
    constants = {v.name: v.const_value.numpy().astype(np.float64) for v in before.model.graph.initializers.values()}
    made = after.model.graph[0].inputs[1].const_value.numpy()
    v, g = constants["v"], constants["g"]
    wanted = np.stack([g[..., k] * v[..., k] / np.linalg.norm(v[..., k]) for k in range(3)], -1)
    np.testing.assert_allclose(made, wanted.reshape(made.shape), rtol=1e-6)


def attributes_of(node: ir.Node) -> dict[str, Any]:
    return {name: each.value for name, each in node.attributes.items()}


@pytest.mark.parametrize("index", range(len(rules("conv1d_gelu").EXAMPLES)))
def test_the_new_node_means_what_the_old_ones_computed(index: int) -> None:
    before, after, _ = fuse("conv1d_gelu", rules("conv1d_gelu").EXAMPLES[index])
    x = np.random.default_rng(index).standard_normal((3, 2, 17)).astype(np.float32)
    y = ReferenceRunner(canonical.expand(before)).run({"x": x, "v": np.zeros((4, 2, 4), np.float32)})["y"]
    node = after.model.graph[0]
    given = [None if v is None else x if v.name == "x" else v.const_value.numpy() for v in node.inputs]
    assert relative_error(oracle.reference(*given, **attributes_of(node)), y) <= 1e-5


def columns_exchanged(node: ir.Node) -> None:
    replaced(1, lambda w: w[..., ::-1].copy())(node)


def ints(name: str, *values: int) -> Mutation:
    def mutate(node: ir.Node) -> None:
        node.attributes[name] = ir.AttrInt64s(name, values)

    return mutate


# name: (number of the example, how the node is made wrong)
MUTATIONS: dict[str, tuple[int, Mutation]] = {
    "wrong epsilon": (2, attribute("epsilon", lambda _: 1e-6)),
    "epsilon left at its default": (4, lambda node: node.attributes.pop("epsilon") and None),
    "wrong epsilon over channels": (5, attribute("epsilon", lambda _: 1e-5)),
    "gamma and beta swapped": (2, swapped(3, 4)),
    "gamma and beta of the layer norm swapped": (5, swapped(3, 4)),
    "beta dropped": (3, dropped(4)),
    "layer norm in place of group norm": (2, attribute("norm", lambda _: "layer")),
    "group norm in place of layer norm": (5, attribute("norm", lambda _: "group")),
    "norm dropped": (3, attribute("norm", lambda _: "none")),
    "wrong stride": (0, ints("strides", 1)),
    "stride dropped": (2, lambda node: node.attributes.pop("strides") and None),
    "padding at the other end": (6, ints("pads", 1, 2)),
    "nothing cut off": (6, ints("pads", 2, 2)),
    "dilation dropped": (1, ints("dilations", 1)),
    "kernel turned around": (0, columns_exchanged),
    "bias dropped": (0, dropped(2)),
    "another form of GELU": (1, attribute("form", lambda _: "erf")),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name: str) -> None:
    index, mutate = MUTATIONS[name]
    answers = proved(index, mutate)
    assert answers and all(answer.startswith("not proven: the canonical body") for answer in answers), answers


@pytest.mark.parametrize("index", sorted({index for index, _ in MUTATIONS.values()}))
def test_no_mutation_is_not_caught(index: int) -> None:
    assert proved(index, lambda node: None) == []


def proved(index: int, mutate: Mutation) -> list[str]:
    """What the prover says against the node of an example, changed; [] where it says nothing."""
    graph, answers = parse(rules("conv1d_gelu").EXAMPLES[index]), list[float | str]()
    prover = Prover(graph, {}, lowerings=LOWERINGS)

    def prove(match: rewrite.Match) -> float | str:
        answers.append(prover(changed(match, mutate)))
        return answers[-1]

    rewrite.apply_rules(graph, [("conv1d_gelu", rule) for rule in rules("conv1d_gelu").RULES], prove)
    assert answers
    return [answer for answer in answers if isinstance(answer, str)] or [str(a) for a in answers if not float(a) < 1e-5]


AUDIO = """<ir_version: 10, opset_import: ["" : 20, "bertc" : 1]>
g (float[B, 1, T] x) => (float[B, 16, U] y) <float[16, 1, 10] w, float[16] g, float[16] b>
{ y = bertc.FusedConv1dGelu <strides = [5], norm = "group", epsilon = 1e-5> (x, w, , g, b) }"""


def encoder() -> Graph:
    """The first convolution of wav2vec 2.0, 16 channels."""
    model, rng = ir.from_onnx_text(AUDIO), np.random.default_rng(0)
    graph = model.graph
    for name, shape, around in (("w", (16, 1, 10), 0), ("g", (16,), 1), ("b", (16,), 0)):
        array = (around + 0.5 * rng.standard_normal(shape)).astype(np.float32)
        value = next(v for v in graph[0].inputs if v is not None and v.name == name)
        value.const_value, value.shape, value.dtype = ir.tensor(array, name=name), ir.Shape(shape), ir.DataType.FLOAT
        graph.register_initializer(value)
    graph[0].name = "conv"
    return Graph(model)


@pytest.mark.parametrize("level", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize(("mode", "tolerance"), [("fp16", 4e-3), ("bf16", 4e-2)])
def test_half_precision_holds_over_thirty_seconds(mode: str, tolerance: float, level: float) -> None:
    """Squares of 300 are no float16 numbers, sums of 96000 of them even less; 1e-3 squared is next to none.

    The tolerance is 8 roundings of the type: values, centred values, normalised ones, and GELU's.
    """
    lowered = _trt_graph.tidy(canonical.expand(encoder(), _lower_trt.LOWERINGS))
    x = level * np.random.default_rng(1).standard_normal((1, 1, 480_000)).astype(np.float32)
    wanted = ReferenceRunner(canonical.expand(encoder())).run({"x": x})["y"]
    got = ReferenceRunner(precision.get(mode).apply(lowered).graph).run({"x": x})["y"]
    assert np.isfinite(got).all()
    assert 0 < relative_error(got, wanted) <= tolerance
