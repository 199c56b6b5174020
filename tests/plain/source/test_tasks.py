"""Every task: the exported graph equals PyTorch at sizes and masks the exporter never saw."""

from __future__ import annotations

import os
import subprocess
import sys

import models
import numpy as np
import onnx_ir as ir
import pytest

from bertc.core.errors import SourceError
from bertc.graph.io_names import with_int32_ids
from bertc.graph.provenance import module_path
from bertc.source.opening import open_reference, open_source
from bertc.source.types import TASKS, SourceOptions

TEXT_MODELS = ("features", "roberta", "sequence-classification", "token-classification", "question-answering", "masked-lm")
OUTPUTS = {
    "features": ["last_hidden_state: float32[batch, length, 32]", "pooler_output: float32[batch, 32]"],
    "roberta": ["last_hidden_state: float32[batch, length, 32]", "pooler_output: float32[batch, 32]"],
    "sequence-classification": ["logits: float32[batch, 3]"],
    "token-classification": ["logits: float32[batch, length, 5]"],
    "question-answering": ["start_logits: float32[batch, length]", "end_logits: float32[batch, length]"],
    "masked-lm": ["logits: float32[batch, length, 120]"],
}
LIMIT = 1e-5


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_text_equals_torch(name):
    source = models.opened(name)
    assert [str(spec) for spec in source.graph.outputs] == OUTPUTS[name]
    assert source.task == ("features" if name == "roberta" else name)
    longest = source.dims["length"].max
    assert longest == (38 if name == "roberta" else 40)
    for batch, length in ((1, 1), (1, 7), (3, 17), (2, longest), (5, 2)):
        for label, mask in models.masks(batch, length).items():
            feeds = models.text_feeds(source.graph.inputs, mask)
            wanted, got = source.run(feeds), models.run_graph(source.graph, feeds)
            for output in wanted:
                error = models.relative_error(got[output], wanted[output])
                assert error < LIMIT, (label, batch, length, output, error)


@pytest.mark.parametrize("name", ["features", "sequence-classification"])
def test_a_row_without_tokens_is_finite_and_changes_no_other(name):
    source = models.opened(name)
    mask = np.ones((3, 9), np.int64)
    mask[1] = 0
    feeds = models.text_feeds(source.graph.inputs, mask)
    got = models.run_graph(source.graph, feeds)
    others = models.run_graph(source.graph, {key: value[[0, 2]] for key, value in feeds.items()})
    for output, value in got.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value[[0, 2]], others[output], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["audio-features", "ctc"])
def test_audio_equals_torch(name):
    source = models.opened(name)
    assert [spec.name for spec in source.graph.inputs] == ["input_values"] + ["attention_mask"] * (name == "ctc")
    smallest = source.dims["samples"].min
    assert smallest == 30 and source.dims["samples"].max is None
    rng = np.random.default_rng(0)
    for batch, samples in ((1, smallest), (1, 57), (3, 331), (2, 1600)):
        feeds = {"input_values": rng.standard_normal((batch, samples)).astype(np.float32)}
        if name == "ctc":
            mask = np.ones((batch, samples), np.int64)
            mask[0, max(smallest, samples // 2) :] = 0
            feeds["attention_mask"] = mask
        (wanted,), (got,) = source.run(feeds).values(), models.run_graph(source.graph, feeds).values()
        assert models.relative_error(got, wanted) < LIMIT, (batch, samples)
    frames = source.graph.outputs[0].dims[1]
    assert "samples" in str(frames)


def test_roberta_has_no_token_types():
    assert [spec.name for spec in models.opened("roberta").graph.inputs] == ["input_ids", "attention_mask"]


def test_int32_ids_are_cast_once_and_change_nothing():
    source = models.opened("features")
    graph = with_int32_ids(source.graph)
    assert {spec.dtype for spec in graph.inputs} == {"int32"}
    assert {spec.dtype for spec in source.graph.inputs} == {"int64"}, "the given graph must stay as it was"
    assert [spec.name for spec in graph.inputs] == [spec.name for spec in source.graph.inputs]
    assert graph.op_counts()["Cast"] == source.graph.op_counts()["Cast"] + 3
    feeds = models.text_feeds(graph.inputs, np.ones((2, 5), np.int64))
    got, wanted = models.run_graph(graph, feeds), source.run(feeds)
    assert models.relative_error(got["last_hidden_state"], wanted["last_hidden_state"]) < LIMIT


def test_every_dimension_of_the_graph_is_named_or_a_number():
    for name in ("features", "ctc"):
        graph = models.opened(name).graph
        shapes = [value.shape for node in graph.model.graph.all_nodes() for value in node.outputs if value.shape is not None]
        text = {str(dim.value) for shape in shapes for dim in shape if not isinstance(dim, int)}
        assert not {t for t in text if t.startswith("s") and t[1:].isdigit()}, text


def test_the_graph_carries_module_paths_and_no_absolute_path():
    graph = models.opened("features").graph
    assert any(module_path(node) == "model.encoder.layer.1.attention.self.query" for node in graph.model.graph)
    proto = ir.to_proto(graph.model)
    traces = [entry.value for node in proto.graph.node for entry in node.metadata_props]
    assert traces
    for text in traces:
        assert '"/' not in text and os.getcwd() not in text and sys.prefix not in text
    assert any("\ttransformers/models/bert/modeling_bert.py:" in text for text in traces)


def test_two_processes_export_identical_bytes():
    code = (
        "import hashlib, sys, onnx_ir as ir\n"
        "from bertc.source import open_source\n"
        "proto = ir.to_proto(open_source(sys.argv[1]).graph.model)\n"
        "print(hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest())\n"
    )
    path = str(models.checkpoint("features"))
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=environment, check=True)
    assert other.stderr == "" and len(other.stdout.splitlines()) == 1, "nothing but the answer is printed"
    import hashlib

    mine = ir.to_proto(models.opened("features").graph.model).SerializeToString(deterministic=True)
    assert other.stdout.strip() == hashlib.sha256(mine).hexdigest()


def test_source_says_what_it_is():
    source = models.opened("features")
    assert source.kind == "huggingface" and source.revision is None and len(source.sha256) == 64
    assert [path.name for path in source.assets] == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert {"torch", "transformers", "onnx-ir"} <= set(source.versions)


def test_a_reference_is_the_source_without_its_graph():
    source = models.opened("features")
    found = open_reference(source.reference)
    assert found.sha256 == source.sha256
    feeds = models.text_feeds(source.graph.inputs, np.ones((2, 5), np.int64))
    wanted, got = source.run(feeds), found.run(feeds)
    assert list(got) == list(wanted)
    np.testing.assert_array_equal(got["pooler_output"], wanted["pooler_output"])


def test_unknown_task_names_the_nearest():
    with pytest.raises(SourceError, match="did you mean 'masked-lm'"):
        open_source("anywhere", SourceOptions(task="masked-ml"))
    elsewhere = {"sentence-embedding", "token-embedding", "audio-classification", "audio-frame-classification"}
    assert set(models.MODELS) - {"roberta"} | elsewhere == set(TASKS)  # those in test_sentence, test_chain and test_audio_heads


def test_old_opset_is_refused():
    with pytest.raises(SourceError, match="opset 17 is too old"):
        open_source(str(models.checkpoint("features")), SourceOptions(opset=17))
