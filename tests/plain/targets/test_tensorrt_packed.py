"""Packed tokens for TensorRT: right for every mask, attention padded alone or a kernel of ours; what is refused, and why."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import fused
import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import golden
from bertc import precision
from bertc.cli import _main as cli
from bertc.core import BertcError
from bertc.data import synthetic
from bertc.fusions import engine
from bertc.ops import expand
from bertc.packing import check_packed, pack
from bertc.runtime import PLUGIN_DOMAIN, ReferenceRunner
from bertc.targets import parse_spec, refusal, tensorrt
from bertc.targets._tensorrt import plugin_nodes

OURS = ("packed_attention",)
FAMILIES = ("bert", "distilbert", "mpnet", "modernbert", "xlm-roberta", "t5-encoder", "gpt2", "nomic-bert")
REFUSED = dict.fromkeys(("mpnet", "t5-encoder", "gpt2"), "differs between queries")


@pytest.fixture(scope="module", params=[(), OURS], ids=["padded", "kernel"])
def both(request: pytest.FixtureRequest) -> tuple[ReferenceRunner, ReferenceRunner]:
    padded = fused.encoder()
    return ReferenceRunner(expand(padded)), ReferenceRunner(tensorrt.lower(pack(padded).graph, plugins=request.param))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_mask(both: tuple[ReferenceRunner, ReferenceRunner], data: st.DataObject) -> None:
    """A head reads position 0, so that masked rows are kept with a mask of keys, and rows without a token are what they were."""
    fused.assert_equal_for_any_mask(*both, data)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    graph, dims = golden.open_graph(next(golden.FOLDER.glob(f"{family}.dynamo*")))
    dims = {name: dataclasses.replace(dim, max=dim.max or 40) for name, dim in dims.items()}
    whole = engine.fuse(graph, dims, prove=False).graph
    packing = pack(whole)
    lowered = {"padded": tensorrt.lower(packing.graph)}
    if family in REFUSED:
        with pytest.raises(BertcError, match=REFUSED[family]):
            tensorrt.lower(packing.graph, plugins=OURS)
    else:
        lowered["kernel"] = tensorrt.lower(packing.graph, plugins=OURS)
        windows = plugin_nodes.not_used(lowered["kernel"])  # ModernBERT: every third layer sees the whole row
        assert bool(windows) is (family == "modernbert") and all("differs between queries" in why for why in windows)
    check_packed(packing, lowered, whole, dims, synthetic.synthetic_samples(whole, dims))


def test_what_lengths_decide_is_computed_once_for_all_layers() -> None:
    lowered = tensorrt.lower(pack(fused.encoder(layers=3)).graph)
    found = collections.Counter(node.op_type for node in lowered.model.graph)
    assert found["NonZero"] == found["ScatterND"] == found["GreaterOrEqual"] == 1
    assert found["Softmax"] == 3 and not any(node.domain for node in lowered.model.graph)


def test_a_kernel_has_no_scores_and_a_mask_of_keys_by_token() -> None:
    lowered = tensorrt.lower(pack(fused.encoder()).graph, plugins=OURS)
    plugins = [node for node in lowered.model.graph if node.domain == PLUGIN_DOMAIN]
    assert [node.op_type for node in plugins] == ["packed_attention_without_bias"] * 2
    assert not [node for node in lowered.model.graph if node.op_type == "Softmax"]
    (listed,) = plugin_nodes.used(lowered)
    assert listed == {"launch": "packed_attention", "present": ["qkv", "cu_seqlens", "keys", "out"]}


@pytest.mark.parametrize("kind", ["right", "left", "holed", "random"])
def test_in_half_precision_the_mask_of_keys_stays_finite(kind: str) -> None:
    graph, feeds = fused.encoder(), fused.feeds(5, 11, kind)
    for plugins in ((), OURS):
        lowered = tensorrt.lower(pack(graph).graph, plugins=plugins)
        typed = precision.get("fp16").apply(lowered, kernels=tensorrt.KERNELS).graph
        (wanted,), (got,) = (ReferenceRunner(each).run(feeds).values() for each in (expand(graph), typed))
        assert 0 < np.abs(wanted - got).max() < 1e-2 * np.abs(wanted).max()


def test_heads_that_the_kernel_has_no_size_for_are_padded_and_it_is_said() -> None:
    packed = pack(fused.encoder(size=12)).graph
    with pytest.raises(BertcError, match="heads of 12"):
        tensorrt.lower(packed, plugins=OURS)
    mixed = tensorrt.lower(packed, plugins=("skip_layernorm",))
    assert not plugin_nodes.not_used(mixed)  # nobody asked for it


def test_what_cannot_be_is_refused_before_any_work() -> None:
    assert refusal(parse_spec("tensorrt"), "fp16", packed=True) is None
    assert "--int8 without --packed" in str(refusal(parse_spec("tensorrt"), "int8", packed=True))
    assert "--fp16 --packed" in str(refusal(parse_spec("tensorrt"), "fp8", packed=True))
    assert "give both, or neither" in str(refusal(parse_spec("tensorrt"), "fp16", plugins=OURS))
    assert "NonZero" in str(refusal(parse_spec("tensorrt-rtx"), "fp16", packed=True))


def test_without_a_gpu_the_build_ends_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if tensorrt.available().build:
        pytest.skip("TensorRT builds on this machine")
    words = ["build", str(models.checkpoint("sequence-classification")), "--fp16", "--packed", "--target", "tensorrt"]
    assert cli.run([*words, "-o", str(tmp_path / "out")]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "target tensorrt cannot build here" in said
