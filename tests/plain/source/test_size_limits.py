"""Where an .onnx file has a table of positions, nothing but its end says how long an input may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bertc.artifact import manifest as artifact
from bertc.cli import _main as cli
from bertc.core.profiles import Dim
from bertc.core.tensors import Feeds, Outputs
from bertc.source import FileRunner
from bertc.source import onnx_file as onnx_source
from bertc.source import size_limits as limits
from bertc.source.opening import open_source

WIDTH = 4
TEXT = """<ir_version: 10, opset_import: ["" : 20]> g (int64[batch, length] ids) => (float[batch, length, 4] y)
  <float[9, 4] table, float[{end}, 4] positions, float[4, 4] w>
  {{ x = Gather (table, ids) n = Shape <start = 1, end = 2> (ids) zero = Constant <value = int64[1] {{0}}> ()
    p = Slice (positions, zero, n) s = Add (x, p) {body} }}"""
PLAIN = "y = MatMul (s, w)"


def write(path: Path, end: int, body: str = PLAIN) -> Path:
    """Ids, a table of `end` positions cut to their length, and `body`."""
    model = onnx.parser.parse_model(TEXT.format(end=end, body=body))
    rng = np.random.default_rng(0)
    for name, rows in (("table", 9), ("positions", end), ("w", WIDTH)):
        array = rng.standard_normal((rows, WIDTH)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def counted(path: Path) -> tuple[Callable[[Feeds], Outputs], list[int]]:
    run = FileRunner(path)
    lengths: list[int] = []

    def counting(feeds: Feeds) -> Outputs:
        lengths.append(feeds["ids"].shape[1])
        return run(feeds)

    return counting, lengths


@pytest.mark.parametrize("end", [19, 40, 128, 511])
def test_the_end_of_a_table_is_the_limit(end: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", end)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    run, lengths = counted(path)
    found, notes = limits.measure_limits(graph, dims, run)
    assert found == {"batch": Dim("batch"), "length": Dim("length", max=end)}
    (note,) = notes
    assert note.startswith(f"dimension length: maximum {end} (Add ")
    assert note.endswith(f" fails at {end + 1})")
    assert max(lengths) == 512 and len(lengths) <= 15


def test_what_takes_every_size_has_no_limit_and_is_run_three_times(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", 512)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    run, lengths = counted(path)
    assert limits.measure_limits(graph, dims, run) == (dims, [])
    assert lengths == [19, 1, 512]


PAIRS = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, {dims}, 4] x) => (float[batch, {out}, 4] y)
  <float one = {{1.0}}> {{ {body} }}"""
BY_STEPS = """a{at} = Constant <value_ints = [{at}]> () end = Constant <value_ints = [9999]> ()
  step = Constant <value_ints = [{step}]> () axis = Constant <value_ints = [1]> () zero = Constant <value_ints = [0]> ()
  first = Slice (x, zero, end, axis, step) last = Slice (x, a{at}, end, axis, step) y = Mul (first, last)"""
FOLDED = """s = Constant <value_ints = [0, -1, {step}, 4]> () axis = Constant <value_ints = [2]> () r = Reshape (x, s)
  y = ReduceSum <keepdims = 0> (r, axis)"""


@pytest.mark.parametrize("step", [2, 3, 7, 12])
@pytest.mark.parametrize("body", [FOLDED, BY_STEPS], ids=["folded", "every n-th by the one before"])
def test_multiples_of_small_numbers_are_found(step: int, body: str, tmp_path: Path) -> None:
    """Of `every n-th` one row is spread over none or over many: it takes some sizes by luck, and no others but multiples."""
    text = PAIRS.format(dims="length", out="rows", body=body.format(step=step, at=step - 1))
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    assert source.dims["length"] == Dim("length", step, None, step)
    assert any(f"multiples of {step}" in note for note in source.notes)


def test_no_usual_size_is_a_multiple_of_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", 512)
    graph, _, _ = onnx_source.read_onnx_file(path)
    dims = {name: Dim(name, low) for low in (1, 2, 5, 400) for name in (f"a{low}", f"b{low}", f"c{low}")}
    usual = limits.Trial(graph, dims, FileRunner(path)).usual()
    assert len(set(usual.values())) > 6
    assert not [size for size in usual.values() for each in range(2, size) if size % each == 0]


SPEECH = """<ir_version: 10, opset_import: ["" : 20]> g (float[batch, samples] input_values) => (float[batch, frames, 4] y)
  <float[4, 1, 10] k, float[4, 4, 8] l> { one = Constant <value_ints = [1]> () x = Unsqueeze (input_values, one)
    a = Conv <strides = [5], kernel_shape = [10]> (x, k) f = Conv <strides = [8], kernel_shape = [8]> (a, l)
    y = Transpose <perm = [0, 2, 1]> (f) }"""


def test_a_frame_takes_some_samples(tmp_path: Path) -> None:
    """8 outputs of a convolution of 10 samples every 5: 45 samples."""
    model = onnx.parser.parse_model(SPEECH)
    for name, shape in (("k", (4, 1, 10)), ("l", (4, 4, 8))):
        kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, name))
    onnx.save(model, tmp_path / "m.onnx")
    source = open_source(str(tmp_path / "m.onnx"))
    assert source.dims["samples"] == Dim("samples", min=45)
    assert any(note.startswith("dimension samples: minimum 45 (") for note in source.notes)


def test_what_runs_at_one_size_alone_is_built_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", 512, "fixed = Constant <value_ints = [1, 30, 4]> () y = Reshape (s, fixed)")
    graph, dims, _ = onnx_source.read_onnx_file(path)
    found, notes = limits.measure_limits(graph, dims, FileRunner(path))
    assert found["length"] == Dim("length", 30, 30)
    assert [note.partition(" (")[0] for note in notes] == ["dimension length: only 30"]


def test_a_crash_that_is_none_of_the_runtime_is_not_hidden(tmp_path: Path) -> None:
    graph, dims, _ = onnx_source.read_onnx_file(write(tmp_path / "m.onnx", 40))

    def full(feeds: Feeds) -> Outputs:
        raise MemoryError("no memory")

    with pytest.raises(MemoryError):
        limits.measure_limits(graph, dims, full)


def test_what_there_is_no_memory_for_is_no_limit_of_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", 512)
    graph, dims, _ = onnx_source.read_onnx_file(path)
    run = FileRunner(path)

    def small(feeds: Feeds) -> Outputs:
        if feeds["ids"].shape[1] > 100:
            raise RuntimeError("bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9")
        return run(feeds)

    assert limits.measure_limits(graph, dims, small) == (dims, [])


def test_a_build_says_the_limit_and_keeps_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "m.onnx", 40)
    assert open_source(str(path)).dims["length"].max == 40
    assert cli.run(["build", str(path), "--target", "onnxruntime=fp32", "-o", str(tmp_path / "out")]) == 0
    assert "note dimension length: maximum 40 (Add" in capsys.readouterr().err
    made = artifact.open_artifact(tmp_path / "out")
    assert made.dims["length"].max == 40 and made.profiles[0]["length"].max == 40
    asked = ["build", str(path), "--target", "onnxruntime=fp32", "--profile", "length=1:8:41", "-o", str(tmp_path / "more")]
    assert cli.run(asked) == 2
    assert "the largest length this model takes is 40" in capsys.readouterr().err
