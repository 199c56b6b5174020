"""Packed tokens on the CUDA provider: right for every mask, every node with a kernel; its operators as we understand them."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any

import fused
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference.op_run import OpRun

from benchmarks import bench_placement, golden
from bertc.data import synthetic
from bertc.fusions import engine
from bertc.graph.model import Graph
from bertc.ops import expand
from bertc.packing import check_packed, pack
from bertc.runtime import ReferenceRunner
from bertc.targets import onnxruntime_cuda
from bertc.targets._onnxruntime_cuda import placement

FAMILIES = (
    "bert",
    "distilbert",
    "mpnet",
    "modernbert",
    "xlm-roberta",
    "t5-encoder",
    "gpt2",
    "bart-decoder",
    "nomic-bert",
    "own",
    "flaubert",
)
MICROSOFT = "com.microsoft"


@pytest.fixture(scope="module")
def both() -> tuple[ReferenceRunner, ReferenceRunner]:
    padded = fused.encoder()
    return ReferenceRunner(expand(padded)), ReferenceRunner(onnxruntime_cuda.lower(pack(padded).graph))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_mask(both: tuple[ReferenceRunner, ReferenceRunner], data: st.DataObject) -> None:
    """A head reads position 0, so that masked rows are kept, and rows without a token are what they were."""
    fused.assert_equal_for_any_mask(*both, data)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    graph, dims = golden.open_graph(next(golden.FOLDER.glob(f"{family}.dynamo*")))
    dims = {name: dataclasses.replace(dim, max=dim.max or 40) for name, dim in dims.items()}
    whole = engine.fuse(graph, dims, prove=False).graph
    packing = pack(whole)
    for quantised in (False, True):
        lowered = onnxruntime_cuda.lower(packing.graph, quantised=quantised)
        found = collections.Counter(node.op_type for node in lowered.model.graph)
        assert found["PackedAttention"] + found["PackedMultiHeadAttention"] == packing.facts["attentions"]
        assert not quantised or not found["PackedAttention"]
        check_packed(packing, {"onnxruntime-cuda": lowered}, whole, dims, synthetic.synthetic_samples(whole, dims))
    placed = placement.require_kernels(bench_placement.typed(packing.graph, "onnxruntime-cuda"))
    assert not [name for name in placed.on_cpu if name.split()[0] not in placement.ARITHMETIC]


def test_tokens_are_of_two_dimensions_from_end_to_end() -> None:
    """Nothing between two attentions puts an axis on and takes it off, and no bias is left for a Gemm."""
    lowered = onnxruntime_cuda.lower(pack(fused.encoder(layers=3)).graph)
    found = collections.Counter(node.op_type for node in lowered.model.graph)
    assert found["Squeeze"] <= 1 and found["PackedAttention"] == 3 and found["NonZero"] == 1
    assert all(
        node.inputs[4] is not None and len(node.outputs[0].shape or ()) == 2
        for node in lowered.model.graph
        if node.op_type == "SkipLayerNormalization"
    )


class RemovePadding(OpRun):  # type: ignore[misc]
    """As its documentation says: the first tokens of each row, then where they were and where the others are."""

    op_domain = MICROSOFT

    def _run(self, x: Any, counts: Any, **_: Any) -> Any:
        rows, length, width = x.shape
        index = np.arange(rows * length).reshape(rows, length)
        inside = np.arange(length) < counts[:, None]
        offset = np.concatenate([index[inside], index[~inside]]).reshape(rows, length)
        ends = np.concatenate([[0], np.cumsum(counts)])
        return x.reshape(-1, width)[index[inside]], offset.astype(np.int32), ends.astype(np.int32), counts.max(keepdims=True)


class PackedMultiHeadAttention(OpRun):  # type: ignore[misc]
    """As a kernel with fusion computes it, which reads where rows end and no offset: row after row in float64."""

    op_domain = MICROSOFT

    def _run(
        self, q: Any, k: Any, v: Any, b: Any, offset: Any, ends: Any, bias: Any = None, num_heads: int = 0, scale: float = 0.0
    ) -> Any:
        if b is not None:
            q, k, v = (part + own for part, own in zip((q, k, v), np.split(b, 3), strict=True))
        length, made = offset.shape[1], np.zeros(v.shape)
        for row, (start, end) in enumerate(itertools.pairwise(ends)):
            if start == end:
                continue
            parts = (a[start:end].astype(np.float64).reshape(end - start, num_heads, -1).transpose(1, 0, 2) for a in (q, k, v))
            queries, keys, values = parts
            scores = queries @ keys.transpose(0, 2, 1) * (scale or queries.shape[2] ** -0.5)
            if bias is not None:
                own = np.broadcast_to(bias, (len(ends) - 1, num_heads, length, length))[row]
                scores = scores + own[:, : end - start, : end - start]
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            made[start:end] = (weights / weights.sum(-1, keepdims=True) @ values).transpose(1, 0, 2).reshape(end - start, -1)
        return (made.astype(q.dtype),)


class PackedAttention(PackedMultiHeadAttention):
    """Projected first."""

    op_domain = MICROSOFT

    def _run(  # type: ignore[override]
        self, x: Any, w: Any, b: Any, offset: Any, ends: Any, bias: Any = None, num_heads: int = 0, scale: float = 0.0
    ) -> Any:
        return super()._run(*np.split(x @ w, 3, axis=1), b, offset, ends, bias, num_heads, scale)


CASES = {
    "attention": "y = com.microsoft.PackedAttention <num_heads = 2, scale = 0.3> (x, w, b, offset, ends)",
    "attention, its own scale": "y = com.microsoft.PackedAttention <num_heads = 2> (x, w, b, offset, ends)",
    "attention, biased": "y = com.microsoft.PackedAttention <num_heads = 2, scale = 0.3> (x, w, b, offset, ends, mask)",
    "heads": "y = com.microsoft.PackedMultiHeadAttention <num_heads = 2, scale = 0.3> (x, x, x, b, offset, ends)",
    "heads, no bias": "y = com.microsoft.PackedMultiHeadAttention <num_heads = 2, scale = 0.3> (x, x, x, , offset, ends, mask)",
}


@pytest.mark.parametrize("counts", [[3, 5, 1], [5, 5, 5], [0, 4, 2], [1, 0, 0]])
@pytest.mark.parametrize("case", CASES)
def test_the_operators_are_their_documentation_s_by_either_of_the_inputs_that_say_where_rows_are(
    case: str, counts: list[int]
) -> None:
    """Our form reads `token_offset`, as the kernel without fusion does; the oracle reads `ends`, as those with fusion do."""
    text = f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[B,S,6] grid, int32[B] counts, float[6,18] w, float[18] b, float[B,2,S,S] mask) => (float[T,6] y, int32[N] ends)
        {{ x, offset, ends, longest = com.microsoft.RemovePadding (grid, counts) {CASES[case]} }}"""
    model, rng = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {"grid": (3, 5, 6), "w": (6, 18), "b": (18,), "mask": (3, 2, 5, 5)}
    feeds: dict[str, Any] = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds["counts"] = np.array(counts, np.int32)
    numpy = onnx.reference.ReferenceEvaluator(model, new_ops=[RemovePadding, PackedAttention, PackedMultiHeadAttention])
    wanted, ends = numpy.run(None, feeds)
    got = ReferenceRunner(Graph(ir.from_proto(model))).run(feeds)
    assert got["ends"].tolist() == ends.tolist()
    assert got["y"].shape == (sum(counts), 6) and np.abs(got["y"] - wanted).max() < 2e-6


@pytest.mark.parametrize("kind", ["full", "right", "left", "holed", "random"])
def test_a_mean_over_tokens_reads_no_mask_in_its_attention(kind: str) -> None:
    """No head reads a position by its number: what is left are tokens alone, and attention takes no bias."""
    graph, dims = golden.open_graph(next(golden.FOLDER.glob("distilbert.dynamo*")))
    whole = engine.fuse(graph, dims, prove=False).graph
    packing = pack(whole)
    lowered = onnxruntime_cuda.lower(packing.graph)
    attentions = [node for node in lowered.model.graph if node.op_type == "PackedAttention"]
    assert attentions and all(len(node.inputs) == 5 for node in attentions) and not packing.facts["from_start"]
    feeds = fused.feeds(3, 11, kind)
    given = {spec.name: feeds[spec.name] for spec in whole.inputs}
    (wanted,), (got,) = (ReferenceRunner(each).run(given).values() for each in (expand(whole), lowered))
    live = feeds["attention_mask"] == 1
    assert np.abs((wanted - got)[live]).max() < 2e-5 * np.abs(wanted).max() and not got[~live].any()
