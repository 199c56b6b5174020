"""A folder of transformers.js or optimum: the float .onnx is the source, tokenizer and config come along, the choice is said."""

from __future__ import annotations

import json

import ports
import pytest

from bertc.core.errors import SourceError
from bertc.source import open_source

CONFIG = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "no", "1": "yes", "2": "?"}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "onnx").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def put(folder, *names):
    for name in names:
        ports.encoder(folder / name)


def test_the_float_model_of_transformers_js_is_taken(folder):
    put(folder, "onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_fp16.onnx")
    source = open_source(str(folder))
    assert (source.kind, source.task) == ("onnx", "sequence-classification")
    assert {path.name for path in source.assets} == {"config.json", "tokenizer.json"}
    assert "the source is onnx/model.onnx" in source.notes[0]
    assert "not used: onnx/model_fp16.onnx, onnx/model_quantized.onnx" in source.notes[0]
    # The file by its own name is the same source, with the same tokenizer.
    named = open_source(str(folder / "onnx" / "model.onnx"))
    assert (named.sha256, named.assets, named.task) == (source.sha256, source.assets, source.task)


def test_the_file_of_optimum_beside_the_config(folder):
    put(folder, "model.onnx", "model_quantized.onnx")
    source = open_source(str(folder))
    assert source.task == "sequence-classification" and "the source is model.onnx" in source.notes[0]


def test_what_is_there_in_a_smaller_type_alone_is_said(folder):
    put(folder, "onnx/model_fp16.onnx", "onnx/model_int8.onnx")
    assert "not the float32 model" in open_source(str(folder)).notes[0]
    assert "onnx/model_fp16.onnx" in open_source(str(folder)).notes[0]


def test_a_task_that_the_outputs_are_not_of_is_not_taken(folder):
    (folder / "config.json").write_text(json.dumps(CONFIG | {"architectures": ["BertModel"]}))
    put(folder, "model.onnx")
    assert open_source(str(folder)).task == "custom"


def test_several_models_are_not_guessed_between(folder):
    put(folder, "onnx/encoder_model.onnx", "onnx/decoder_model.onnx")
    with pytest.raises(SourceError, match=r"2 \.onnx files.*onnx/decoder_model\.onnx"):
        open_source(str(folder))


def test_weights_that_transformers_reads_go_first(folder):
    put(folder, "onnx/model.onnx")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        open_source(str(folder))
