"""Origins: written at import, united by rules and passes, never lost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc import precision, targets
from bertc.core import InputError
from bertc.core.profiles import Dim
from bertc.fusions import engine as fuse
from bertc.graph import normalization as cleanup
from bertc.graph import provenance as origin
from bertc.graph.io_names import with_int32_ids
from bertc.graph.model import Graph
from bertc.graph.provenance import ORIGIN, Origin, Record, module_path

TRACE = """File "bertc/heads.py", line 69, in forward
    x = self.model(input_ids)
  File "transformers/models/bert/modeling_bert.py", line 192, in forward
    context = attend(q, k, v)
  File "torch/nn/functional.py", line 228, in softmax
    return F.softmax("""
SCOPES = "['', 'encoder', 'encoder.layer.3', 'encoder.layer.3.attention.self', 'softmax']"
CLASSES = str(["bertc.source.heads.Features", "a.E", "a.L", "transformers.models.bert.modeling_bert.BertSelfAttention", "op"])


def exported(op: str = "Softmax", name: str = "node_softmax_3", scopes: str = SCOPES, trace: str = TRACE) -> ir.Node:
    notes = {"pkg.torch.onnx.name_scopes": scopes, "pkg.torch.onnx.class_hierarchy": CLASSES, "pkg.torch.onnx.stack_trace": trace}
    return ir.Node("", op, [], name=name, metadata_props=notes)


def graph_of(text: str, modules: dict[str, str] | None = None, weights: Mapping[str, np.ndarray] | None = None) -> Graph:
    """A graph by its text; `modules` by the names of the values that nodes make."""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
        if modules:
            steps = modules.get(str(node.outputs[0].name), "m").split(".")
            paths = ["", *(".".join(steps[:end]) for end in range(1, len(steps) + 1)), "op"]
            node.metadata_props[origin.SCOPES] = str(paths)
    origin.mark_origins(model)
    return Graph(model)


def test_a_node_of_torchs_exporter() -> None:
    found = origin.origin_of(exported())
    assert str(found) == "encoder.layer.3.attention.self (BertSelfAttention) modeling_bert.py:192"
    assert found.records == (
        Record(
            "encoder.layer.3.attention.self",
            "BertSelfAttention",
            "transformers/models/bert/modeling_bert.py:192",
            ("Softmax node_softmax_3",),
        ),
    )
    assert origin.parse_origin(found.text) == found


def test_marking_replaces_what_the_exporter_left() -> None:
    node = exported()
    origin.mark_origins(ir.Model(ir.Graph([], [], nodes=[node], opset_imports={"": 20}), ir_version=10))
    assert set(node.metadata_props) == {ORIGIN}
    assert str(origin.origin_of(node)).startswith("encoder.layer.3.attention.self")
    assert module_path(node) == "encoder.layer.3.attention.self"


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        ('File "torch/nn/functional.py", line 5, in f', ""),
        ('File "student.py", line 9, in forward\n  File "torch/x.py", line 5, in f', "student.py:9"),
        ('File "/venv/lib/python3.11/site-packages/lib/net.py", line 7, in forward', "lib/net.py:7"),
        ('File "/secret/place/net.py", line 7, in forward', "net.py:7"),
        ("", ""),
    ],
)
def test_the_line_is_of_the_models_own_code_and_tells_no_machine(trace: str, place: str) -> None:
    assert origin.origin_of(exported(trace=trace)).records[0].place == place


def test_nodes_of_torch_jit_and_of_others() -> None:
    jit = ir.Node("", "MatMul", [], name="/encoder/layer.0/query/MatMul")
    jit.doc_string = (
        "/v/site-packages/torch/nn/functional.py(5): linear\n/v/site-packages/net/bert.py(33): forward\n/main.py(2): f\n"
    )
    assert str(origin.origin_of(jit)) == "encoder.layer.0.query bert.py:33"
    assert str(origin.origin_of(ir.Node("", "MatMul", [], name="dense_17"))) == "dense_17"


def test_united_is_the_common_module_with_all_lines() -> None:
    def one(module: str, line: int, node: str) -> Origin:
        return Origin((Record(module, "Linear", f"lib/net.py:{line}", (node,)),))

    both = origin.unite_origins(
        [one("m.layer.0.q", 1, "MatMul a"), one("m.layer.0.k", 2, "MatMul b"), one("m.layer.0.q", 1, "Add c")]
    )
    assert (both.module, both.modules, both.nodes) == ("m.layer.0", ("m.layer.0.q", "m.layer.0.k"), ("a", "c", "b"))
    assert str(both) == "m.layer.0 net.py:1 [+1]"
    assert both.of_type("Add").nodes == ("c",)
    assert both.without(both.of_type("MatMul")).nodes == ("c",)
    assert origin.unite_origins([both, both]) == both


ATTENTION = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B, S, 16] x) => (float[B, S, 16] y)
<int64[4] split = {{0, 0, 2, 8}}, int64[3] flat = {{0, 0, 16}}, float half = {{0.5}}>
{{
  k = MatMul(x, wk)
  sk = Reshape(k, split)
  tk = Transpose <perm = [0, 2, 3, 1]> (sk)
  q = MatMul(x, wq)
  sq = Reshape(q, split)
  tq = Transpose <perm = [0, 2, 1, 3]> (sq)
  v = MatMul(x, wv)
  sv = Reshape(v, split)
  tv = Transpose <perm = [0, 2, 1, 3]> (sv)
  s = MatMul(tq, tk)
  r = Mul(s, half)
  p = Softmax(r)
  c = MatMul(p, tv)
  t = Transpose <perm = [0, 2, 1, 3]> (c)
  f = Reshape(t, flat)
  o = MatMul(f, wo)
  a = Add(o, x)
  y = LayerNormalization(a, g)
}}""".replace("{{", "{").replace("}}", "}")
PLACES = {"q": "m.att.query", "k": "m.att.key", "v": "m.att.value", "o": "m.att.out", "a": "m.res", "y": "m.norm"}
PLACES |= dict.fromkeys(["sk", "tk", "sq", "tq", "sv", "tv", "s", "r", "p", "c", "t", "f"], "m.att.self")


@pytest.mark.parametrize("target", ["tensorrt-rtx", "onnxruntime"])
@pytest.mark.parametrize("mode", ["fp32", "fp16"])
def test_an_expanded_attention_knows_its_projections(target: str, mode: str) -> None:
    """The key is computed before the query here: what counts is which weight a product reads, not its place."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 16), np.float32) for name in ("wq", "wk", "wv", "wo")}
    weights["g"] = rng.standard_normal(16, np.float32)
    fused = fuse.fuse(graph_of(ATTENTION, PLACES, weights), {"B": Dim("B"), "S": Dim("S")}).graph
    assert [str(origin.origin_of(n).module) for n in fused.model.graph] == ["m.att", "m"]
    assert {n.op_type for n in fused.model.graph} == {"FusedAttention", "FusedSkipLayerNorm"}
    graph = precision.get(mode).apply(targets.get(target).lower(fused)).graph
    assert not [n.name for n in graph.model.graph if not origin.origin_of(n).nodes or ORIGIN not in n.metadata_props]
    products = [origin.origin_of(n).module for n in graph.model.graph if n.op_type == "MatMul"]
    assert products == ["m.att.query", "m.att.key", "m.att.value", "m.att.self", "m.att.self", "m.att.out"]
    assert [origin.origin_of(n).module for n in graph.model.graph if n.op_type in ("Softmax", "LayerNormalization")] == [
        "m.att.self",
        "m.norm",
    ]
    assert not any(origin.WEIGHT_ORIGINS in n.metadata_props for n in graph.model.graph)


def test_twins_that_become_one_node_keep_both_origins() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[B, 4] x) => (float[B, 4] y)
    { a = Exp(x)
      b = Exp(x)
      c = Neg(a)
      d = Neg(b)
      y = Add(c, d) }"""
    clean = cleanup.normalize(graph_of(text, {"a": "m.one", "b": "m.two", "c": "m.one", "d": "m.two", "y": "m.sum"}))
    found = {n.op_type: origin.origin_of(n).modules for n in clean.model.graph}
    assert found == {"Exp": ("m.one", "m.two"), "Neg": ("m.one", "m.two"), "Add": ("m.sum",)}


def test_what_cleanup_puts_in_the_place_of_nodes_has_their_origins() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[2, 3, 4, 5] x) => (float[2, 4, 5, 3] y)
    { a = Transpose <perm = [0, 2, 1, 3]> (x)
      b = Transpose <perm = [0, 1, 3, 2]> (a)
      y = Neg(b) }"""
    clean = cleanup.normalize(graph_of(text, {"a": "m.one", "b": "m.two", "y": "m.three"}))
    assert [n.op_type for n in clean.model.graph] == ["Transpose", "Neg"]
    assert [set(origin.origin_of(n).modules) for n in clean.model.graph] == [{"m.one", "m.two"}, {"m.three"}]


def test_casts_of_inputs_have_the_origin_of_their_readers() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]> g (int64[B, S] ids, float[B, S, 3] x) => (float[B, S, 3] y)
    <float[5, 3] t = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}>
    { e = Gather(t, ids)
      y = Add(e, x) }"""
    graph = precision.get("fp16").apply(with_int32_ids(graph_of(text, {"e": "m.words", "y": "m.sum"}))).graph
    casts = {n.inputs[0].name: origin.origin_of(n).module for n in graph.model.graph if n.op_type == "Cast"}  # type: ignore[union-attr]
    assert casts == {"ids": "m.words", "x": "m.sum", "y.fp16": "m.sum"}


@pytest.mark.parametrize("text", ["{", "[]", '{"x": ["a"]}', '{"0": "a"}', '{"0": [1]}', "[" * 10**5, '{"0": 1, "0": 2}'])
def test_origins_of_weights_that_somebody_else_wrote(text: str) -> None:
    """The metadata of a node is a part of the file: what is no record of origins names the node."""
    node = ir.Node("d", "Fused", [], name="odd", metadata_props={origin.WEIGHT_ORIGINS: text})
    with pytest.raises(InputError, match=r"bertc\.origin\.weights of node 'odd'"):
        origin.take_over_origins([node], [])
    with pytest.raises(InputError, match=r"bertc\.origin\.weights of node 'odd'"):
        origin.spread_origin(node, [])
