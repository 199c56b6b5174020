"""embeddings: every association and source of positions fires, others say why not."""

from __future__ import annotations

import numpy as np
import pytest
from rules import captured, feeds, fuse, lines, relative_error, rules

MODULE = rules("embeddings")


@pytest.mark.parametrize("text", MODULE.EXAMPLES)
def test_fires_once(text: str) -> None:
    _, after, change = fuse("embeddings", text)
    assert change.counts() == {"embeddings": 1}
    assert lines(after)[-1].startswith("FusedEmbeddings(ids, ")


@pytest.mark.parametrize(("text", "reason"), MODULE.NEAR_MISSES)
def test_refuses_with_the_reason(text: str, reason: str) -> None:
    before, after, change = fuse("embeddings", text)
    assert change.counts() == {}
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]
    assert lines(after) == lines(before)


@pytest.mark.parametrize("text", MODULE.EXAMPLES)
def test_the_new_node_means_what_the_old_ones_computed(text: str) -> None:
    before, after, _ = fuse("embeddings", text)
    node = list(after.model.graph)[-1]
    given = feeds(before)
    values = captured(before, [v.name for n in before.model.graph for v in n.outputs], given)
    unsqueezed = {"embeddings..Unsqueeze.0": values["row"][None]}  # the one index that the rule reshapes
    ids, positions, types, word, position, kind, gamma, beta = (
        None if v is None else {**values, **unsqueezed}[v.name] for v in node.inputs
    )
    total = word[ids].astype(np.float64)
    total = total + (position[positions] if positions is not None else 0) + (kind[types] if types is not None else 0)
    normal = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + node.attributes["epsilon"].value)
    assert relative_error(values["y"].astype(np.float64), normal * gamma + beta) <= 1e-5


def test_golden() -> None:
    golden = [lines(fuse("embeddings", text)[1])[-1] for text in MODULE.EXAMPLES]
    assert golden == [
        "FusedEmbeddings(ids, i, types, word, position, type, g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, i, types, word, position, type, g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, i, , word, position, , g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, position_ids, , word, position, , g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, embeddings..Unsqueeze.0, , word, position, , g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, , types, word, , type, g, b; epsilon=1e-06) -> y",
    ]


def test_shape_nodes_that_measured_the_sum_measure_the_result() -> None:
    text = MODULE.EXAMPLES[2].replace("float[B, S, 2] y)", "float[B, S, 2] y, int64[3] shape)")
    _, after, change = fuse("embeddings", text.replace("s = Add(p, w)", "s = Add(p, w)\nshape = Shape(s)"))
    assert change.counts() == {"embeddings": 1}
    assert lines(after)[-1] == "Shape(y) -> shape"
