"""The lowerings of both targets, on the CPU: equal to the canonical bodies for every mask, and of the form that was meant."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fused
import numpy as np
import onnx
import onnxruntime
import pytest

from bertc import precision
from bertc.graph.model import Graph, save_graph
from bertc.graph.provenance import module_path
from bertc.ops import expansion as canonical
from bertc.runtime.reference import ReferenceRunner
from bertc.targets._onnxruntime import lower as _lower_ort
from bertc.targets._tensorrt import layout as _trt_graph
from bertc.targets._tensorrt import lower_encoder as _lower_trt

TABLES = {
    "ort": _lower_ort.LOWERINGS,
    "trt": _lower_trt.lowerings(),
    "trt-turing": _lower_trt.lowerings(("sm75",)),
    "trt-quantised": _lower_trt.lowerings(quantised=True),
}


def lowered(graph: Graph, table: str) -> Graph:
    out = canonical.expand(graph, TABLES[table])
    return _trt_graph.tidy(out) if table.startswith("trt") else out


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("graph", ["plain", "no query bias", "heads of 13", "heads of 9"])
def test_equal_to_the_canonical_bodies(table: str, graph: str) -> None:
    """13 is made 16 where the compiler reads heads in place, 9 is left."""
    size = int(graph.split()[-1]) if graph.startswith("heads") else fused.SIZE
    source = fused.encoder(query_bias=graph != "no query bias", size=size)
    truth, found = ReferenceRunner(canonical.expand(source)), ReferenceRunner(lowered(source, table))
    for kind in fused.KINDS:
        for rows, length in fused.SIZES:
            feeds = fused.feeds(rows, length, kind)
            (wanted,), (got,) = truth.run(feeds).values(), found.run(feeds).values()
            assert relative(got, wanted) <= 1e-5, (kind, rows, length)


@pytest.mark.parametrize("table", ["trt", "trt-turing"])
def test_fp16_keeps_the_direction(table: str) -> None:
    source = fused.encoder()
    typed = precision.get("fp16").apply(lowered(source, table))
    assert [c.now for c in typed.plan.clamps] == [-3e4], "the mask's low is given a stand-in that float16 can hold"
    truth, found = ReferenceRunner(canonical.expand(source)), ReferenceRunner(typed.graph)
    for kind in ("right", "left", "holed"):
        feeds = fused.feeds(3, 33, kind)
        (wanted,), (got,) = truth.run(feeds).values(), found.run(feeds).values()
        cosine = (wanted * got).sum(1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(got, axis=1)
        assert cosine.min() >= 0.99999


WIDTHS = {"trt": {13: 16, 26: 32, 9: 9}, "trt-turing": {13: 13}, "trt-quantised": {26: 32, 20: 20}, "ort": {13: 13}}


@pytest.mark.parametrize(("table", "size", "wide"), [(name, *each) for name, widths in WIDTHS.items() for each in widths.items()])
def test_how_wide_heads_are_made(table: str, size: int, wide: int) -> None:
    graph = lowered(fused.encoder(layers=1, size=size), table).model.graph
    splits = {name: value.const_value.numpy().tolist() for name, value in graph.initializers.items() if name.endswith("/split")}
    assert {split[-1] for split in splits.values()} == {wide}


def test_trt_graph_is_length_first_with_one_swap_at_each_end() -> None:
    graph = lowered(fused.encoder(layers=3), "trt")
    swaps = [n for n in graph.model.graph if n.op_type == "Transpose" and tuple(n.attributes["perm"].as_ints()) == (1, 0, 2)]
    assert not swaps, "ids are transposed, and CLS is picked from the other axis"
    assert not [n for n in graph.model.graph.all_nodes() if n.domain]
    names = [n.name for n in graph.model.graph.all_nodes()]
    assert len(set(names)) == len(names)
    assert {module_path(n) for n in graph.model.graph if n.op_type == "Softmax"} == {f"m.layer.{i}" for i in range(3)}


def test_a_query_bias_of_zero_leaves_no_addition() -> None:
    adds = [lowered(fused.encoder(layers=1, query_bias=bias), "trt").op_counts()["Add"] for bias in (True, False)]
    assert adds[0] - adds[1] == 1


def test_weights_are_cut_when_they_are_read() -> None:
    graph = lowered(fused.encoder(layers=1), "trt")
    (value,) = [v for name, v in graph.model.graph.initializers.items() if name.endswith("/Wk")]
    packed = fused.encoder(layers=1).model.graph.initializers["m.layer.0.wqkv"].const_value.numpy()  # type: ignore[union-attr]
    assert np.array_equal(value.const_value.numpy(), packed[:, fused.WIDTH : 2 * fused.WIDTH])  # type: ignore[union-attr]


def test_onnx_runtime_leaves_the_norms_of_its_graph_alone(tmp_path: Path) -> None:
    """Its SkipLayerNormalization kernel takes several times as long as the Add and the norm it stands for."""
    made = {}
    for name, graph in (("canonical", canonical.expand(fused.encoder())), ("lowered", _lower_ort.lower(fused.encoder()))):
        save_graph(graph, tmp_path / f"{name}.onnx")
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / f"{name}.ort.onnx"), 3
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
        made[name] = Counter(n.op_type for n in onnx.load(tmp_path / f"{name}.ort.onnx").graph.node)
    assert made["canonical"]["SkipLayerNormalization"] >= 4, "if it makes none any more, the canonical form will do"
    assert not made["lowered"]["SkipLayerNormalization"] and made["lowered"]["LayerNormalization"] == 5


def test_what_the_lowered_graph_does_not_read_is_not_in_it() -> None:
    graph = _lower_ort.lower(fused.encoder())
    assert not [n for n in graph.model.graph.all_nodes() if n.domain]
    assert all(v.uses() for v in graph.model.graph.initializers.values())
    assert graph.initializer_bytes <= fused.encoder().initializer_bytes, "three are cut from the packed ones"
