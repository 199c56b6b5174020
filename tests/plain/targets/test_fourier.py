"""A DFT as products with its matrix: against numpy in float64, and FNet as a whole; on CUDA and in TensorRT's form."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from benchmarks import golden
from bertc import precision, targets
from bertc.fusions import engine
from bertc.graph.model import Graph
from bertc.runtime import ReferenceRunner
from bertc.targets import onnxruntime_cuda
from bertc.targets._fourier import rewrite_fourier
from bertc.targets._onnxruntime_cuda import placement

Transforms = list[int]  # axes, one after the other


def graph(dims: str, axes: Transforms, *, opset: int = 20, complex_input: bool = False, read: str = "") -> Graph:
    """Transforms of x [dims, 1 or 2]; `read` says what takes the result: nodes behind it."""
    parts = 2 if complex_input else 1
    names = ["x", *(f"t{at}" for at in range(len(axes)))]
    lines = []
    for (given, made), axis in zip(itertools.pairwise(names), axes, strict=True):
        if opset >= 20:
            lines += [f"{made}_axis = Constant <value_int = {axis}> ()", f"{made} = DFT ({given}, , {made}_axis)"]
        else:
            lines.append(f"{made} = DFT <axis = {axis}> ({given})")
    out = names[-1] if not read else "y"
    ending = ", ".join([dims, "2"]) if not read else "".join(dims)
    text = f"""<ir_version: 10, opset_import: ["": {opset}]>
g (float[{dims}, {parts}] x) => (float[{ending}] {out}) {{ {" ".join(lines)} {read.replace("OUT", names[-1])} }}"""
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    onnx.checker.check_model(model)
    return Graph(ir.from_proto(model))


def answer(each: Graph, x: np.ndarray) -> np.ndarray:
    (found,) = ReferenceRunner(each).run({"x": x}).values()
    return found


@pytest.mark.parametrize(
    ("dims", "axes", "shape"),
    [
        ("b, n, 6", [1], (2, 9, 6)),
        ("b, n, 6", [2, 1], (2, 11, 6)),
        ("b, n, 6", [-2, 1, 2], (1, 1, 6)),  # back to what it was, mirrored
        ("b, n, m", [1, 2], (2, 5, 8)),
        ("n, 4, 3, 5", [0], (7, 4, 3, 5)),
        ("n", [0], (16,)),
        ("b, n, 6", [1], (1, 700, 6)),
    ],
)
@pytest.mark.parametrize(("opset", "complex_input"), [(20, False), (17, True)])
def test_it_is_the_transform(dims: str, axes: Transforms, shape: tuple[int, ...], opset: int, complex_input: bool) -> None:
    axes = [axis % (len(shape) + 1) for axis in axes]
    source = graph(dims, axes, opset=opset, complex_input=complex_input)
    copy = source.copy()
    assert rewrite_fourier(copy.model) and "DFT" not in copy.op_counts()
    x = np.random.default_rng(0).standard_normal((*shape, 1 + complex_input)).astype(np.float32)
    wanted = x[..., 0].astype(np.complex128) + (1j * x[..., 1] if complex_input else 0)
    for axis in axes:
        wanted = np.fft.fft(wanted, axis=axis)
    got = answer(copy, x)
    assert np.abs(got[..., 0] + 1j * got[..., 1] - wanted).max() < 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_that_is_not_read_costs_nothing(part: int) -> None:
    read = f"i = Constant <value_int = {part}> () y = Gather <axis = 3> (OUT, i)"
    source = graph("b, n, 6", [2, 1], read=read)
    copy = source.copy()
    rewrite_fourier(copy.model)
    assert copy.op_counts()["MatMul"] == 4  # two of the real input, two of the part that is wanted
    x = np.random.default_rng(1).standard_normal((2, 5, 6, 1)).astype(np.float32)
    assert np.abs(answer(copy, x) - answer(source, x)).max() < 1e-5


def test_what_it_has_no_form_of_stays_and_cuda_names_it() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[b, n, 2] x) => (float[b, n, 2] y) { a = Constant <value_int = 1> () y = DFT <inverse = 1> (x, , a) }"""
    source = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))))
    lowered = onnxruntime_cuda.lower(source)
    assert lowered.op_counts()["DFT"] == 1
    with pytest.raises(Exception, match=r"DFT .*there is no CUDA kernel of DFT"):
        placement.require_kernels(lowered)


@pytest.fixture(scope="module")
def fnet() -> tuple[Graph, Graph]:
    source, dims = golden.open_graph(next(golden.FOLDER.glob("fnet.dynamo*")))
    dims = {name: dataclasses.replace(dim, max=dim.max or 40) for name, dim in dims.items()}
    return source, engine.fuse(source, dims, prove=False).graph


@pytest.mark.parametrize("target", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("fused", [False, True])
def test_fnet(fnet: tuple[Graph, Graph], fused: bool, target: str) -> None:
    """Four products a layer, the matrix of the lengths once."""
    lowered = targets.get(target).lower(fnet[fused])
    counts = collections.Counter(lowered.op_counts())
    assert not counts["DFT"] and counts["Cos"] == counts["Sin"] == 1
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 7), (3, 40)):
        feeds = {"input_ids": rng.integers(0, 200, shape), "token_type_ids": rng.integers(0, 4, shape)}
        wanted, got = (ReferenceRunner(each).run(feeds) for each in (fnet[0], lowered))
        assert all(np.abs(wanted[name] - got[name]).max() < 1e-5 * np.abs(wanted[name]).max() for name in wanted)


@pytest.mark.parametrize("mode", ["fp32", "fp16", "bf16"])
def test_every_node_of_fnet_has_a_cuda_kernel(fnet: tuple[Graph, Graph], mode: str) -> None:
    typed = precision.get(mode).apply(onnxruntime_cuda.lower(fnet[1]), kernels=onnxruntime_cuda.KERNELS).graph
    assert not placement.require_kernels(typed).on_cpu
