"""A batch without its padding answers as the padded one: families with a mask, every kind of mask, rows of all lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from fused import WIDTH, encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import golden
from bertc.core import CheckFailed, Dim, InputError
from bertc.data import synthetic
from bertc.fusions import engine
from bertc.graph import Graph
from bertc.ops import expand
from bertc.packing import check_packed, kept_positions, pack, zero_padding
from bertc.runtime import ReferenceRunner
from bertc.targets import onnxruntime

DIMS = {"batch": Dim("batch", 1, None), "length": Dim("length", 1, 300)}
FAMILIES = ("bert", "distilbert", "mpnet", "modernbert", "xlm-roberta", "t5-encoder", "gpt2", "bart-decoder", "nomic-bert", "own")


@pytest.fixture(scope="module")
def both() -> tuple[Graph, Graph, ReferenceRunner, ReferenceRunner]:
    padded = encoder()
    packed = onnxruntime.lower(pack(padded).graph)
    return padded, packed, ReferenceRunner(expand(padded)), ReferenceRunner(packed)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_mask(both: tuple[Graph, Graph, ReferenceRunner, ReferenceRunner], data: st.DataObject) -> None:
    *_, padded, packed = both
    rows, length = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    mask = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=rows, max_size=rows))
    )
    ids = np.random.default_rng(rows * length).integers(0, 50, mask.shape)
    feeds = {"input_ids": ids, "attention_mask": mask}
    (wanted,), (got,) = padded.run(feeds).values(), packed.run(feeds).values()
    assert np.abs(wanted - got).max() < 2e-5 * max(1, np.abs(wanted).max())


def test_padding_is_not_computed(both: tuple[Graph, Graph, ReferenceRunner, ReferenceRunner]) -> None:
    """The feed-forward layers get as many rows as there are tokens."""
    *_, lowered, _, _ = both
    copy = lowered.copy()
    gelu = next(node for node in copy.model.graph if node.op_type == "Gelu").inputs[0]
    assert gelu is not None
    copy.model.graph.outputs.append(gelu)
    mask = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    found = ReferenceRunner(copy).run({"input_ids": np.ones_like(mask), "attention_mask": mask})
    assert found[str(gelu.name)].shape[:2] == (1, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    path = next(golden.FOLDER.glob(f"{family}.dynamo*"))
    graph, dims = golden.open_graph(path)
    dims = {name: dataclasses.replace(dim, max=dim.max or 40) for name, dim in dims.items()}
    fused = engine.fuse(graph, dims, prove=False).graph
    packing = pack(fused)
    samples = synthetic.synthetic_samples(fused, dims)
    found = check_packed(packing, {"onnxruntime": onnxruntime.lower(packing.graph)}, fused, dims, samples)
    assert packing.facts["attentions"] == sum(
        node.op_type in ("FusedAttention", "FusedRotaryAttention") for node in fused.model.graph
    )
    assert f"{len(samples) + 3} samples" in found


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("vit", "no mask"),
        ("deberta-v2", "FusedDisentangledAttention"),
        ("gpt2-past", "FusedPastAttention"),
        ("fnet", "no attention"),
    ],
)
def test_what_has_no_such_form_is_refused_by_name(family: str, why: str) -> None:
    graph, dims = golden.open_graph(next(golden.FOLDER.glob(f"{family}.dynamo*")))
    with pytest.raises(InputError, match=why):
        pack(engine.fuse(graph, dims, prove=False).graph)


def test_the_check_finds_a_graph_that_is_wrong() -> None:
    """Keys of the neighbouring row, as an attention over packed tokens would see them that forgot its mask."""
    padded = encoder()
    packing = pack(padded)
    lowered = onnxruntime.lower(packing.graph)
    for node in lowered.model.graph:
        if node.op_type == "Where" and node.outputs[0].shape is not None and len(node.outputs[0].shape) == 4:
            node.replace_input_with(2, node.inputs[1])
    samples = synthetic.synthetic_samples(padded, DIMS)
    with pytest.raises(CheckFailed, match="differs by"):
        check_packed(packing, {"onnxruntime": lowered}, padded, DIMS, samples)


def test_outputs_by_position_are_zero_at_padding_and_said() -> None:
    padded = encoder()
    states = next(node for node in padded.model.graph if node.name == "cls").inputs[0]
    assert states is not None
    padded.model.graph.outputs.append(states)
    packing = pack(padded)
    assert packing.facts["outputs"] == [states.name] and "0 at padding" in packing.summary()
    mask = np.array([[1, 1, 0], [1, 1, 1]])
    feeds = {"input_ids": np.ones_like(mask), "attention_mask": mask}
    found = ReferenceRunner(onnxruntime.lower(packing.graph)).run(feeds)
    wanted = ReferenceRunner(expand(padded)).run(feeds)
    name = str(states.name)
    assert found[name].shape == (2, 3, WIDTH) and not found[name][0, 2].any() and wanted[name][0, 2].any()
    blanked = zero_padding(wanted, feeds, packing.facts)
    assert np.abs(blanked[name] - found[name]).max() < 1e-5
    assert np.array_equal(blanked["m.head.out"], wanted["m.head.out"])


def test_kept_positions() -> None:
    mask = np.array([[0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    assert kept_positions(mask, False).astype(int).tolist() == [[0, 1, 0, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert kept_positions(mask, True).astype(int).tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_a_graph_is_left_as_it_was(tmp_path: Path) -> None:
    padded = encoder()
    before = ir.to_proto(padded.model).SerializeToString()
    pack(padded)
    assert ir.to_proto(padded.model).SerializeToString() == before
