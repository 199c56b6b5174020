"""Graphs of old opsets, by torch.jit and by other tools: converted, their dims named, fused, and equal to what they were."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jit
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from models import relative_error, run_graph

from bertc import pipeline, targets
from bertc.cli._main import run
from bertc.core.errors import NotFused
from bertc.core.progress import Progress
from bertc.fusions import engine as fuse
from bertc.fusions import families
from bertc.fusions.proof import conversion
from bertc.graph import normalization as cleanup
from bertc.graph import opset
from bertc.graph.model import Graph
from bertc.graph.provenance import module_path
from bertc.ops import expansion as canonical
from bertc.recipe import Recipe
from bertc.source import onnx_file as onnx_source
from bertc.source.opening import open_source
from bertc.verification import export_check


def original(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the file itself gives, at its own opset."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


@pytest.mark.parametrize("name", jit.NAMES)
def test_a_graph_by_torch_jit_fuses_whole(name: str, tmp_path: Path) -> None:
    path = jit.saved(name, tmp_path)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    tables = {text: targets.lowerings(targets.parse_spec(text)) for text in ("tensorrt-rtx:sm89=fp16", "onnxruntime")}
    fused = fuse.fuse(graph, dims, lowerings=tables)
    family = name.split("_")[0]
    assert fuse.layers_of(graph) == 2
    fuse.expect_fusions(graph, fused.change, family)
    found = {rule: n for rule, n in fused.change.counts().items() if rule in families.expected_counts(family, 2)}
    assert found == families.expected_counts(family, 2)
    assert all(match.error is not None and match.error <= 1e-5 for match in fused.change.applied)
    assert not [each for each in fused.change.refusals if "not proven" in each.reason]
    assert graph.opset < 18, "the graph that was given is not changed"
    for kind in ("full", "right", "left", "holes"):
        feeds = jit.feeds(graph.inputs, kind)
        (got,) = run_graph(canonical.expand(fused.graph), feeds).values()
        # float32 on both sides, in another order of summation; attention with other weights would be off by 1e-1.
        assert relative_error(got, original(path, feeds)) < 1e-5, kind


@pytest.mark.parametrize("name", jit.NAMES)
def test_conversion_alone_changes_no_bit_and_no_weight(name: str, tmp_path: Path) -> None:
    path = jit.saved(name, tmp_path)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    weights = {key: value.const_value for key, value in graph.model.graph.initializers.items()}
    upgraded = opset.upgrade_opset(graph)
    assert upgraded.graph.opset == 20
    assert upgraded.notes == (f"opset converted from {graph.opset} to 20 for fusion",)
    assert upgraded.graph.inputs == graph.inputs
    assert upgraded.graph.outputs == graph.outputs
    after = upgraded.graph.model.graph.initializers
    assert all(after[key].const_value is tensor for key, tensor in weights.items() if tensor.size > opset.KEPT)
    assert "relative error 0.0e+00" in conversion.check_conversion(graph, upgraded.graph, dims)


def test_weights_are_not_read_however_large() -> None:
    def read() -> ir.TensorProtocol:
        raise AssertionError("a weight was read")

    large = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape([4, 700_000_000]), name="w")  # 11 GB
    x, w = (ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT)) for name, shape in SHAPES.items())
    w.const_value = large
    product = ir.node("MatMul", [x, w], name="a", metadata_props={"pkg.torch.onnx.name_scopes": "['', 'm.layer.0', 'op']"})
    mean = ir.node("ReduceMean", product.outputs, attributes={"axes": [-1], "keepdims": 0}, name="b")
    mean.outputs[0].type, mean.outputs[0].shape = x.type, ir.Shape(["B"])
    made = ir.Graph([x], mean.outputs, nodes=[product, mean], initializers=[w], opset_imports={"": 11}, name="g")
    upgraded = opset.upgrade_opset(Graph(ir.Model(made, ir_version=6))).graph
    assert upgraded.model.graph.initializers["w"].const_value is large
    nodes = {node.name: node for node in upgraded.model.graph}
    assert len(nodes["b"].inputs) == 2, "axes are an input since opset 18"
    assert module_path(nodes["a"]) == "m.layer.0"


def test_local_functions_are_inlined_before() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]> g (float[B,4] x) => (float[B,1] y) { y = local.middle(x) }
    <domain: "local", opset_import: ["" : 17]> middle (a) => (b) { b = ReduceMean <axes = [1]> (a) }"""
    graph = Graph(ir.from_onnx_text(text))
    upgraded = opset.upgrade_opset(graph).graph
    assert [node.op_type for node in upgraded.model.graph if node.op_type != "Constant"] == ["ReduceMean"]
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    np.testing.assert_array_equal(run_graph(upgraded, feeds)["y"], feeds["x"].mean(1, keepdims=True))


SHAPES = {"x": ["B", 4], "w": [4, 700_000_000]}

# A layer as converters of other frameworks write it: q, k and v by one product, axes and sizes as attributes, a softmax of four
# dims, LayerNormalization and GELU in parts, the mask computed from integers.
OTHER = """<ir_version: 6, opset_import: ["" : {opset}]>
g (float[N,T,16] x, int64[N,T] attention_mask) => (float[N,T,16] y)
<float[16,48] wqkv, float[48] bqkv, float[16,16] wo, float[16] bo, float[16] gamma, float[16] beta,
 float[16,32] w1, float[32] b1, float[32,16] w2, float[16] b2,
 float one = {{1}}, float low = {{-10000}}, float scale = {{2.828427}}, float two = {{2}}, float eps = {{1e-12}},
 float half = {{0.5}}, float root = {{1.4142135}}, int64[4] heads = {{0, 0, 2, 8}}, int64[3] flat = {{0, 0, 16}}{more}>
{{
  m = Cast <to = 1> (attention_mask)
  m3 = Unsqueeze {unsqueeze}
  inverted = Sub(one, m3)
  mask = Mul(inverted, low)
  p = MatMul(x, wqkv)
  projected = Add(p, bqkv)
  q, k, v = Split <axis = 2{split}
  qs = Reshape(q, heads)
  ks = Reshape(k, heads)
  vs = Reshape(v, heads)
  qt = Transpose <perm = [0, 2, 1, 3]> (qs)
  kt = Transpose <perm = [0, 2, 3, 1]> (ks)
  vt = Transpose <perm = [0, 2, 1, 3]> (vs)
  raw = MatMul(qt, kt)
  scaled = Div(raw, scale)
  scores = Add(scaled, mask)
  weights = Softmax <axis = 3> (scores)
  c = MatMul(weights, vt)
  ct = Transpose <perm = [0, 2, 1, 3]> (c)
  merged = Reshape(ct, flat)
  o = MatMul(merged, wo)
  out = Add(o, bo)
  sum = Add(out, x)
  mean = ReduceMean <axes = [-1], keepdims = 1> (sum)
  centred = Sub(sum, mean)
  square = Pow(centred, two)
  variance = ReduceMean <axes = [-1], keepdims = 1> (square)
  safe = Add(variance, eps)
  deviation = Sqrt(safe)
  normal = Div(centred, deviation)
  scaled_normal = Mul(normal, gamma)
  z = Add(scaled_normal, beta)
  h = MatMul(z, w1)
  hb = Add(h, b1)
  divided = Div(hb, root)
  e = Erf(divided)
  e1 = Add(e, one)
  half_h = Mul(hb, half)
  g = Mul(half_h, e1)
  d = MatMul(g, w2)
  y = Add(d, b2)
}}"""
ATTRIBUTES = {"unsqueeze": "<axes = [1, 2]> (m)", "split": ", split = [16, 16, 16]> (projected)", "more": ""}
INPUTS = {
    "unsqueeze": "(m, axes)",
    "split": "> (projected, sizes)",
    "more": ", int64[2] axes = {1, 2}, int64[3] sizes = {16, 16, 16}",
}


@pytest.mark.parametrize(("version", "form"), [(11, ATTRIBUTES), (12, ATTRIBUTES), (13, INPUTS), (17, INPUTS)])
def test_a_layer_as_other_tools_write_it(version: int, form: dict[str, str], tmp_path: Path) -> None:
    made = jit.with_weights(onnx.parser.parse_model(OTHER.format(opset=version, **form)))
    path = tmp_path / "other.onnx"
    onnx.save(made, path)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    fused = fuse.fuse(graph, dims)
    wanted = {"layernorm": 1, "gelu": 1, "bias_gelu": 1, "linear": 4, "sdpa": 1, "attention": 1, "mask": 1, "skip_layernorm": 1}
    assert fused.change.counts() == wanted, [str(each) for each in fused.change.refusals]
    feeds = {**jit.feeds(graph.inputs[1:], "holes"), "x": np.random.default_rng(0).standard_normal((3, 11, 16)).astype("f")}
    (got,) = run_graph(canonical.expand(fused.graph), feeds).values()
    assert relative_error(got, original(path, feeds)) < 1e-5


TRAINED = """<ir_version: 6, opset_import: ["" : 11]> g (float[B,4] x) => (float[B,4] y)
<float[4] s = {1, 2, 3, 4}, float[4] t = {1, 1, 1, 1}>
{ [first] a = Relu(x)
  [batch_norm] y, m, v, sm, sv = BatchNormalization(a, s, t, t, t) }"""


def test_what_cannot_be_converted_is_named_and_not_fused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph(ir.from_onnx_text(TRAINED))
    with pytest.raises(NotFused, match=r"opset 11 cannot be converted.* BatchNormalization 'batch_norm'.*outputs 4 and 5"):
        opset.upgrade_opset(graph)
    gone = """<ir_version: 6, opset_import: ["" : 9]> g (float[1,1,2,2] x) => (y) <float[4] s = {1, 1, 2, 2}>
    { [up] y = Upsample(x, s) }"""
    with pytest.raises(NotFused, match="Upsample 'up': opset 20 has no such operator"):
        opset.upgrade_opset(Graph(ir.from_onnx_text(gone)))
    path = tmp_path / "old.onnx"
    onnx.save(onnx.parser.parse_model(TRAINED), path)
    build = ["build", str(path), "--target", "null"]
    assert run([*build, "-o", str(tmp_path / "a")]) == 0
    assert onnx.load(tmp_path / "a" / "graph.onnx").opset_import[0].version == 11, "what is not fused stays as it was"
    assert run([*build, "-o", str(tmp_path / "b"), "--expect", "bert:1"]) == 1
    assert "BatchNormalization 'batch_norm'" in (said := " ".join(capsys.readouterr().err.split()))
    assert "--expect bert:1 asks for fusions" in said
    assert run(["fuse", str(path), "-o", str(tmp_path / "c.onnx")]) == 1
    assert "BatchNormalization 'batch_norm'" in capsys.readouterr().err
    assert not (tmp_path / "c.onnx").exists()


def test_a_target_that_fuses_builds_on_with_the_reason(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(TRAINED), tmp_path / "old.onnx")
    recipe = Recipe(str(tmp_path / "old.onnx"), targets=("tensorrt-rtx:sm89",))
    source, log = open_source(recipe.source, recipe.source_options), Progress()
    proof = export_check.check_export(source, pipeline.choose_profiles(recipe, source), lambda done, of: None)
    builds = [pipeline.Build(targets.parse_spec(text), "fp32") for text in recipe.targets]
    assert pipeline.fuse_graph(recipe, source, builds, proof, log) is None
    (note,) = log.notes
    assert note.startswith("no fusions: opset 11 cannot be converted to 20: BatchNormalization 'batch_norm'")


def test_the_command_says_what_it_converted_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jit.saved("bert_eager_11", tmp_path)
    assert run(["fuse", str(path), "-o", str(tmp_path / "out.onnx"), "--expect", "bert", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    converted, checked, ran = notes[-3:]
    assert "converted from 11 to 20" in converted
    assert re.search(r"checked: 1\d shapes", checked)
    assert re.search(r"fused file was run: 1\d shapes", ran)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    graph = onnx_source.read_onnx_file(path)[0]
    feeds = jit.feeds(graph.inputs, "left")
    assert relative_error(session.run(None, feeds)[0], original(path, feeds)) < 1e-5


def test_a_wrong_conversion_is_refused(tmp_path: Path) -> None:
    graph, dims, _ = onnx_source.read_onnx_file(jit.saved("distilbert_eager_13", tmp_path))
    wrong = opset.upgrade_opset(graph).graph
    softmax = next(node for node in wrong.model.graph if node.op_type == "Softmax")
    softmax.attributes["axis"] = ir.AttrInt64("axis", 1)
    with pytest.raises(NotFused, match=r"changes 'last_hidden_state' at batch.*relative error"):
        conversion.check_conversion(graph, wrong, dims)


def test_dims_that_nobody_named_are_one_where_the_graph_adds_them(tmp_path: Path) -> None:
    graph, dims, notes = onnx_source.read_onnx_file(jit.saved("bert_sdpa_17_unnamed", tmp_path))
    assert [spec.dims for spec in graph.inputs] == [("batch", "length")] * 3
    assert list(dims) == ["batch", "length"]
    assert any("attention_mask_dynamic_axes_2 = input_ids_dynamic_axes_2" in note for note in notes)
    assert any(note.endswith("batch (input_ids_dynamic_axes_1), length (input_ids_dynamic_axes_2)") for note in notes)


def test_dims_that_somebody_named_stay_apart(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] a, float[M,4] b, float[c_d0,4] c) => (float[N,4] y)
    { d = Add(a, b)
      y = Add(d, c) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "named.onnx")
    graph, _, notes = onnx_source.read_onnx_file(tmp_path / "named.onnx")
    assert [spec.dims[0] for spec in graph.inputs] == ["N", "M", "c_d0"]
    assert not notes


ARITHMETIC = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[N,S] ids, float[N,S,4] x, float[1,1,1,S] row) => (float y)
<float[2,3] table = {{1, 2, 3, 4, 5, 6}},
 int64 zero = {{0}}, int64 one = {{1}}, int64[1] none = {{-1}}, int64[1] first = {{0}}, int64[1] second = {{1}},
 int64[1] last = {{2}}, int64[1] lead = {{1}},
 int64[1] four = {{4}}, float init = {{0}}>
{{ shape = Shape(ids)
  n = Gather(shape, zero)
  s = Gather(shape, one)
  n1 = Unsqueeze(n, first)
  s1 = Unsqueeze(s, first)
  sizes = Concat <axis = 0> (n1, lead, s1, s1)
  count = Shape(sizes)
  ones = ConstantOfShape <value = int64[1] {{1}}> (count)
  negative = Mul(ones, none)
  kept = Equal(sizes, negative)
  target = Where(kept, ones, sizes)
  {body}
  y = ReduceSum <keepdims = 0> (out) }}"""


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("out = Expand(row, target)", ["N", 1, "S", "S"]),
        ("out = Slice(table, first, s1, second)", [2, "S"]),
        ("out = Slice(table, first, s1, none)", [2, "S"]),
        ("r = Range(zero, n, one)\nout = Cast <to = 1> (r)", ["N"]),
        ("t = Concat <axis = 0> (n1, s1, four)\nout = Reshape(x, t)", ["N", "S", 4]),
        ("out = ConstantOfShape(target)", ["N", 1, "S", "S"]),
        # From 1 on a length is one less; a slice of the batch up to the length is neither, and an activation may be the shorter.
        ("out = Slice(x, first, s1, last)", ["N", "S", None]),
        ("out = Slice(table, second, s1, second)", [2, None]),
        ("out = Slice(x, first, s1, first)", [None, "S", 4]),
        ("r = Range(one, n, one)\nout = Cast <to = 1> (r)", [None]),
    ],
)
def test_shape_arithmetic_keeps_names(body: str, shape: list[object]) -> None:
    model = ir.from_onnx_text(ARITHMETIC.format(body=body))
    cleanup.infer_shapes(model)
    out = next(value for node in model.graph for value in node.outputs if value.name == "out")
    found = [dim if isinstance(dim, int) else None if str(dim.value).startswith("unk") else dim.value for dim in out.shape or ()]
    assert found == shape


FLAT = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,3,4] x) => (float[B,3,4] y)
{{ s = Shape(x)
  f = Flatten <axis = {axis}> (x)
  p = Softmax <axis = -1> (f)
  y = Reshape(p, s) }}"""


@pytest.mark.parametrize(("axis", "left"), [(2, ["Softmax"]), (1, ["Shape", "Flatten", "Softmax", "Reshape"])])
def test_a_softmax_of_the_converter_is_one_again(axis: int, left: list[str]) -> None:
    graph = Graph(ir.from_onnx_text(FLAT.format(axis=axis)))
    clean = cleanup.normalize(graph)
    assert [node.op_type for node in clean.model.graph] == left
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 4)).astype("f")}
    np.testing.assert_array_equal(run_graph(clean, feeds)["y"], run_graph(graph, feeds)["y"])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/model/encoder/layer.0/attention/self/query/MatMul", "model.encoder.layer.0.attention.self.query"),
        ("linear./model/encoder/layer.11/output/dense/Add", "model.encoder.layer.11.output.dense"),
        ("skip_layernorm./layer.1/output/Add_1.Reshape", "layer.1.output"),
        ("node_MatMul_7", ""),
        ("tf/bert/MatMul", ""),
        ("/Cast", ""),
    ],
)
def test_module_paths_of_torch_jit_are_names(name: str, path: str) -> None:
    assert module_path(ir.Node("", "Add", [], name=name)) == path
