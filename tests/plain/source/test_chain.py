"""Chains of sentence-transformers of every kind: equal to that library's own forward, or refused by the module's name."""

from __future__ import annotations

import json
import shutil

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source.opening import open_reference, open_source
from bertc.source.types import SourceOptions

TEXTS = ["the cat sat on a mat", "a dog", "the big dog ran far away", "mat"]
OURS = "sentence_transformers.models."


def chain(path, *modules, base="features"):
    """An encoder and modules behind it: (type, config, weights) each."""
    from safetensors.torch import save_file

    shutil.copytree(models.checkpoint(base), path)
    listed = [{"idx": 0, "name": "0", "path": "", "type": f"{OURS}Transformer"}]
    for index, (kind, config, weights) in enumerate(modules, start=1):
        place = path / f"{index}_{kind.rpartition('.')[2]}"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
        if weights:
            save_file(weights, place / "model.safetensors")
        listed.append({"idx": index, "name": str(index), "path": place.name, "type": kind})
    (path / "modules.json").write_text(json.dumps(listed))
    return path


def tokens(path, texts):
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(str(path))(texts, padding=True, return_tensors="np"))


def dense(kind=f"{OURS}Dense", activation="torch.nn.modules.linear.Identity", bias=False, **more):
    import torch

    torch.manual_seed(2)
    config = {"in_features": 32, "out_features": 8, "bias": bias, "activation_function": activation, **more}
    return kind, config, {"linear.weight": torch.randn(8, 32)} | ({"linear.bias": torch.randn(8)} if bias else {})


def theirs(path, texts=TEXTS):
    """The features that MultiVectorEncoder's own modules compute, and the arrays that went in."""
    import torch
    from sentence_transformers import MultiVectorEncoder

    from bertc.source.torch_export import quiet

    with quiet():
        model = MultiVectorEncoder(str(path), device="cpu", local_files_only=True)
        feeds = {name: torch.from_numpy(value) for name, value in tokens(path, texts).items()}
        with torch.no_grad():
            found = model({name: value.clone() for name, value in feeds.items()})
    return found["token_embeddings"].numpy(), {name: value.numpy() for name, value in feeds.items()}


def ours(source, feeds):
    return source.run({name: feeds[name] for name in ("input_ids", "attention_mask", "token_type_ids")})


TOKEN = {"module_input_name": "token_embeddings"}
UNIT = (f"{OURS}Normalize", TOKEN, {})
TOKEN_CHAINS = {
    "tanh, bias": [dense(activation="torch.nn.modules.activation.Tanh", bias=True)],
    "gelu, unit length": [dense(activation="torch.nn.modules.activation.GELU", **TOKEN), UNIT],
    "unit length": [UNIT],
    "scoring mask": [
        dense(),
        ("sentence_transformers.multi_vector_encoder.modules.MultiVectorMask", {"skiplist_words": ["the"]}, {}),
    ],
}


@pytest.mark.parametrize("name", list(TOKEN_CHAINS))
def test_a_chain_without_pooling_is_a_vector_a_token(name, tmp_path):
    path = chain(tmp_path / "m", *TOKEN_CHAINS[name])
    (path / "config_sentence_transformers.json").write_text(json.dumps({"model_type": "MultiVectorEncoder"}))
    wanted, feeds = theirs(path)
    got = ours(open_reference(str(path)), feeds)["token_embeddings"]
    assert got.shape[-1] == (32 if name == "unit length" else 8)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{"model_type": "ColBERT", "query_prefix": "", "prompts": {}}, None])
def test_the_graph_of_pylate_normalises_as_its_scores_want(settings, tmp_path):
    """PyLate's encode scales each token to unit length, and so does sentence-transformers when it loads such a directory."""
    path = chain(tmp_path / "m", dense("pylate.models.Dense.Dense", use_residual=False))
    if settings:
        (path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    source = open_source(str(path))
    assert source.task == "token-embedding"
    assert [str(spec) for spec in source.graph.outputs] == ["token_embeddings: float32[batch, length, 8]"]
    assert any("ends in Normalize" in note for note in source.notes)
    wanted, feeds = theirs(path)
    np.testing.assert_allclose(ours(source, feeds)["token_embeddings"], wanted, rtol=0, atol=1e-5)
    graph = models.run_graph(source.graph, {spec.name: feeds[spec.name] for spec in source.graph.inputs})
    np.testing.assert_allclose(graph["token_embeddings"], wanted, rtol=0, atol=1e-5)


def test_a_dense_on_tokens_before_the_pooling(tmp_path):
    from sentence_transformers import SentenceTransformer

    pooling = (f"{OURS}Pooling", {"embedding_dimension": 8, "pooling_mode": "max"}, {})
    path = chain(tmp_path / "m", dense(**TOKEN), pooling, (f"{OURS}Dropout", {"dropout": 0.5}, {}))
    wanted = SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(
        ours(open_reference(str(path)), tokens(path, TEXTS))["sentence_embedding"], wanted, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("strategy", ["max", "sum"])
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_splade_equals_sparse_encoder(strategy, activation, tmp_path):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    base = models.checkpoint("masked-lm")
    modules = [Transformer(str(base), transformer_task="fill-mask"), SpladePooling(strategy, activation)]
    theirs = SparseEncoder(modules=modules, device="cpu")
    theirs.save_pretrained(str(tmp_path / "m"))
    wanted = theirs.encode(TEXTS, convert_to_sparse_tensor=False).numpy()
    source = open_reference(str(tmp_path / "m"))
    np.testing.assert_allclose(ours(source, tokens(tmp_path / "m", TEXTS))["sentence_embedding"], wanted, rtol=0, atol=1e-5)


REFUSED = {
    "a dense for sentences": ([dense()], "Dense in modules.json reads sentence_embedding, which no module"),
    "no pooling before": ([(f"{OURS}Normalize", {}, {})], "reads sentence_embedding, which no module"),
    "another author": ([("my_models.Dense", {}, {})], "unsupported module 'my_models.Dense'"),
    "layers": ([(f"{OURS}WeightedLayerPooling", {"layer_start": 4}, {})], "'WeightedLayerPooling'"),
    "top k": ([(f"{OURS}SparseAutoEncoder", {"k": 4}, {})], "'SparseAutoEncoder'"),
    "convolution": ([(f"{OURS}CNN", {}, {})], "'CNN'"),
    "a key": ([dense(scale=2.0)], "'scale'"),
    "splade": ([(f"{OURS}SpladePooling", {"pooling_strategy": "mean"}, {})], "pooling_strategy 'mean'"),
    "a dense nobody reads": (
        [(f"{OURS}Pooling", {"pooling_mode": "cls"}, {}), dense(**TOKEN)],
        r"Dense on \['token_embeddings'\]",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_supported_is_named(name, tmp_path):
    modules, message = REFUSED[name]
    with pytest.raises(SourceError, match=message):
        open_reference(str(chain(tmp_path / "m", *modules)))


def test_the_advice_for_a_normalize_without_a_pooling_works(tmp_path):
    path = chain(tmp_path / "m", (f"{OURS}Normalize", {}, {}))
    with pytest.raises(SourceError) as error:
        open_reference(str(path))
    told, _, file = str(error.value).rpartition(" into ")
    assert file == str(path / "1_Normalize" / "config.json")
    (path / "1_Normalize" / "config.json").write_text(told.partition("write ")[2])
    got = ours(open_reference(str(path)), tokens(path, TEXTS))["token_embeddings"]
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1.0, rtol=0, atol=1e-5)


def test_the_encoder_of_another_author_is_named(tmp_path):
    path = chain(tmp_path / "m", (f"{OURS}Pooling", {"pooling_mode": "cls"}, {}))
    listed = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([{**listed[0], "type": "custom_st.Transformer"}, *listed[1:]]))
    with pytest.raises(SourceError, match=r"first module is 'custom_st\.Transformer'"):
        open_reference(str(path))


def test_a_transformer_that_hands_on_something_else_is_refused(tmp_path):
    path = chain(tmp_path / "m", (f"{OURS}Pooling", {"pooling_mode": "cls"}, {}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": "text-generation"}))
    with pytest.raises(SourceError, match="transformer_task 'text-generation'"):
        open_reference(str(path))
    (path / "sentence_bert_config.json").write_text(json.dumps({"module_output_name": "scores"}))
    with pytest.raises(SourceError, match="module_output_name 'scores'"):
        open_reference(str(path))


def test_a_task_without_the_chain_says_so(tmp_path):
    path = chain(tmp_path / "m", dense(**TOKEN))
    source = open_source(str(path), SourceOptions(task="features"))
    assert any("not used: Dense of modules.json: outside task 'features'" in note for note in source.notes)
    (path / "modules.json").write_text(json.dumps(json.loads((path / "modules.json").read_text())[:1]))
    source = open_source(str(path))
    assert source.task == "features"
    assert any("files not read: 1_Dense/" in note for note in source.notes)
