"""Encoders and decoders of encoder-decoders: what their family promises is found in a factory's export, the numbers stay."""

from __future__ import annotations

import models
import numpy as np
import pytest
import seq2seq

from bertc.core.tensors import TensorSpec
from bertc.fusions import engine as fuse
from bertc.ops import expansion as canonical

# factory: family
# Those of which no golden graph is kept.
PROMISED = {
    "gpt2_step": "gpt2-step",
    "bert_step": "bert-step",
    "bert_decoder": "bert-decoder",
    "t5_decoder": "t5-decoder",
    "whisper_decoder": "whisper-decoder",
}


@pytest.mark.parametrize("name", list(PROMISED))
def test_all_that_the_family_promises_is_found(name: str) -> None:
    fuse.expect_fusions(seq2seq.source(name).graph, seq2seq.fused(name).change, PROMISED[name])


def feeds(specs: tuple[TensorSpec, ...], kind: str, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
        if "mask" in spec.name:
            made[spec.name] = models.masks(*shape)[kind]
        else:
            floats = spec.dtype == "float32"
            made[spec.name] = rng.standard_normal(shape).astype(np.float32) if floats else rng.integers(5, 119, shape)
    return made


@pytest.mark.parametrize("name", list(PROMISED))
def test_the_fused_graph_has_the_numbers_of_the_model(name: str) -> None:
    """Whole nets: a swapped cache, mask or projection would show in every output, for both were proven apart from it."""
    source, graph = seq2seq.source(name), canonical.expand(seq2seq.fused(name).graph)
    assert source.run is not None
    for seed, sizes in enumerate(
        ({"batch": 1, "length": 1, "past": 1, "places": 1}, {"batch": 3, "length": 9, "past": 6, "places": 4})
    ):
        for kind in ("full", "right", "left", "holes"):
            given = feeds(source.graph.inputs, kind, sizes, seed)
            wanted, got = source.run(given), models.run_graph(graph, given)
            seen = given["attention_mask"].cumsum(1) > 0 if "attention_mask" in given else np.array(True)
            for output, array in wanted.items():
                dims = next(spec.dims for spec in source.graph.outputs if spec.name == output)
                own = seen if "length" in dims else np.array(True)
                rows = np.broadcast_to(own.reshape(own.shape + (1,) * (array.ndim - own.ndim)), array.shape)
                # fp32, two layers of random weights. What a query says that sees nothing but padding, nobody reads.
                assert models.relative_error(got[output][rows], array[rows]) < 2e-5, (output, kind)
