"""verify --layers and --bisect: which values are compared, what is not finite, which nodes are to blame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertc
from bertc import pipeline, precision
from bertc.cli._main import run
from bertc.data.samples import Sample
from bertc.graph import model as graph
from bertc.graph import provenance as origin
from bertc.graph.model import Graph
from bertc.runtime.reference import ReferenceRunner
from bertc.source import GivenSource
from bertc.verification.budgets import Budget
from bertc.verification.diagnose import bisect as bisection
from bertc.verification.diagnose import drift
from bertc.verification.diagnose import run_diagnosis as explaining
from bertc.verification.diagnose.bisect import ddmin
from bertc.verification.diagnose.boundaries import match_boundaries
from bertc.verification.diagnose.float32_switch import Float32SwitchRunner

LAYERS, WIDTH = 4, 16
HUGE = 2e4  # fits float16 itself; sums of products with it do not


def model(path: Path, broken: int | None = None) -> Path:
    """Layers of a product and a norm over [batch, length, WIDTH]; the product of the broken one is past float16."""
    rng = np.random.default_rng(0)
    weights = {"table": rng.standard_normal((9, WIDTH)).astype(np.float32)}
    nodes = ["h = Gather(table, input_ids)", "c = Cast <to = 1> (attention_mask)", "u = Unsqueeze(c, axis)", "x0 = Mul(h, u)"]
    for at in range(LAYERS):
        scale = HUGE if at == broken else 1.0
        weights |= {f"w{at}": rng.standard_normal((WIDTH, WIDTH)) * scale, f"g{at}": 1 + rng.random(WIDTH)}
        nodes += [f"p{at} = MatMul(x{at}, w{at})", f"x{at + 1} = LayerNormalization(p{at}, g{at})"]
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (int64[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, length, {WIDTH}] last)
    <int64[1] axis = {{2}}> {{ {chr(10).join(nodes)} \n last = Identity(x{LAYERS}) }}"""
    proto = onnx.parser.parse_model(text)
    made = [onnx.numpy_helper.from_array(np.float32(a), n) for n, a in weights.items()]
    proto.graph.initializer.extend(made)
    for node in proto.graph.node:
        at = node.output[0][1:]
        module = f"enc.layer.{int(at) - (node.output[0][0] == 'x')}" if at.isdigit() and node.output[0] != "x0" else "enc.words"
        part = ".dense" if node.op_type == "MatMul" else ".norm" if node.op_type == "LayerNormalization" else ""
        node.name = f"node_{node.output[0]}"
        paths = ["", "enc", *([module] if not part else [module, module + part]), "op"]
        node.metadata_props.add(key=origin.SCOPES, value=str(paths))
        node.metadata_props.add(key=origin.TRACE, value=f'File "net.py", line {10 + len(node.output[0])}, in forward')
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def artifact(folder: Path, broken: int | None = None, target: str = "null=fp16", **options: Any) -> Path:
    """Typed without a look at any data: with one, what overflows would be an island, and there would be nothing to explain."""
    source = model(folder / "model.onnx", broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "value_evidence", lambda job: None)
        bertc.build(source, folder / "out", targets=[target], verify=False, **options)
    return folder / "out"


def source_of(made: Path) -> GivenSource:
    return GivenSource(str(made.parent / "model.onnx"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("overflowing"), broken=2)


# Drift


def test_drift_after_every_layer(sound: Path) -> None:
    found = explaining.measure_artifact_drift(sound, against=source_of(sound))
    assert found.against.startswith("the graph of ")
    assert [f"enc.layer.{at}" for at in range(LAYERS)] == [x.module for x in found.layers if x.op == "LayerNormalization"]
    assert not found.unmatched
    assert not found.first
    for layer in found.layers[1:]:
        assert 1e-5 < layer.relative < 1e-2, layer
        assert layer.padding == "left out"
        assert layer.cosine_min > 0.999


def test_windows_do_not_change_what_is_found(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MAX_TOKENS", 20)
    whole = explaining.measure_artifact_drift(sound, against=source_of(sound))
    monkeypatch.setattr(drift, "WINDOW_BYTES", 1)
    small = explaining.measure_artifact_drift(sound, against=source_of(sound))
    assert (whole.windows, small.windows) == (1, len(whole.layers))
    assert small.layers == whole.layers


def test_padding_is_no_drift() -> None:
    feeds = {"input_ids": np.zeros((2, 3), np.int64), "attention_mask": np.array([[1, 1, 0], [1, 0, 0]])}
    shape = ir.Shape(["batch", "length"])
    inputs = [ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.INT64)) for name in feeds]
    source = Graph(ir.Model(ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}), ir_version=10))
    sample, array = Sample("s", feeds), np.arange(12.0).reshape(2, 3, 2)
    kept, said = drift.drop_padding(source, ("batch", "length", 2), sample, array)
    assert (kept.tolist(), said) == ([[0, 1], [2, 3], [6, 7]], "left out")
    assert drift.drop_padding(source, ("batch", 4), sample, array[:, 0])[1] == "left out"
    assert drift.drop_padding(source, ("places", "length", 2), sample, array)[1] == "counted"
    assert drift.drop_padding(source, (1, "length", 2), sample, array[:1])[0].tolist() == [[[0, 1], [2, 3]]]


def test_a_value_of_another_meaning_is_not_matched(tmp_path: Path) -> None:
    """The same node by its origin, with another weight: the product is not compared, the norm behind it is."""
    source = graph.load_graph(model(tmp_path / "a.onnx"))
    changed = source.copy()
    weight = changed.model.graph.initializers["w1"]
    weight.const_value = ir.tensor(-3 * weight.const_value.numpy(), name="w1")  # type: ignore[union-attr]
    sample = Sample("s", {"input_ids": np.ones((2, 5), np.int64), "attention_mask": np.ones((2, 5), np.int64)})
    found, missing = match_boundaries(source, changed, [sample])
    assert "enc.layer.1.dense" in missing
    assert "enc.layer.0.dense" in [b.module for b in found]
    assert "enc.layer.1" in [b.module for b in found]


def test_the_first_value_that_is_not_finite_has_a_name(overflowing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    against = str(source_of(overflowing))
    assert run(["verify", str(overflowing), "--layers", "--against", against, "--json"]) == 1
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["artifacts"]
    assert found["first_nonfinite"].startswith("MatMul 'node_p2' in enc.layer.2.dense net.py:12, on ")
    assert "MatMul 'node_p2' in enc.layer.2.dense" in err
    by_module = {layer["module"]: layer for layer in found["layers"]}
    assert by_module["enc.layer.1"]["nonfinite"] == 0
    assert by_module["enc.layer.2.dense"]["nonfinite"] > 0
    assert by_module["enc.layer.2.dense"]["relative"] == "inf"


def test_without_a_source_it_is_compared_with_itself_and_says_so(tmp_path: Path) -> None:
    made = artifact(tmp_path)
    found = explaining.measure_artifact_drift(made)
    assert found.against == explaining.OWN_GRAPH
    assert any("no --against SOURCE" in note for note in found.notes)
    assert found.layers[-1].relative < 1e-2


def test_a_plot_of_the_layers(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(sound), "--layers", "--against", str(source_of(sound)), "--plot", str(tmp_path / "drift.svg")]) == 0
    assert "enc.layer.3" in capsys.readouterr().err
    text = (tmp_path / "drift.svg").read_text("utf-8")
    assert text.startswith("<?xml")
    assert "Drift after every module" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--layers", "--bisect"], "two questions"),
        (["--plot", "x.svg"], "--plot needs --layers"),
        (["--layers", "--budget", "rel=1"], "--budget goes with --bisect"),
        (["--bisect", "--max-drop", "0.1"], "judge the whole artifact"),
    ],
)
def test_options_that_do_not_go_together(
    sound: Path, words: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(sound), *words]) == 2
    assert said in capsys.readouterr().err


# Bisection


def test_bisect_names_exactly_the_product_that_overflows(overflowing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(overflowing), "--bisect", "--json"]) == 1
    out, err = capsys.readouterr()
    (found,) = json.loads(out)["artifacts"]
    assert found["verdict"] == "found"
    (node,) = found["nodes"]
    assert (node["node"], node["op"], node["module"], node["places"]) == ("node_p2", "MatMul", "enc.layer.2.dense", ["net.py:12"])
    assert node["largest"] > node["limit"] == 65504
    assert "OVERFLOWS" in err
    assert 1 < found["runs"] < 60


def test_bisect_within_the_budget_says_so(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(sound), "--bisect"]) == 0
    assert "is within its budget" in capsys.readouterr().err


def test_bisect_of_what_is_no_matter_of_precision(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = model(sound.parent / "other.onnx", broken=0)
    words = ["verify", str(sound), "--bisect", "--against", str(model(other, broken=1))]
    assert run(words) == 2
    assert "--allow-changed-source" in capsys.readouterr().err
    assert run([*words, "--allow-changed-source"]) in (0, 1)
    capsys.readouterr()
    changed = onnx.load(other)
    weight = next(w for w in changed.graph.initializer if w.name == "w1")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), "w1"))
    onnx.save(changed, other)
    assert run(["verify", str(sound), "--bisect", "--against", str(other), "--allow-changed-source", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert (found["verdict"], found["nodes"]) == ("not precision", [])
    assert "not precision: even with all" in found["summary"]


def test_weights_of_the_source_are_put_back_too(sound: Path) -> None:
    """All back is the source, to the last digits of float32: no rounding of a weight is left."""
    found = explaining.bisect_artifact(sound, against=source_of(sound), budget={"rel": 1e-5, "cosine": 0.0})
    assert found.verdict in ("found", "not minimal")
    assert len(found.nodes) > LAYERS
    assert not [note for note in found.notes if "weights" in note]


def test_nothing_put_back_is_the_emulated_graph(tmp_path: Path) -> None:
    typed = precision.get("fp16").apply(graph.load_graph(model(tmp_path / "a.onnx"))).graph
    feeds = {"input_ids": np.arange(8).reshape(2, 4), "attention_mask": np.ones((2, 4), np.int64)}
    switched = Float32SwitchRunner(typed)
    wanted = ReferenceRunner(typed).run(feeds)["last"]
    assert np.array_equal(switched.run(feeds)["last"], wanted)
    switched.in_float32 = frozenset(switched.items)
    whole = ReferenceRunner(graph.load_graph(tmp_path / "a.onnx")).run(feeds)["last"]
    off = [float(np.abs(array - whole).max()) for array in (switched.run(feeds)["last"], wanted)]
    assert 0 < off[0] < off[1], "what is left of the error is the weights'"


QDQ = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, 8] x) => (float[batch, 8] y)
<float wide = {0.02}, float coarse = {3.0}, int8 zero = {0}> {
  q0 = QuantizeLinear(x, wide, zero)
  d0 = DequantizeLinear(q0, wide, zero)
  qa = QuantizeLinear(a, wide, zero)
  da = DequantizeLinear(qa, wide, zero)
  h = MatMul(d0, da)
  q1 = QuantizeLinear(h, coarse, zero)
  d1 = DequantizeLinear(q1, coarse, zero)
  qb = QuantizeLinear(b, wide, zero)
  db = DequantizeLinear(qb, wide, zero)
  k = MatMul(d1, db)
  t = Tanh(k)
  y = MatMul(t, dc)
  dc = DequantizeLinear(c, wide, zero)
}"""


def quantised() -> tuple[Graph, Graph]:
    """A graph of quantised products, the second of which reads too coarse numbers, and the same without quantisation."""
    rng = np.random.default_rng(0)
    weights = {name: np.float32(rng.uniform(-1, 1, (8, 8))) for name in "ab"} | {"c": rng.integers(-50, 50, (8, 8), np.int8)}
    lines = QDQ.splitlines()
    lines[-2], lines[-3] = lines[-3], lines[-2]
    proto = onnx.parser.parse_model("\n".join(lines))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in proto.graph.node:
        node.name = f"make_{node.output[0]}"
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    plain = ir.from_proto(ir.to_proto(model))
    for node in list(plain.graph):
        before = node.inputs[0].producer() if node.op_type == "DequantizeLinear" else None  # type: ignore[union-attr]
        if before is not None:
            node.outputs[0].replace_all_uses_with(before.inputs[0])  # type: ignore[arg-type]
    return Graph(model), Graph(plain)


def test_of_a_quantised_graph_the_product_with_coarse_inputs_is_named() -> None:
    graph, plain = quantised()
    samples = [Sample(f"s{i}", {"x": np.float32(np.random.default_rng(i).uniform(-1, 1, (4, 8)))}) for i in range(3)]
    truth = ReferenceRunner(plain)
    pairs = [(sample, truth.run(sample.feeds)) for sample in samples]
    found = bisection.bisect_graph(Path("q"), graph, "custom", Budget(rel=0.05), pairs)
    assert [node.node for node in found.nodes] == ["make_k"]
    assert found.candidates == 2
    assert len(found.notes) == 1 and "1 weight in INT8" in found.notes[0]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_ddmin_finds_what_is_needed_and_no_more(case: tuple[int, set[int]]) -> None:
    size, needed = case
    groups = [(at,) for at in range(size)]
    found = ddmin(groups, lambda some: needed <= {at for (at,) in some})  # type: ignore[arg-type]
    assert {at for (at,) in found} == needed  # type: ignore[misc]


def test_a_mapped_file_is_the_same_graph(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[N, 90] x) => (float[N, 70] y) { y = MatMul(x, w) }'
    )
    weight = rng.standard_normal((90, 70)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    found = graph.load_graph(tmp_path / "m.onnx", mapped=True)
    tensor = found.model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert np.array_equal(tensor.numpy(), weight)
    assert graph.save_graph(found, tmp_path / "again.onnx") == graph.save_graph(
        graph.load_graph(tmp_path / "m.onnx"), tmp_path / "again.onnx"
    )
    data = (tmp_path / "m.onnx").read_bytes()
    for size in (0, 7, len(data) - 5):
        (tmp_path / "cut.onnx").write_bytes(data[:size])
        with pytest.raises(bertc.errors.SourceError):
            graph.load_graph(tmp_path / "cut.onnx", mapped=True)


def test_a_tie_between_two_labels_is_no_loss_of_precision() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 4] x) => (int64[batch] best) <float one = {1.0}> {
        scores = Mul(x, one) best = ArgMax<axis = 1, keepdims = 0>(scores) }"""
    graph = Graph(ir.from_proto(onnx.parser.parse_model(text)))
    sample = Sample("two rows", {"x": np.float32([[0, 5, 5 + 2e-5, 1], [9, 1, 4, 0]])})
    for labels, verdict in (((1, 0), "within budget"), ((3, 0), "not precision")):
        found = bisection.bisect_graph(Path("q"), graph, "custom", Budget(rel=1e-5), [(sample, {"best": np.array(labels)})])
        assert found.verdict == verdict
