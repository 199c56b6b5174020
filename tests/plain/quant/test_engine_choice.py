"""Whether an int8 engine is worth having: the rule, the bytes of kernels, and the graph for one shape, all by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tiny

from bertc.core.profiles import Range
from bertc.graph.model import load_graph
from bertc.quant.engine_choice import EngineChoice, EngineEstimate, bytes_moved, graph_at_opt
from bertc.source.opening import open_source
from bertc.targets._tensorrt.kernel_log import Kernel, Tensor

PROFILE = {"batch": Range(1, 8, 32), "length": Range(8, 128, 256)}
HALF = EngineEstimate(52, 90_000_000, 24e9)


def worth(int8: EngineEstimate, base: EngineEstimate = HALF) -> EngineChoice:
    return EngineChoice(int8, base, "fp16", PROFILE)


def test_the_estimate_is_the_sum_of_its_parts() -> None:
    # 52 kernels of 2 us, 90 MB at 300 GB/s, 24 GFLOP at 121 TFLOPS; in int8 half the time of what is int8.
    assert HALF.microseconds == pytest.approx(104 + 300 + 24e3 / 121)
    assert dataclasses.replace(HALF, int8_flops=12e9).microseconds == pytest.approx(104 + 300 + 18e3 / 121)


@pytest.mark.parametrize(
    ("int8", "kept"),
    [
        (EngineEstimate(58, 90_000_000, 24e9, 24e9), "int8"),
        (EngineEstimate(58, 90_000_000, 24e9, 0.0), "fp16"),
        (EngineEstimate(52, 89_000_000, 24e9, 0.0), "int8"),
        (HALF, "fp16"),
        (EngineEstimate(200, 60_000_000, 24e9, 24e9), "fp16"),
    ],
)
def test_the_smaller_estimate_is_kept(int8: EngineEstimate, kept: str) -> None:
    found = worth(int8)
    assert found.kept == found.to_json()["kept"] == kept
    assert ("--int8 static" in found.summary()) == (kept == "fp16")
    assert "8x128" in found.why and "not timed" in found.summary()


def test_bytes_are_what_kernels_read_and_write() -> None:
    def tensor(name: str, *dims: int, dtype: str = "Half") -> Tensor:
        return Tensor(name, dims, dtype)

    x, y, ids = tensor("x", 4, 8), tensor("y", 4, 16), tensor("ids", 4, dtype="Int64")
    gemm = Kernel("gemm", "gemm", (x,), (y,), (tensor("w", 8, 16, dtype="Int8"),), "", ())
    table = Kernel("__myl_GathAdd", "kgen", (ids,), (x,), (tensor("table", 1000, 8),), "", ())
    host = Kernel("shape", "shape_call", (ids,), (ids,), (), "", ())
    assert bytes_moved([gemm]) == 64 + 128 + 128
    assert bytes_moved([table, host]) == 32 + 4 * 16 + 64, "of the table a row for each index"
    narrow = dataclasses.replace(table, constants=(tensor("table", 3, 8), tensor("gamma", 1, 8)))
    assert bytes_moved([narrow]) == 32 + 3 * 16 + 16 + 64, "no more than there is of it"


def test_a_view_of_a_buffer_is_the_part_of_it() -> None:
    """As listed by the builder: k and v are read out of the buffer that one product wrote for q, k and v."""
    parts = tuple(Tensor("qkv", dims, "Half") for dims in ((96, 32, 128), (96, 128, 32)))
    attention = Kernel("mha", "kgen", parts, (Tensor("out", (96, 128, 32), "Half"),), (), "", ())
    assert bytes_moved([attention]) == 3 * 8 * 128 * 384 * 2


def test_what_has_no_size_is_said() -> None:
    assert "2 tensors of unknown size left out" in dataclasses.replace(HALF, unknown=2).summary()
    assert "unknown" not in HALF.summary()
    assert dataclasses.replace(HALF, unknown=2).to_json()["unknown"] == 2


def test_the_graph_for_one_shape_has_no_named_size(tmp_path: Path) -> None:
    graph = load_graph(tiny.encoder(tmp_path / "m.onnx"))
    fixed = graph_at_opt(graph, PROFILE)
    assert [tuple(spec.dims) for spec in fixed.inputs] == [(8, 128)] * 2
    assert [tuple(spec.dims) for spec in graph.inputs] == [("batch", "length")] * 2, "the graph itself is as it was"


def test_the_graph_for_one_shape_has_the_sizes_that_follow_from_others() -> None:
    """A decoder's step: its mask is one longer than its cache, which begins empty."""
    graph = open_source("steps:from_nothing").graph
    fixed = graph_at_opt(graph, {"batch": Range(1, 4, 8), "past": Range(0, 0, 64)})
    assert {spec.name: spec.dims[-2:] for spec in fixed.inputs} == {"input_ids": (4, 1), "mask": (4, 1), "past": (0, 16)}
