"""embeddings: every association and source of positions fires, others say why not; then real tiny exports, counted by family."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from models import DISTIL, TEXT, folder, save
from rules import captured, feeds, fuse, lines, relative_error, rules

MODULE = rules("embeddings")
ORDER = ("layernorm", "gelu", "bias_gelu", "linear", "sdpa", "attention", "mask", "embeddings", "skip_layernorm")
SMALL = {**TEXT, "embedding_size": 16}
FAMILIES = {
    "bert": ("BertModel", "BertConfig", TEXT),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTIL),
    "roberta": ("RobertaModel", "RobertaConfig", {**TEXT, "type_vocab_size": 1}),
    "electra": ("ElectraModel", "ElectraConfig", SMALL),
    "albert": ("AlbertModel", "AlbertConfig", SMALL),
    "mpnet": ("MPNetModel", "MPNetConfig", TEXT),
}
LAYERS = 2
# Of two layers; gelu is 0 where the exporter wrote a Gelu itself (ALBERT spells gelu_new as arithmetic).
PROMISED = {"bias_gelu": LAYERS, "mask": 1, "embeddings": 1, "skip_layernorm": 2 * LAYERS}


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
    unsqueezed = {"val_0": values["row"][None]}  # the one index that the rule reshapes
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
        "FusedEmbeddings(ids, val_0, , word, position, , g, b; epsilon=1e-06) -> y",
        "FusedEmbeddings(ids, , types, word, , type, g, b; epsilon=1e-06) -> y",
    ]


def test_shape_nodes_that_measured_the_sum_measure_the_result() -> None:
    text = MODULE.EXAMPLES[2].replace("float[B, S, 2] y)", "float[B, S, 2] y, int64[3] shape)")
    _, after, change = fuse("embeddings", text.replace("s = Add(p, w)", "s = Add(p, w)\nshape = Shape(s)"))
    assert change.counts() == {"embeddings": 1}
    assert lines(after)[-1] == "Shape(y) -> shape"


@pytest.fixture(scope="session")
def counts() -> dict[str, dict[str, int]]:
    """Matches by family and rule, of real architectures with two small layers."""
    from bertc import fuse as fusing
    from bertc.source import open_source

    found = {}
    for family, (model, config, sizes) in FAMILIES.items():
        source = open_source(str(save(model, config, sizes, folder() / f"fusion-{family}")))
        change = fusing.fuse(source.graph, {}, prove=False).change
        found[family] = {rule: change.counts().get(rule, 0) for rule in ORDER}
        missing = [str(r) for r in change.refusals if not found[family].get(r.rule) and r.rule in PROMISED]
        sys.stdout.write("\n".join([f"{family}: {found[family]}", *missing, ""]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_real_exports_have_all_their_counts(counts: dict[str, dict[str, int]], family: str) -> None:
    assert {rule: counts[family][rule] for rule in PROMISED} == PROMISED
    assert counts[family]["gelu"] == (LAYERS if family == "albert" else 0)
    assert counts[family]["sdpa"] == LAYERS
