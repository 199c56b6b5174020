"""Half-precision files, weights in few bits and quantised activations, as other tools write them: right values, right words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from bertc.core import ExportFailed, InputError, SourceError
from bertc.fusions.engine import fuse
from bertc.recipe import Recipe
from bertc.source import onnx_file, open_source
from bertc.source.opening import open_reference
from bertc.verification import check_export
from tests.helpers import jit

FLOAT, HALF, BF16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64
MODEL = "distilbert_eager_13"


def source_file(folder: Path, change=None, name: str = MODEL) -> Path:
    """A two-layer encoder of torch.jit's exporter, changed."""
    model = onnx.ModelProto()
    model.CopyFrom(jit.model(name))
    path = folder / "model.onnx"
    onnx.save(change(model) or model if change else model, path)
    return path


def answers(path: Path, feeds: dict, optimised: bool = False) -> list[np.ndarray]:
    """ONNX Runtime's. Its optimiser makes products with activations in int8 of a MatMul behind DequantizeLinear."""
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    return [
        np.asarray(a, np.float32)
        for a in session.run(None, {i.name: feeds[i.name].astype(kinds[i.type]) for i in session.get_inputs()})
    ]


def farthest(path: Path) -> float:
    """The largest relative error of the graph that is read against ONNX Runtime on the file, over every kind of mask."""
    source = open_source(str(path))
    from bertc.source import runner_of

    runner, worst = runner_of(source.graph), 0.0
    for kind in ("full", "right", "left", "holes"):
        feeds = jit.feeds(source.graph.inputs, kind)
        for wanted, got in zip(answers(path, feeds), runner.run(feeds).values(), strict=True):
            worst = max(worst, float(np.abs(wanted - got).max() / np.abs(wanted).max()))
    return worst


def attentions(path: Path) -> int:
    graph, dims, _ = onnx_file.read_onnx_file(path)
    return fuse(graph, dims).change.counts().get("attention", 0)


# ---- half precision --------------------------------------------------------------------------------------------------


def to_half(keep: bool):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return lambda model: convert_float_to_float16(model, keep_io_types=keep)


def in_type(dtype: int):
    """Everything in one type, as a module traced in it: weights, constants, Casts."""
    import ml_dtypes

    numpy_type = {HALF: np.float16, BF16: ml_dtypes.bfloat16}[dtype]

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == FLOAT:
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(
                    numpy_helper.from_array(np.maximum(array, -3e38 if dtype == BF16 else -65504).astype(numpy_type), tensor.name)
                )
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = dtype
                if attribute.t.data_type == FLOAT:
                    array = np.clip(numpy_helper.to_array(attribute.t), -65504, 65504)
                    attribute.t.CopyFrom(numpy_helper.from_array(array.astype(numpy_type)))
        for value in model.graph.output:
            value.type.tensor_type.elem_type = dtype

    return change


@pytest.mark.parametrize("how", ["converted", "converted with its interface", "traced in half"])
def test_a_float16_file_is_its_float32_graph(tmp_path: Path, how: str) -> None:
    change = {"converted": to_half(True), "converted with its interface": to_half(False), "traced in half": in_type(HALF)}[how]
    path = source_file(tmp_path, change)
    source = open_source(str(path))
    assert not [v.name for v in source.graph.model.graph.initializers.values() if v.const_value.dtype.itemsize == 2]
    assert {spec.dtype for spec in source.graph.outputs} == {"float32"}
    assert source.given is not None and source.given.precision == "fp16"
    assert 0 < farthest(path) < 5e-3  # roundings of 5e-4 that the file makes and the graph does not
    assert attentions(path) == attentions(source_file(tmp_path)) == 2
    assert any("float16" in note for note in source.notes)
    assert how != "traced in half" or any("inputs and outputs" in note for note in source.notes)


def test_weights_are_widened_exactly(tmp_path: Path) -> None:
    path = source_file(tmp_path, to_half(True))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer if t.data_type == HALF}
    graph = open_source(str(path)).graph
    found = {name: v.const_value.numpy() for name, v in graph.model.graph.initializers.items() if name in stored}
    assert len(found) > 20 and all(np.array_equal(found[name], stored[name].astype(np.float32)) for name in found)


def test_the_graph_is_held_against_the_file_at_its_type(tmp_path: Path) -> None:
    source = open_source(str(source_file(tmp_path, to_half(True))))
    proof = check_export(source, (), lambda *_: None)
    (note,) = [note for note in proof.notes if "as given" in note]
    assert "float16 rounds" in note
    assert max(out.relative for out in proof.comparison.result().outputs) == 0.0  # the truth from here on is the graph
    given = dataclasses.replace(source.given, run=lambda feeds: {n: 1.1 * array for n, array in source.given.run(feeds).items()})
    with pytest.raises(ExportFailed, match="as given"):
        check_export(dataclasses.replace(source, given=given), (), lambda *_: None)


def test_the_reference_of_a_float16_file_is_its_float32_graph(tmp_path: Path) -> None:
    path = str(source_file(tmp_path, to_half(True)))
    source, reference = open_source(path), open_reference(path)
    feeds = jit.feeds(source.graph.inputs, "holes")
    assert reference.sha256 == source.sha256
    assert all(np.array_equal(a, b) for a, b in zip(reference.run(feeds).values(), source.run(feeds).values(), strict=True))


def test_bfloat16_runs_where_onnx_runtime_has_no_kernel(tmp_path: Path) -> None:
    path = source_file(tmp_path, in_type(BF16))
    source = open_source(str(path))
    assert source.given is not None and (source.given.precision, "emulated" in source.given.how) == ("bf16", True)
    proof = check_export(source, (), lambda *_: None)
    assert any("bfloat16 rounds" in note for note in proof.notes)
    assert attentions(path) == 2


def test_weights_stored_half_and_computed_in_float32_are_a_float32_source(tmp_path: Path) -> None:
    def store(model: onnx.ModelProto) -> None:
        casts = []
        for tensor in model.graph.initializer:
            if tensor.data_type == FLOAT and len(tensor.dims) == 2:
                name = tensor.name
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half"))
                casts.append(oh.make_node("Cast", [f"{name}.half"], [name], to=FLOAT))
        nodes = [*casts, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    path = source_file(tmp_path, store)
    assert open_source(str(path)).given is None  # judged as any float32 source
    assert farthest(path) < 1e-5 and attentions(path) == 2


LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize(("number", "wide"), [(-65504.0, LOWEST), (-10000.0, -10000.0), (-np.inf, -np.inf)])
def test_numbers_of_masks_keep_their_meaning(tmp_path: Path, number: float, wide: float) -> None:
    """A row that is all masked is the mean of all: by -65504 in float16, by LOWEST in float32."""
    nodes = [
        oh.make_node("Cast", ["mask"], ["keep"], to=HALF), oh.make_node("Cast", ["x"], ["h"], to=HALF),
        oh.make_node("Cast", ["mask"], ["b"], to=TensorProto.BOOL), oh.make_node("Where", ["b", "zero", "low"], ["added"]),
        oh.make_node("Add", ["h", "added"], ["s"]), oh.make_node("Softmax", ["s"], ["y"], axis=-1),
        oh.make_node("ReduceSum", ["keep"], ["n"], keepdims=0),
    ]  # fmt: skip
    weights = [numpy_helper.from_array(np.array(v, np.float16), n) for n, v in (("zero", 0), ("low", number))]
    ports = [oh.make_tensor_value_info("x", FLOAT, ["b", "s"]), oh.make_tensor_value_info("mask", INT64, ["b", "s"])]
    outs = [oh.make_tensor_value_info("y", HALF, ["b", "s"]), oh.make_tensor_value_info("n", HALF, [])]
    model = oh.make_model(oh.make_graph(nodes, "g", ports, outs, weights), opset_imports=[oh.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    feeds = {"x": np.array([[1.25, 2.5, 0.1]], np.float32), "mask": np.array([[1, 1, 0]])}
    got = source.run(feeds)
    assert [v.const_value.numpy().item() for n, v in source.graph.model.graph.initializers.items() if n == "low"] == [wide]
    assert got["y"].dtype == np.float32 and got["n"] == 2 and got["y"][0, 2] == 0
    assert np.allclose(got["y"][0, :2], np.exp([1.25, 2.5]) / np.exp([1.25, 2.5]).sum(), atol=1e-6)


def test_an_overflow_of_the_source_is_told(tmp_path: Path) -> None:
    nodes = [
        oh.make_node("Mul", ["x", "k"], ["w"]),
        oh.make_node("Mul", ["w", "k"], ["y"]),
        oh.make_node("Cast", ["y"], ["z"], to=FLOAT),
    ]
    weights = [numpy_helper.from_array(np.array(3e4, np.float16), "k")]
    ports = [oh.make_tensor_value_info("x", HALF, ["b", 16])], [oh.make_tensor_value_info("z", FLOAT, ["b", 16])]
    onnx.save(
        oh.make_model(oh.make_graph(nodes, "g", *ports, weights), opset_imports=[oh.make_opsetid("", 17)], ir_version=8),
        tmp_path / "m.onnx",
    )
    proof = check_export(open_source(str(tmp_path / "m.onnx")), (), lambda *_: None)
    assert any("overflows" in note for note in proof.notes)


# ---- weights in few bits ---------------------------------------------------------------------------------------------


def rewrite_weights(replace):
    """Put what `replace(name, array)` gives, (initializers, nodes), in the place of every matrix that a MatMul reads."""

    def change(model: onnx.ModelProto) -> None:
        read = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input}
        nodes = []
        for tensor in [t for t in model.graph.initializer if t.name in read and len(t.dims) == 2]:
            made, more = replace(tensor.name, numpy_helper.to_array(tensor))
            model.graph.initializer.remove(tensor)
            model.graph.initializer.extend(made)
            nodes += more
        nodes += model.graph.node
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def as_cast_times_scale(name: str, array: np.ndarray):
    scale = np.abs(array).max(axis=0, keepdims=True) / 127
    made = [
        numpy_helper.from_array(np.round(array / scale).astype(np.int8), f"{name}.q"),
        numpy_helper.from_array(scale, f"{name}.s"),
    ]
    return made, [
        oh.make_node("Cast", [f"{name}.q"], [f"{name}.f"], to=FLOAT),
        oh.make_node("Mul", [f"{name}.f", f"{name}.s"], [name]),
    ]


def as_dequantize(name: str, array: np.ndarray):
    scale = (np.abs(array).max(axis=0) / 127).astype(np.float32)
    numbers = (
        np.round(array / scale).astype(np.int8) if "q" in name else np.round(array / scale + 128).clip(0, 255).astype(np.uint8)
    )
    zero = np.full(scale.shape, 0 if "q" in name else 128, numbers.dtype)
    made = [numpy_helper.from_array(a, f"{name}.{k}") for k, a in (("n", numbers), ("s", scale), ("z", zero))]
    return made, [oh.make_node("DequantizeLinear", [f"{name}.n", f"{name}.s", f"{name}.z"], [name], axis=1)]


def as_transposed(name: str, array: np.ndarray):
    """Stored [N,K], scaled by rows, transposed: as linear layers are kept."""
    made, nodes = as_cast_times_scale(f"{name}.t", np.ascontiguousarray(array.T))
    return made, [*nodes, oh.make_node("Transpose", [f"{name}.t"], [name], perm=[1, 0])]


@pytest.mark.parametrize("form", [as_cast_times_scale, as_dequantize, as_transposed])
def test_stored_weights_are_the_floats_they_stand_for(tmp_path: Path, form) -> None:
    path = source_file(tmp_path, rewrite_weights(form))
    source = open_source(str(path))
    assert source.given is None and farthest(path) < 1e-5 and attentions(path) == 2
    assert not {v.const_value.dtype.name for v in source.graph.model.graph.initializers.values()} & {"INT8", "UINT8"}
    assert not {"DequantizeLinear"} & set(source.graph.op_counts())
    (note,) = [note for note in source.notes if "few bits" in note]
    assert "MiB become" in note


def table_file(path: Path, form: str) -> Path:
    rng = np.random.default_rng(0)
    table = rng.integers(-100, 100, (30, 16)).astype(np.int8)
    weights = {
        "t": table,
        "s": np.array(0.02, np.float32),
        "z": np.array(3, np.int8),
        "rows": rng.random((30, 1)).astype(np.float32),
    }
    looked = oh.make_node("Gather", ["t", "ids"], ["g"])
    nodes = {
        "dequantized": [looked, oh.make_node("DequantizeLinear", ["g", "s", "z"], ["y"])],
        "scaled": [looked, oh.make_node("Cast", ["g"], ["f"], to=FLOAT), oh.make_node("Mul", ["f", "s"], ["y"])],
        "row scales": [
            looked, oh.make_node("Cast", ["g"], ["f"], to=FLOAT), oh.make_node("Gather", ["rows", "ids"], ["r"]),
            oh.make_node("Mul", ["f", "r"], ["m"]), oh.make_node("Neg", ["m"], ["y"]),
        ],
    }[form]  # fmt: skip
    used = {name for node in nodes for name in node.input}
    ports = [oh.make_tensor_value_info("ids", INT64, ["b", "s"])], [oh.make_tensor_value_info("y", FLOAT, ["b", "s", 16])]
    graph = oh.make_graph(nodes, "g", *ports, [numpy_helper.from_array(a, n) for n, a in weights.items() if n in used])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("form", ["dequantized", "scaled", "row scales"])
def test_a_stored_table_is_looked_up_in_float(tmp_path: Path, form: str) -> None:
    path = table_file(tmp_path / "m.onnx", form)
    source = open_source(str(path))
    feeds = {"ids": np.random.default_rng(1).integers(0, 30, (2, 5))}
    assert np.array_equal(open_source(str(path)).run(feeds)["y"], answers(path, feeds)[0])
    from bertc.runtime import ReferenceRunner

    assert np.allclose(ReferenceRunner(source.graph).run(feeds)["y"], answers(path, feeds)[0], rtol=1e-6)
    assert "INT8" not in {v.const_value.dtype.name for v in source.graph.model.graph.initializers.values()}
    assert source.graph.op_counts()["Gather"] == 1


def test_blocks_of_four_bits(tmp_path: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    for level, given in ((None, False), (4, True)):
        path = source_file(tmp_path)
        quantiser = MatMulNBitsQuantizer(onnx.load(path), block_size=16, is_symmetric=False, accuracy_level=level)
        quantiser.process()
        quantiser.model.save_model_to_file(str(path))
        source = open_source(str(path))
        assert (source.given is not None) == given
        assert attentions(path) == 2 and farthest(path) < (0.16 if given else 1e-5)
        assert not any("com.microsoft" in name for name in source.graph.op_counts())


# ---- quantised activations -------------------------------------------------------------------------------------------


def quantised_file(folder: Path, how: str) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

    path, out = source_file(folder), folder / f"{how}.onnx"
    graph, _, _ = onnx_file.read_onnx_file(path)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([jit.feeds(graph.inputs, kind) for kind in ("full", "right")])

        def get_next(self):
            return next(self.left, None)

    if how == "dynamic":
        quantize_dynamic(path, out, weight_type=QuantType.QInt8)
    else:
        quantize_static(
            path, out, Reader(), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
        )
    return out


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_quantised_activations_run_as_given_or_are_refused(tmp_path: Path, how: str) -> None:
    from bertc.pipeline import build_recipe
    from bertc.targets import graph_refusal, parse_spec

    path = quantised_file(tmp_path, how)
    (made,) = build_recipe(Recipe(source=str(path), targets=("onnxruntime",), precision="fp32"), tmp_path / "out")
    feeds = jit.feeds(made.inputs, "right")
    for wanted, got in zip(*(answers(file, feeds, optimised=True) for file in (path, made.path / "model.onnx")), strict=True):
        assert np.array_equal(wanted, got)
    build_recipe(Recipe(source=str(path), targets=("null",), precision="fp32"), tmp_path / "null")
    source = open_source(str(path))
    why = graph_refusal(parse_spec("tensorrt-rtx:sm89"), source.graph)
    assert why is not None and "quantised already" in why and "float model" in why
    with pytest.raises(SourceError, match="quantised already") as caught:
        build_recipe(Recipe(source=str(path), targets=("onnxruntime",), precision="fp16"), tmp_path / "half")
    assert caught.value.exit_code == 2 and not (tmp_path / "half").exists()


def test_what_fusing_refuses(tmp_path: Path) -> None:
    from bertc.fusions.file import fuse_file

    with pytest.raises(InputError, match="quantised already"):
        fuse_file(quantised_file(tmp_path, "dynamic"), tmp_path / "f.onnx", force=False, prove=True, rules_file=None)
    assert not (tmp_path / "f.onnx").exists()


def symmetric_pairs(path: Path, zero: int = 0, kind: type = np.int8) -> Path:
    """Two products between Q/DQ pairs, the bias as int32."""
    rng = np.random.default_rng(0)
    weights = {
        "s": np.array(0.03, np.float32), "z": np.array(zero, kind), "w": rng.integers(-127, 127, (16, 16)).astype(np.int8),
        "ws": np.array(0.01, np.float32), "wz": np.array(0, np.int8), "b": rng.integers(-900, 900, 16).astype(np.int32),
        "bs": np.array(0.0003, np.float32), "bz": np.array(0, np.int32),
    }  # fmt: skip
    nodes = [
        oh.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), oh.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        oh.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]), oh.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bd"]),
        oh.make_node("MatMul", ["d", "wd"], ["m"]), oh.make_node("Add", ["m", "bd"], ["y"]),
    ]  # fmt: skip
    ports = [[oh.make_tensor_value_info(n, FLOAT, ["b", "s", 16])] for n in ("x", "y")]
    graph = oh.make_graph(nodes, "g", *ports, [numpy_helper.from_array(a, n) for n, a in weights.items()])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_symmetric_pairs_are_carried_to_tensorrt(tmp_path: Path) -> None:
    from bertc.runtime import DeployedRunner
    from bertc.targets import graph_refusal, parse_spec, tensorrt_rtx

    path = symmetric_pairs(tmp_path / "m.onnx")
    source = open_source(str(path))
    assert graph_refusal(parse_spec("tensorrt-rtx:sm89"), source.graph) is None
    lowered = tensorrt_rtx.lower(source.graph)
    assert lowered.op_counts()["DequantizeLinear"] == 2  # of the activation and of the weight, not of the bias
    assert "INT32" not in {v.const_value.dtype.name for v in lowered.model.graph.initializers.values()}
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)}
    assert np.allclose(DeployedRunner(lowered).run(feeds)["y"], answers(path, feeds)[0], atol=1e-6)


@pytest.mark.parametrize(("half", "type_name"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_symmetric_pairs_are_carried_in_half_precision(half: str, type_name: str, tmp_path: Path) -> None:
    """Opset 17 has no pairs of half precision: without a newer one all of it would stay in float32."""
    from bertc import precision
    from bertc.runtime import ReferenceRunner
    from bertc.targets import parse_spec, require_takes, tensorrt_rtx

    source = open_source(str(symmetric_pairs(tmp_path / "m.onnx")))
    require_takes(source.graph, [(parse_spec("tensorrt-rtx:sm89"), half), (parse_spec("tensorrt"), half)])
    for name, asked in (("tensorrt-rtx:sm89", "int8"), ("onnxruntime", half), ("null", half)):
        with pytest.raises(SourceError, match="quantised already"):
            require_takes(source.graph, [(parse_spec(name), asked)])
    typed = precision.get(half).apply(tensorrt_rtx.lower(source.graph)).graph
    made = {node.op_type: node.outputs[0].dtype.name for node in typed.model.graph if node.op_type != "Cast"}
    assert made == {"QuantizeLinear": "INT8", "DequantizeLinear": type_name, "MatMul": type_name, "Add": type_name}
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)}
    wanted = answers(tmp_path / "m.onnx", feeds)[0]
    step = 0.03 * 0.01 * 127  # of the activation by the largest weight
    assert np.abs(ReferenceRunner(typed).run(feeds)["y"] - wanted).max() < 3 * step + 2e-2 * np.abs(wanted).max()


@pytest.mark.parametrize(("zero", "kind", "word"), [(3, np.int8, "zero point"), (128, np.uint8, "uint8")])
def test_other_pairs_are_not(tmp_path: Path, zero: int, kind: type, word: str) -> None:
    from bertc.targets import graph_refusal, parse_spec

    why = graph_refusal(parse_spec("tensorrt-rtx:sm89"), open_source(str(symmetric_pairs(tmp_path / "m.onnx", zero, kind))).graph)
    assert why is not None and word in why and "QuantizeLinear" in why


def test_an_operator_without_expansion_is_named_before_any_work(tmp_path: Path) -> None:
    from bertc.pipeline import build_recipe

    node = oh.make_node("CDist", ["x", "w"], ["y"], name="far", domain="com.microsoft", metric="euclidean")
    ports = [oh.make_tensor_value_info("x", FLOAT, ["b", 16])], [oh.make_tensor_value_info("y", FLOAT, ["b", 4])]
    weights = [numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32), "w")]
    opsets = [oh.make_opsetid("", 17), oh.make_opsetid("com.microsoft", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(oh.make_model(oh.make_graph([node], "g", *ports, weights), opset_imports=opsets, ir_version=8), path)
    with pytest.raises(SourceError, match=r"CDist 'far': no expansion") as caught:
        build_recipe(Recipe(source=str(path), targets=("tensorrt-rtx:sm89",), precision="fp32"), tmp_path / "rtx")
    assert caught.value.exit_code == 2
    (made,) = build_recipe(Recipe(source=str(path), targets=("onnxruntime",), precision="fp32"), tmp_path / "ort")
    assert any("CDist 'far'" in note for note in made.manifest["source"]["notes"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounded_constants_of_gelu_and_masks(dtype: str) -> None:
    import ml_dtypes
    import onnx_ir as ir

    from bertc.source.half_constants import restored

    kind = np.dtype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    for number in (np.sqrt(2), 0.044715, np.sqrt(2 / np.pi), 1.702):
        rounded = np.array(number, kind)
        assert restored(ir.tensor(rounded)) == np.float32(number) != rounded.astype(np.float32)
    weights = np.array([1.4140625, -2.0, 0.5], kind)
    assert np.array_equal(restored(ir.tensor(weights)), weights.astype(np.float32))
    if dtype == "float16":
        assert restored(ir.tensor(np.array([0, -65504], kind))).tolist() == [0, LOWEST]
        assert restored(ir.tensor(np.array([1, -65504], kind))).tolist() == [1, -65504]  # no mask
