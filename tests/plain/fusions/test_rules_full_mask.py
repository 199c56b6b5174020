"""full_mask: a mask of positions that are never below 0 goes, one that could mask anything stays, and says why."""

from __future__ import annotations

import numpy as np
import pytest
from rules import fuse, lines, rules

from bertc.core.profiles import Dim
from bertc.fusions.proof.prover import Prover
from bertc.ops import expansion as canonical
from bertc.runtime.reference import ReferenceRunner

MODULE = rules("full_mask")


@pytest.mark.parametrize("index", range(len(MODULE.EXAMPLES)))
def test_a_mask_that_masks_nothing_is_taken_off(index: int) -> None:
    before, after, change = fuse("full_mask", MODULE.EXAMPLES[index])
    assert change.counts() == {"full_mask": 1}
    assert lines(after) == ["FusedSdpa(q, k, v; scale=0.5) -> y"]
    rng = np.random.default_rng(index)
    for rows, length in ((1, 1), (2, 5), (3, 40)):
        shapes = {"q": (rows, 2, length, 3), "k": (rows, 2, 3, length), "v": (rows, 2, length, 3)}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        feeds["seen"] = np.ones((rows, 1, length, length), bool)
        found = [ReferenceRunner(canonical.expand(graph)).run(feeds)["y"] for graph in (before, after)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("index", range(len(MODULE.NEAR_MISSES)))
def test_a_mask_that_could_mask_stays(index: int) -> None:
    text, reason = MODULE.NEAR_MISSES[index]
    before, after, change = fuse("full_mask", text)
    assert change.counts() == {} and reason in change.refusals[0].reason
    assert lines(after) == lines(before)


def test_the_mask_of_an_input_stays_and_is_no_near_miss() -> None:
    before, after, change = fuse("full_mask", MODULE.EXAMPLES[0].replace("Where(e,", "Where(seen,"))
    assert change.counts() == {} and not change.refusals
    assert lines(after) == lines(before)


def test_the_proof_finds_a_mask_that_does_mask() -> None:
    """Were the reasoning wrong, the attention with the mask would refute it."""
    graph = fuse("full_mask", MODULE.NEAR_MISSES[1][0])[0]
    prover = Prover(graph, {name: Dim(name, 1, 64) for name in ("B", "S")})
    node = next(n for n in graph.model.graph if n.op_type == "FusedSdpa")
    depends = MODULE.dependencies(graph.model.graph)
    answer = MODULE._proven(node, node.inputs[3], depends, prover)
    assert isinstance(answer, str) and "relative error" in answer
    graph = fuse("full_mask", MODULE.EXAMPLES[0])[0]
    _, change = MODULE.apply(graph, Prover(graph, {name: Dim(name, 1, 64) for name in ("B", "S")}))
    assert change.applied[0].error is not None and change.applied[0].error <= 1e-5
