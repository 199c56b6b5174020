"""Dims of other tools' files: equal ones are one, and the batch and the length are found whatever they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from bertc.cli._main import run
from bertc.core.profiles import Dim
from bertc.source import onnx_file as onnx_source
from bertc.source.opening import open_source

POOLED = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[{0},{1}] input_ids, int64[{2},{3}] attention_mask) => (float[{4},6] y) <float[30,6] t> {{
  e = Gather (t, input_ids) m = Cast <to = 1> (attention_mask) a = Constant <value_ints = [2]> () u = Unsqueeze (m, a)
  p = Mul (e, u) o = Constant <value_ints = [1]> () y = ReduceMean <keepdims = 0> (p, o) }}"""


def weights(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = (rng.standard_normal(shape) * 0.3).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def pooled(path: Path, names: list[str], value_info: bool = False) -> Path:
    """Ids and their mask, with dims of these names; "" for none."""
    model = weights(onnx.parser.parse_model(POOLED.format("a", "b", "c", "d", "e")), t=(30, 6))
    ports = [*model.graph.input, model.graph.output[0]]
    dims = [dim for port in ports for dim in port.type.tensor_type.shape.dim if dim.HasField("dim_param")]
    for dim, name in zip(dims, names, strict=True):
        if name:
            dim.dim_param = name
        else:
            dim.ClearField("dim_param")
    if value_info:
        model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path


TOOLS = {
    "tf2onnx": ["unk__616", "unk__617", "unk__618", "unk__619", "unk__620"],
    "paddle2onnx": [f"DynamicDimension.{n}" for n in range(5)],
    "torch.export": ["s0", "s1", "s2", "s3", "s0"],
    "torch.jit": [f"{name}_dynamic_axes_{n}" for name in ("input_ids", "attention_mask") for n in (1, 2)] + ["y_dynamic_axes_1"],
    "unnamed": [""] * 5,
    "question marks": ["?"] * 5,
}


@pytest.mark.parametrize("value_info", [False, True])
@pytest.mark.parametrize("tool", TOOLS)
def test_batch_and_length_are_found(tool: str, value_info: bool, tmp_path: Path) -> None:
    graph, dims, notes = onnx_source.read_onnx_file(pooled(tmp_path / "m.onnx", TOOLS[tool], value_info))
    assert [spec.dims for spec in graph.inputs] == [("batch", "length")] * 2
    assert list(dims) == ["batch", "length"]
    assert any("batch (" in note for note in notes)
    inner = {str(dim) for node in graph.model.graph for v in node.outputs for dim in v.shape or () if not isinstance(dim, int)}
    assert not inner & {*TOOLS[tool], "?"}, "a name that is gone stays nowhere"


@pytest.mark.parametrize("state", ["float[2,state_d1,8]", "float[state_d0,state_d1,8]"])
def test_the_rows_of_a_state_are_no_length(state: str, tmp_path: Path) -> None:
    """[layers, batch, size] beside [batch, samples]; without a number for its layers the second axis may be a length."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[input_d0,input_d1] x, {state} s)
    => (float[A,B] y, float[A,B,8] n) {{ y = Relu (x) n = Relu (s) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    graph, _, _ = onnx_source.read_onnx_file(tmp_path / "m.onnx")
    assert graph.inputs[1].dims[1] == ("state_d1" if state.startswith("float[2") else "length")


def test_a_name_that_somebody_gave_is_kept(tmp_path: Path) -> None:
    path = pooled(tmp_path / "m.onnx", ["N", "tokens", "unk__3", "unk__4", "N"])
    graph, _, _ = onnx_source.read_onnx_file(path)
    assert [spec.dims for spec in graph.inputs] == [("N", "tokens")] * 2


RESHAPED = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[A,T] ids, int64[B,U] mask, float[C,V,3] more) => (float[A,9] y) <float[30,6] t> {
  e = Gather (t, ids) s = Shape <start = 0, end = 2> (e) m = Cast <to = 1> (mask) mm = Reshape (m, s)
  a = Constant <value_ints = [2]> () u = Unsqueeze (mm, a) p = Mul (e, u) c = Constant <value_ints = [3]> ()
  s3 = Concat <axis = 0> (s, c) x3 = Reshape (more, s3) q = Concat <axis = 2> (p, x3) o = Constant <value_ints = [1]> ()
  y = ReduceMean <keepdims = 0> (q, o) }"""
STATE = """<ir_version: 10, opset_import: ["" : 20]>
g (float[n,576] x, float[1,m,8] h) => (float[n,8] y, float[1,m,8] hn) <float[576,4] a, float[1,24,4] w, float[1,24,8] r> {
  p = MatMul (x, a) z = Constant <value_ints = [0]> () u = Unsqueeze (p, z)
  yy, hn = GRU <hidden_size = 8> (u, w, r, , , h) y = Squeeze (hn, z) }"""
FREE = """<ir_version: 10, opset_import: ["" : 20]> g (float[A,4] x, float[B,4] z) => (float[A,B] y) {
  t = Transpose <perm = [1, 0]> (z) y = MatMul (x, t) }"""
TIES = {
    "two reshapes": (RESHAPED, {"t": (30, 6)}, {"A", "T"}),
    "a state whose rows are axis 1": (STATE, {"a": (576, 4), "w": (1, 24, 4), "r": (1, 24, 8)}, {"n"}),
    "what may differ": (FREE, {}, {"A", "B"}),
}


@pytest.mark.parametrize("case", TIES)
def test_what_only_a_run_shows(case: str, tmp_path: Path) -> None:
    """The graph does not say it by an operator on two inputs, and each has a name of its own: sizes that differ fail."""
    text, shapes, left = TIES[case]
    onnx.save(weights(onnx.parser.parse_model(text), **shapes), tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    assert set(source.dims) == left
    assert any("because other sizes fail" in note for note in source.notes) is (case != "what may differ")
    assert {dim for spec in source.graph.inputs for dim in spec.dims if isinstance(dim, str)} == left


# A table of positions, cut to the batch and to the length: how torch.jit exports a BERT that gets no token_type_ids.
CUT = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[batch,{0}] ids) => (float[rows,places,6] y, float[found] z) <float[9,200,6] t, float[30] e, float small> {{
  s = Shape (ids) f = Cast <to = 1> (s) one = Constant <value_float = 1.0> () n = Mul (f, one) i = Cast <to = 7> (n)
  zero = Constant <value_ints = [0, 0]> () axes = Constant <value_ints = [0, 1]> () y = Slice (t, zero, i, axes)
  w = Gather (e, ids) r = Constant <value_ints = [-1]> () v = Reshape (w, r) q = Greater (v, small) z = Compress (v, q) }}"""


@pytest.mark.parametrize("length", ["length", "seq"])
def test_dims_of_outputs_are_those_that_they_follow_when_it_runs(length: str, tmp_path: Path) -> None:
    """Without the name of the batch no row of the output is told from another: a text without tokens ended every check."""
    model = weights(onnx.parser.parse_model(CUT.format(length)), t=(9, 200, 6), e=(30,), small=())
    onnx.save(model, tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    assert [spec.dims for spec in source.graph.outputs] == [("batch", length, 6), ("found",)], "as many as the values say: no dim"
    assert any(f"places = {length}" in note for note in source.notes)


def window(path: Path, name: str = "n") -> Path:
    """One frame of 192 samples every 512: 192 to 703 samples make one."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[batch,{name}] x) => (float[batch,5] y)
    <float[8,1,192] k, float[8,5] w> {{ a = Constant <value_ints = [1]> () u = Unsqueeze (x, a)
      c = Conv <strides = [512], kernel_shape = [192]> (u, k) b = Shape <start = 0, end = 1> (x)
      e = Constant <value_ints = [8]> () t = Concat <axis = 0> (b, e) q = Reshape (c, t) y = MatMul (q, w) }}"""
    onnx.save(weights(onnx.parser.parse_model(text), k=(8, 1, 192), w=(8, 5)), path)
    return path


PATCHES = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch,length,4] x) => (float[batch,patches,5] y) <float[32,5] w> {
  s = Constant <value_ints = [0, -1, 32]> () p = Reshape (x, s) y = MatMul (p, w) }"""
ONE = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch,length] x) => (float[batch,5] y) <float[576,5] w> {
  y = MatMul (x, w) }"""


@pytest.mark.parametrize("name", ["n", "samples"])
def test_a_window_is_found(name: str, tmp_path: Path) -> None:
    assert open_source(str(window(tmp_path / "m.onnx", name))).dims[name] == Dim(name, 192, 703)


@pytest.mark.parametrize(
    ("text", "rows", "found", "profile"),
    [(PATCHES, 32, Dim("length", 8, multiple=8), "8:128:512"), (ONE, 576, Dim("length", 576, 576), "576:576:576")],
)
def test_multiples_and_one_size_alone(text: str, rows: int, found: Dim, profile: str, tmp_path: Path) -> None:
    onnx.save(weights(onnx.parser.parse_model(text), w=(rows, 5)), tmp_path / "m.onnx")
    assert open_source(str(tmp_path / "m.onnx")).dims["length"] == found
    assert run(["build", str(tmp_path / "m.onnx"), "--target", "null", "-o", str(tmp_path / "out")]) == 0
    from bertc.artifact import open_artifact

    made = open_artifact(tmp_path / "out")
    assert made.dims["length"] == found and str(made.profiles[0]["length"]) == profile


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("n=192:500:704", ["n 704", "Reshape", "cannot be reshaped", "the largest n this model takes is 703"]),
        ("n=1:500:703", ["n 1", "the smallest n is 192"]),
        ("n=800:900:1000", ["n 900", "the largest n this model takes is 703"]),
    ],
)
def test_a_profile_that_the_source_cannot_run_names_the_size(
    profile: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", str(window(tmp_path / "m.onnx")), "--target", "null", "-o", str(tmp_path / "out"), "--profile"]
    assert run([*build, profile]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(word in said for word in words), said
    assert run([*build, "n=192:500:703"]) == 0


def test_the_sizes_of_a_profile_are_tried_first(tmp_path: Path) -> None:
    """No search would find it: one number, far from those that sources are made for, that the source does not speak of."""
    text = ONE.replace("float[576,5] w", "float[4801,5] w")
    onnx.save(weights(onnx.parser.parse_model(text), w=(4801, 5)), tmp_path / "m.onnx")
    assert open_source(str(tmp_path / "m.onnx"), None, ["length=4801:4801:4801"]).dims["length"] == Dim("length", 4801, 4801)


GRID = """<ir_version: 10, opset_import: ["" : 20]> g (float[SIZES] x) => (float[SIZES] y) {
  p = MaxPool <kernel_shape = [1, 1], strides = [STEP, STEP]> (x)
  f = Constant <value_floats = [1.0, 1.0, STEP.0, STEP.0]> () n = Constant <value_ints = [0]> ()
  u = Resize <mode = "nearest"> (p, , f) y = Add (x, u) }"""


@pytest.mark.parametrize("step", [4, 8, 32])
@pytest.mark.parametrize("sizes", ["-1,3,-1,-1", "batch,3,height,width"])
def test_maps_that_are_halved_and_doubled_take_multiples(sizes: str, step: int, tmp_path: Path) -> None:
    """1 runs, for it is spread over any size, and so do all multiples; not what lies between. A size of -1 is none."""
    model = onnx.parser.parse_model(GRID.replace("SIZES", sizes.replace("-1", "0")).replace("STEP", str(step)))
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_value" and not dim.dim_value:
                dim.dim_value = -1
    onnx.save(model, tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    names = source.graph.inputs[0].dims
    assert names[0] == "batch" and names[1] == 3 and len(set(names)) == 4
    assert [source.dims[name] for name in names[2:]] == [Dim(str(name), step, multiple=step) for name in names[2:]]
