"""Proofs of a match whose sizes are fixed: replayed at its size once, and on every mask with a few rows of it."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from bertc.fusions import engine as fuse
from bertc.fusions.proof import feeds, prover
from bertc.fusions.rewrite import Change, apply_rules
from bertc.graph.model import Graph
from bertc.graph.subgraph import Refused
from bertc.ops.registry import BODIES

ROWS, LENGTH = 8, 10
TEXT = f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[{ROWS},2,{LENGTH},4] q, float[{ROWS},2,{LENGTH},4] k, float[{ROWS},2,{LENGTH},4] v, float[MASK,1,1,{LENGTH}] mask)
=> (float[{ROWS},2,{LENGTH},4] y)
<float scale = {{0.5}}>
{{
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    s0 = MatMul (q, t)
    s1 = Mul (s0, scale)
    s2 = Add (s1, mask)
    p = Softmax <axis = -1> (s2)
    y = MatMul (p, v)
}}"""


def proven(lowering: Any = None, mask: int = ROWS) -> tuple[Change, list[tuple[str, int]]]:
    """What rule sdpa does, and (side, rows) of each run."""
    model = ir.from_proto(onnx.parser.parse_model(TEXT.replace("MASK", str(mask))))
    ShapeInferencePass()(model)
    runs: list[tuple[str, int]] = []
    call = prover._Side.run

    def run(self: Any, given: Any) -> Any:
        found = call(self, given)
        runs.append((self.what, len(found[0])))
        return found

    lowerings = {"ours": {"FusedSdpa": lowering}} if lowering else {}
    rule = importlib.import_module("bertc.fusions.rules.sdpa")
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    captured = {str(v.name): [np.ones(v.shape.numpy(), np.float32)] for v in values}  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prover._Side, "run", run)
        judge = prover.Prover(Graph(model), {}, lowerings=lowerings, activations=captured)
        _, change = apply_rules(Graph(model), fuse.named_rules("sdpa", rule.RULES), judge)
    return change, runs


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MUCH", 0)


def test_one_replay_and_the_captured_one_are_of_the_fixed_size() -> None:
    change, runs = proven()
    assert len(change.applied) == 1 and not change.refusals
    assert [rows for what, rows in runs if what == "the original"] == [ROWS] * 2 + [feeds.ROWS] * (2 + len(feeds.PATTERNS))


def test_a_mask_that_all_rows_share_keeps_its_one_row() -> None:
    change, runs = proven(mask=1)
    assert len(change.applied) == 1 and {rows for _, rows in runs} == {ROWS, feeds.ROWS}


def _right(op: Any, node: ir.Node) -> Any:
    return BODIES["FusedSdpa"](op, node)


def _with_mask(op: Any, node: ir.Node, made: Any) -> Any:
    other = ir.Node(node.domain, node.op_type, [*node.inputs[:3], made], list(node.attributes.values()), overload=node.overload)
    return BODIES["FusedSdpa"](op, other)


def no_mask(op: Any, node: ir.Node) -> Any:
    return _with_mask(op, node, op.Mul(node.inputs[3], op.Constant(value=ir.tensor(np.float32(0)))))


def right_padding_only(op: Any, node: ir.Node) -> Any:
    """Masks from the first masked place on, as a kernel does that takes lengths."""
    return _with_mask(op, node, op.CumSum(node.inputs[3], op.Constant(value=ir.tensor(np.int64(3)))))


def no_number_when_dead(op: Any, node: ir.Node) -> Any:
    (y,) = BODIES["FusedSdpa"](op, node)
    lowest = op.ReduceMax(node.inputs[3], op.Constant(value=ir.tensor(np.array([3]))))
    dead, nan = (op.Constant(value=ir.tensor(np.float32(x))) for x in (-1, np.nan))
    return [op.Where(op.Less(lowest, dead), nan, y)]


def no_bias(op: Any, node: ir.Node) -> Any:
    """Reads the mask as one: what is masked, and nothing between."""
    low, zero = (op.Constant(value=ir.tensor(np.float32(x))) for x in (-3.4028234663852886e38, 0))
    return _with_mask(op, node, op.Where(op.Less(node.inputs[3], op.Constant(value=ir.tensor(np.float32(-100)))), low, zero))


def wrong_scale(op: Any, node: ir.Node) -> Any:
    (y,) = BODIES["FusedSdpa"](op, node)
    return [op.Mul(y, op.Constant(value=ir.tensor(np.float32(1.0001))))]


@pytest.mark.parametrize("wrong", [no_mask, right_padding_only, no_number_when_dead, no_bias, wrong_scale])
def test_a_form_that_is_wrong_under_one_mask_is_refused(wrong: Any) -> None:
    """All but the last are right where nothing is masked, which is what is replayed at the fixed size."""
    change, _ = proven(wrong)
    assert not change.applied and [r.reason for r in change.refusals if "ours's lowering" in r.reason]


def test_a_form_with_the_size_written_into_it_is_replayed_at_that_size() -> None:
    def of_this_size(op: Any, node: ir.Node) -> Any:
        (y,) = _right(op, node)
        return [op.Reshape(y, op.Constant(value=ir.tensor(np.array([ROWS, 2, LENGTH, 4]))))]

    change, runs = proven(of_this_size)
    assert len(change.applied) == 1
    own = [rows for what, rows in runs if what == "ours's lowering"]
    assert own == [ROWS] * (2 + 2 + len(feeds.PATTERNS) + 1), "what failed with few rows proves nothing: all cases again"

    def wrong(op: Any, node: ir.Node) -> Any:
        return [op.Reshape(no_mask(op, node)[0], op.Constant(value=ir.tensor(np.array([ROWS, 2, LENGTH, 4]))))]

    assert not proven(wrong)[0].applied


def test_small_ones_are_replayed_whole_and_once_under_each_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "MUCH", 2**20)
    change, runs = proven()
    assert change.applied and {rows for _, rows in runs} == {ROWS}
    assert len([what for what, _ in runs if what == "the original"]) == 2 + len(feeds.PATTERNS) + 1


def by_definition(got: np.ndarray, wanted: np.ndarray) -> float | None:
    """The relative error, an operation at a time; None for what is never right."""
    if (np.isfinite(wanted) & ~np.isfinite(got)).any() or (np.isnan(got) & ~np.isnan(wanted)).any():
        return None
    if (np.isinf(wanted) & ~(got * np.sign(wanted) >= 1e4)).any():
        return None
    b, a, worst = wanted.astype(np.float64), got.astype(np.float64), 0.0
    extreme = np.isfinite(b) & (np.abs(b) >= 1e9)
    for part in (extreme, np.isfinite(b) & ~extreme):
        off, peak = np.abs(a[part] - b[part]).max(initial=0), np.abs(b[part]).max(initial=0)
        worst = max(worst, off / peak if peak else (np.inf if off else 0.0))
    return float(worst)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 40), st.integers(1, 7))
def test_the_distance_is_the_same_in_blocks(data: st.DataObject, size: int, block: int) -> None:
    numbers = st.sampled_from([0.0, 1.0, -2.5, 1e-3, 3e9, -3.4e38, -1e4, np.inf, -np.inf, np.nan])
    wanted = np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)), np.float32)
    changed = np.array(data.draw(st.lists(st.sampled_from([True, False, False]), min_size=size, max_size=size)))
    got = np.where(changed, np.array(data.draw(st.lists(numbers, min_size=size, max_size=size)), np.float32), wanted)
    with pytest.MonkeyPatch.context() as patch, np.errstate(invalid="ignore"):
        patch.setattr(prover, "BLOCK", block)
        expected = by_definition(got, wanted)
        if expected is None:
            with pytest.raises(Refused):
                prover.distance(got, wanted)
        else:
            assert prover.distance(got, wanted) == expected
