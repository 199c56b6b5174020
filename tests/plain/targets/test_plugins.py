"""`--plugin`: operators as kernels of ours inside a TensorRT engine: what they mean, their types, what is refused."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import fused
import numpy as np
import onnx_ir as ir
import pytest

from bertc import precision, targets
from bertc.cli import _main as cli
from bertc.core import BertcError, Missing
from bertc.graph import load_graph, save_graph
from bertc.graph.model import Graph
from bertc.ops import Builder, expand
from bertc.recipe import Recipe, plan_builds
from bertc.runtime import PLUGIN, PLUGIN_DOMAIN, ReferenceRunner
from bertc.targets import tensorrt
from bertc.targets._tensorrt import plugin_nodes, worker

ALL = ("skip_layernorm", "bias_gelu", "embeddings")  # of an encoder that is padded


@pytest.mark.parametrize("kind", ["right", "left", "holed", "random"])
def test_a_graph_with_plugins_is_the_graph(kind: str) -> None:
    graph = fused.encoder()
    lowered = tensorrt.lower(graph, plugins=ALL)
    found = collections.Counter(node.op_type for node in lowered.model.graph if node.domain == PLUGIN_DOMAIN)
    assert sum(found.values()) == 1 + 2 + 4 and len(found) == 4
    feeds = fused.feeds(3, 9, kind)
    (wanted,), (got,) = (ReferenceRunner(each).run(feeds).values() for each in (expand(graph), lowered))
    assert np.abs(wanted - got).max() < 2e-5 * np.abs(wanted).max()


def test_only_what_was_asked_for_is_a_plugin_and_each_is_registered_once() -> None:
    lowered = tensorrt.lower(fused.encoder(), plugins=("skip_layernorm",))
    listed = plugin_nodes.used(lowered)
    assert [each["launch"] for each in listed] == ["skip_layernorm"] * 2  # with the bias and without
    assert {tuple(each["present"]) for each in listed} == {
        ("x", "skip", "gamma", "beta", "y"),
        ("x", "skip", "bias", "gamma", "beta", "y"),
    }
    assert not plugin_nodes.used(tensorrt.lower(fused.encoder()))


def test_in_half_precision_a_plugin_is_no_island_and_a_file_keeps_its_meaning(tmp_path: Path) -> None:
    graph = fused.encoder()
    typed = precision.get("fp16").apply(tensorrt.lower(graph, plugins=ALL), kernels=tensorrt.KERNELS).graph
    nodes = [node for node in typed.model.graph if node.domain == PLUGIN_DOMAIN]
    assert {value.dtype for node in nodes for value in node.outputs} == {ir.DataType.FLOAT16}
    assert all(node.attributes["plugin_namespace"].as_string() == "bertc" and node.attributes["aot"].as_int() for node in nodes)
    save_graph(typed, tmp_path / "graph.onnx")
    feeds = fused.feeds(2, 7, "right")
    (wanted,), (got,) = (
        ReferenceRunner(each).run(feeds).values() for each in (expand(graph), load_graph(tmp_path / "graph.onnx"))
    )
    assert 0 < np.abs(wanted - got).max() < 2e-2 * np.abs(wanted).max()


def test_the_graph_without_plugins_is_typed_as_before() -> None:
    lowered = tensorrt.lower(fused.encoder())
    with_table, without = (precision.get("fp16").apply(lowered, kernels=given) for given in (tensorrt.KERNELS, None))
    assert with_table.plan.to_json() == without.plan.to_json()


def test_rmsnorm_and_the_sum_before_it() -> None:
    op = Builder()
    x, skip = (ir.Value(name=n, shape=ir.Shape(["b", "s", 8]), type=ir.TensorType(ir.DataType.FLOAT)) for n in ("x", "skip"))
    gamma = op.initializer(ir.tensor(np.linspace(0.5, 1.5, 8, dtype=np.float32), name="gamma"), name="gamma")
    made = op.op_multi_out("FusedSkipRmsNorm", [x, skip, None, gamma], {"epsilon": 1e-6}, num_outputs=2, domain="bertc")
    for index, value in enumerate(made):
        value.name, value.type, value.shape = f"y{index}", x.type, x.shape
    op.nodes[-1].name = "norm"
    model = ir.Graph([x, skip], made, nodes=op.nodes, initializers=op.initializers, opset_imports={"": 20, "bertc": 1}, name="g")
    graph, rng = Graph(ir.Model(model, ir_version=10)), np.random.default_rng(0)
    lowered = tensorrt.lower(graph, plugins=("skip_layernorm",))
    (plugin,) = [node for node in lowered.model.graph if node.domain == PLUGIN_DOMAIN]
    assert json.loads(plugin.metadata_props[PLUGIN])["present"] == ["x", "skip", "gamma", "y", "total"]
    feeds = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in ("x", "skip")}
    wanted, got = (ReferenceRunner(each).run(feeds) for each in (expand(graph), lowered))
    assert all(np.abs(wanted[name] - got[name]).max() < 1e-5 for name in ("y0", "y1"))


@pytest.mark.parametrize(
    ("norm", "group", "bias"), [("none", 1, True), ("none", 2, False), ("layer", 1, True), ("layer", 1, False)]
)
def test_a_convolution_is_the_plugin_of_its_norm(norm: str, group: int, bias: bool, tmp_path: Path) -> None:
    graph, feeds = (
        fused.convolution(norm, group, bias),
        {"x": np.random.default_rng(0).standard_normal((2, 6, 17)).astype(np.float32)},
    )
    lowered = tensorrt.lower(graph, plugins=("conv1d_gelu",))
    (plugin,) = [node for node in lowered.model.graph if node.domain == PLUGIN_DOMAIN]
    assert plugin.op_type.startswith("conv1d_layernorm_gelu" if norm == "layer" else "conv1d_gelu")
    assert plugin.op_type.endswith("_without_b") is not bias and not plugin_nodes.not_used(lowered)
    assert {name: plugin.attributes[name].value for name in ("stride", "pad", "pad_end", "dilation", "groups", "form")} == {
        "stride": 2, "pad": 2, "pad_end": 1, "dilation": 2, "groups": group, "form": "tanh",
    }  # fmt: skip
    wanted, got = (ReferenceRunner(each).run(feeds)["y"] for each in (expand(graph), lowered))
    assert np.abs(wanted - got).max() < 1e-5
    save_graph(precision.get("fp16").apply(lowered, kernels=tensorrt.KERNELS).graph, tmp_path / "graph.onnx")
    half = ReferenceRunner(load_graph(tmp_path / "graph.onnx")).run(feeds)["y"]
    assert 0 < np.abs(wanted - half).max() < 2e-2


def test_a_plugin_that_computes_nothing_is_refused_with_the_reason() -> None:
    with pytest.raises(BertcError, match="norm over time"):
        tensorrt.lower(fused.convolution("group"), plugins=("conv1d_gelu",))
    with pytest.raises(BertcError, match="no FusedPackedAttention"):
        tensorrt.lower(fused.encoder(), plugins=("packed_attention",))
    with pytest.raises(BertcError, match="no FusedConv1dGelu"):
        tensorrt.lower(fused.encoder(), plugins=("skip_layernorm", "conv1d_gelu"))


REFUSED = {
    "onnxruntime": ("takes no kernels of ours; tensorrt does", "fp32", ("bias_gelu",)),
    "tensorrt-rtx": ("IPluginCreatorV3One", "fp16", ("bias_gelu",)),
    "tensorrt": ("did you mean 'bias_gelu'", "fp16", ("bias_gleu",)),
}


@pytest.mark.parametrize("target", REFUSED)
def test_what_cannot_be_is_refused_with_its_reason(target: str) -> None:
    said, mode, plugins = REFUSED[target]
    assert said in str(targets.refusal(targets.parse_spec(target), mode, plugins=plugins))
    assert targets.refusal(targets.parse_spec(target), mode) is None


def test_quantised_engines_and_a_machine_without_triton_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = targets.parse_spec("tensorrt")
    assert "fp32, fp16, bf16" in str(targets.refusal(spec, "int8", plugins=("bias_gelu",)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Missing, match=r"bertc\[kernels\]"):
        targets.refusal(spec, "fp16", plugins=("bias_gelu",))


def test_a_recipe_says_it_and_the_command_line_refuses_it_for_rtx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BertcError, match="takes no kernels"):
        plan_builds(Recipe("x", targets=("onnxruntime",), plugins=("skip_layernorm",)))
    words = ["build", "minilm", "--target", "onnxruntime", "--fp32", "--plugin", "skip_layernorm", "-o", str(tmp_path / "out")]
    assert cli.run(words) == 2
    assert "takes no kernels of ours" in " ".join(capsys.readouterr().err.split())


def test_without_a_gpu_the_worker_says_what_it_lacks() -> None:
    pytest.importorskip("triton")
    with pytest.raises(worker.Refused) as refused:
        worker.register_plugins(None, {"sm": None, "plugins": [{"launch": "bias_gelu", "present": ["x", "bias", "out"]}]})
    assert "none was found" in refused.value.errors[0]["message"]
