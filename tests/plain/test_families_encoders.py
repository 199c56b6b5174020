"""Encoders of encoder-decoders: all that their family promises is found in what a factory exports, and the numbers stay."""

from __future__ import annotations

import models
import numpy as np
import pytest
import seq2seq

from bertc import canonical, fuse

# factory: family
PROMISED = {
    "bart": "bart",
    "mbart_sdpa": "mbart",
    "t5": "t5",
    "gated_t5": "t5",
    "whisper": "whisper",
}


@pytest.mark.parametrize("name", list(PROMISED))
def test_all_that_the_family_promises_is_found(name: str) -> None:
    fuse.expect(seq2seq.source(name).graph, seq2seq.fused(name).change, PROMISED[name])


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_the_fused_graph_has_the_numbers_of_the_model(name: str) -> None:
    source, graph = seq2seq.source(name), canonical.expand(seq2seq.fused(name).graph)
    rng = np.random.default_rng(0)
    for batch, length in ((1, 1), (3, 17)):
        for kind, mask in models.masks(batch, length).items():
            feeds = {"input_ids": rng.integers(5, 119, (batch, length)), "attention_mask": mask}
            assert source.run is not None
            wanted, got = source.run(feeds)["last_hidden_state"], models.run_graph(graph, feeds)["last_hidden_state"]
            assert models.relative_error(got, wanted) < 1e-5, kind  # fp32, two layers
