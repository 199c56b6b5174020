"""Attention of other encoders (rotary, disentangled, flattened): rules on texts, real architectures, and what they promise."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from fusing import parsed, run
from models import TEXT, folder, save
from rules import rules

from bertc.fusions import engine as fuse
from bertc.fusions import rewrite
from bertc.fusions.proof.prover import Prover
from bertc.graph.model import Graph
from bertc.source.opening import open_source
from bertc.source.types import Source
from bertc.targets._tensorrt import lower_encoder as _lower_trt

FILES = ("rotary", "rotary_attention", "disentangled_attention", "flat_attention")
EXAMPLES = [(name, index) for name in FILES for index in range(len(rules(name).EXAMPLES))]
NEAR_MISSES = [(name, index) for name in FILES for index in range(len(rules(name).NEAR_MISSES))]
TOLERANCE = 2e-5  # fp32: products of numbers up to 9, scores up to some hundreds
SIZES = {"B": 2, "S": 5, "T": 4}


def rewritten(name: str, text: str) -> tuple[Graph, Graph, rewrite.Change]:
    before = parsed(text)
    return (before, *rewrite.apply_rules(before, [(name, rule) for rule in rules(name).RULES]))


def random_feeds(graph: Graph) -> dict[str, np.ndarray]:
    """Floats are normal, indices below 3 (the tables of the texts have 3 rows), a bool is false in every row's first place."""
    rng, made = np.random.default_rng(1), {}
    for spec in graph.inputs:
        shape = [dim if isinstance(dim, int) else SIZES[dim] for dim in spec.dims]
        kind = np.dtype(spec.dtype).kind
        array = rng.normal(size=shape) / 4 if kind == "f" else rng.integers(0, 3 if kind == "i" else 2, shape)
        if kind == "b":
            array[..., 0] = 0
        made[spec.name] = np.asarray(array, spec.dtype)
    return made


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_fires_once_and_keeps_the_numbers(name: str, index: int) -> None:
    before, after, change = rewritten(name, rules(name).EXAMPLES[index])
    assert change.counts() == {name: 1}
    assert sum(node.op_type == rules(name).OP for node in after.model.graph) == 1
    feeds = random_feeds(before)
    wanted = run(before, feeds)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(run(after, feeds), wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize(("name", "index"), NEAR_MISSES)
def test_refuses_with_the_reason(name: str, index: int) -> None:
    text, reason = rules(name).NEAR_MISSES[index]
    _, _, change = rewritten(name, text)
    assert change.counts() == {}
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]


def exchanged(*places: int) -> Any:
    """What a wrong rewrite would make: two inputs in each other's place."""

    def change(node: ir.Node) -> None:
        first, second = (node.inputs[place] for place in places)
        node.replace_input_with(places[0], second)
        node.replace_input_with(places[1], first)

    return change


def negated(node: ir.Node) -> None:
    node.attributes["scale"] = ir.AttrFloat32("scale", -node.attributes["scale"].as_float())


WRONG = {
    "angles exchanged": ("rotary", 0, exchanged(1, 2)),
    "angles of attention exchanged": ("rotary_attention", 0, exchanged(2, 3)),
    "scale": ("rotary_attention", 0, negated),
    "position vectors exchanged": ("disentangled_attention", 0, exchanged(6, 8)),
    "relative positions exchanged": ("disentangled_attention", 0, exchanged(7, 9)),
    "scale of disentangled": ("disentangled_attention", 0, negated),
    "scale of folded heads": ("flat_attention", 0, negated),
    "keys and values of one head exchanged": ("flat_attention", 3, exchanged(0, 2)),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rewrite_is_not_proven(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, index, change = WRONG[what]
    before = parsed(rules(name).EXAMPLES[index])
    prover = Prover(before, {}, lowerings={"tensorrt": _lower_trt.lowerings()})
    assert isinstance(rewrite.apply_rules(before, [(name, r) for r in rules(name).RULES], prover)[1].applied[0].error, float)

    def spoiled(match: rewrite.Match) -> float | str:
        change(next(node for node in match.new_nodes if node.op_type == rules(name).OP))
        return prover(match)

    _, made = rewrite.apply_rules(before, [(name, r) for r in rules(name).RULES], spoiled)
    assert not made.applied
    assert any("relative error" in refusal.reason for refusal in made.refusals), [str(r) for r in made.refusals]


RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8}
DEBERTA = {**TEXT, **RELATIVE, "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0}
ONE = {"num_hidden_layers": 1}  # an export takes as long as it has layers; the others share masks and positions between two
NARROW = {"intra_bottleneck_size": 16, "true_hidden_size": 16}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deberta-v2": ("DebertaV2Model", "DebertaV2Config", DEBERTA),
    "mobilebert": ("MobileBertModel", "MobileBertConfig", {**TEXT, **ONE, "embedding_size": 16, **NARROW}),
}


@functools.cache
def opened(family: str) -> Source:
    return open_source(str(save(*FAMILIES[family], Path(folder()) / family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_fuses_to_what_it_promises(family: str) -> None:
    source = opened(family)
    if "length" in source.dims:
        assert source.dims["length"].min == 1, "MobileBERT is traced from length 3 on; its graph is right from 1"
    found = fuse.fuse(source.graph, source.dims, lowerings={"tensorrt": _lower_trt.lowerings()})
    fuse.expect_fusions(source.graph, found.change, family)
    left = [node for node in found.graph.model.graph if node.op_type == "Softmax"]
    assert not left, "an attention was left"


def test_a_family_that_falls_short_says_where() -> None:
    """DeBERTa with one of its terms left out has no rule, and the report names the node."""
    text = rules("disentangled_attention").EXAMPLES[0].replace("rel = Add(dc, dp)", "rel = Identity(dc)")
    _, _, change = rewritten("disentangled_attention", text)
    assert not change.applied
    assert any("expected Add" in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]
