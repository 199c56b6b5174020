"""Whole families as onnxruntime-cuda lowers them: equal to the canonical form under every mask, every node with a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import golden, zoo
from bertc.ops import expand
from bertc.runtime import ReferenceRunner
from bertc.targets import onnxruntime_cuda
from bertc.targets._onnxruntime_cuda import placement

TOLERANCE = 2e-5  # of the largest number of an output, in float32: another order of sums
# Family -> how many nodes of domain com.microsoft.
FAMILIES = {
    "bert.dynamo-sdpa": 9,
    "mpnet.dynamo-eager": 9,
    "deberta-v2.dynamo-eager": 9,
    "modernbert.dynamo-sdpa": 10,
    "nomic-bert.dynamo-sdpa": 10,
    "t5-encoder.dynamo-sdpa": 6,
    "gpt2-past.dynamo-sdpa": 6,
    "bart-decoder.dynamo-sdpa": 13,
    "wav2vec2.dynamo-sdpa": 9,
    "wav2vec2-ctc.dynamo-sdpa": 9,
    "albert.dynamo-sdpa": 9,
    "roformer.dynamo-eager": 6,
    "own.torchscript-sdpa": 6,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_for_every_mask(family: str) -> None:
    path = next(golden.FOLDER.glob(f"{family}.onnxtxt*"))
    fused, given = golden.fused(path), golden.inputs(golden.read(path))
    assert not isinstance(fused, str)
    lowered = onnxruntime_cuda.lower(fused.graph)
    assert sum(node.domain == "com.microsoft" for node in lowered.model.graph) == FAMILIES[family]
    assert placement.require_kernels(lowered).cuda > 0
    wanted, found = ReferenceRunner(expand(fused.graph)), ReferenceRunner(lowered)
    masked = any(name.endswith("attention_mask") for name in given)
    for kind in zoo.MASKS if masked else zoo.MASKS[:1]:
        feeds = zoo.feeds(given, kind, padding=golden.padding(path))
        live = _live(feeds)
        for got, want in zip(found.run(feeds).values(), wanted.run(feeds).values(), strict=True):
            if len(live) == len(want):
                got, want = got[live], want[live]
            assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), kind


def _live(feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Which rows hold a token: what a softmax over masks alone gives is a matter of rounding."""
    masks = [array for name, array in feeds.items() if name.endswith("attention_mask")]
    return np.all([array.any(axis=tuple(range(1, array.ndim))) for array in masks], axis=0) if masks else np.ones(0, bool)
