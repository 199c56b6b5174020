"""A text without a token: what transformers' two kinds of attention make of it, and what bertc does (docs/verification.md)."""

from __future__ import annotations

import json
import shutil

import models
import numpy as np
import pytest

from bertc.core import DataError
from bertc.data import Encoder
from bertc.source import open_source

TEXTS = ["", "the cat sat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT whose tokenizer adds no special tokens."""
    path = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(models.one_layer("features"), path)
    settings = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps({**settings, "post_processor": None}))
    return path


def of_transformers(path, attention, texts):
    import torch
    import transformers

    from bertc.source.torch_export import quiet

    with quiet(), torch.no_grad():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        model = transformers.AutoModel.from_pretrained(path, attn_implementation=attention).eval()
        feeds = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        return feeds, model(**feeds).last_hidden_state.numpy()


def test_beside_other_texts_the_row_is_as_eager_attention_has_it_and_the_others_as_both(folder):
    feeds, sdpa = of_transformers(folder, "sdpa", TEXTS)
    _, eager = of_transformers(folder, "eager", TEXTS)
    assert feeds["attention_mask"].sum(1).tolist() == [0, 3]
    source = open_source(str(folder))
    arrays = {name: value.numpy() for name, value in feeds.items()}
    for got in (source.run(arrays)["last_hidden_state"], models.run_graph(source.graph, arrays)["last_hidden_state"]):
        assert np.isfinite(got).all() and np.isfinite(sdpa).all()
        np.testing.assert_allclose(got, eager, atol=1e-5)
        np.testing.assert_allclose(got[1], sdpa[1], atol=1e-5)
        assert np.abs(got[0] - sdpa[0]).max() > 1e-3, "sdpa attends to nothing, eager to every position"


def test_a_mean_over_tokens_is_0_with_both(folder, tmp_path):
    path = models.sentence_transformer(tmp_path / "mean", {"pooling_mode_mean_tokens": True}, base=folder)
    feeds, _ = of_transformers(folder, "eager", TEXTS)
    assert not open_source(str(path)).run({n: v.numpy() for n, v in feeds.items()})["sentence_embedding"][0].any()
    from sentence_transformers import SentenceTransformer

    assert not SentenceTransformer(str(path), device="cpu").encode(TEXTS)[0].any()


def test_alone_transformers_fails_and_encode_refuses(folder):
    for attention in ("sdpa", "eager"):
        with pytest.raises(RuntimeError):
            of_transformers(folder, attention, [""])
    encoder = Encoder.from_files({path.name: path for path in folder.iterdir()}, 40, ("input_ids", "attention_mask"))
    for texts in ([""], TEXTS):
        with pytest.raises(DataError, match="no tokens"):
            encoder.encode(texts)
