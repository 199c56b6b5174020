"""Adapters of PEFT: merged as PEFT itself merges them where asked, refused with a way that works where not."""

from __future__ import annotations

import json
import shutil

import models
import numpy as np
import pytest

from bertc.core.errors import SourceError
from bertc.source.opening import open_reference
from bertc.source.types import SourceOptions

peft = pytest.importorskip("peft")
MASK = np.ones((2, 9), np.int64)


def trained(base, path, config, auto="AutoModelForSequenceClassification", **more):
    """Save an adapter with weights that matter; returns its own model."""
    import torch
    import transformers

    torch.manual_seed(3)
    wrapped = peft.get_peft_model(getattr(transformers, auto).from_pretrained(base, **more), config).eval()
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora" in name or "ia3" in name or "modules_to_save" in name:
                value.add_(0.3 * torch.randn(value.shape))
    wrapped.save_pretrained(str(path))
    return wrapped


def logits(module, feeds, output="logits"):
    import torch

    with torch.no_grad():
        return getattr(module(**{name: torch.from_numpy(value) for name, value in feeds.items()}), output).numpy()


def feeds():
    rng = np.random.default_rng(0)
    return {"input_ids": rng.integers(5, 119, MASK.shape), "attention_mask": MASK, "token_type_ids": np.zeros_like(MASK)}


def lora(**more):
    return peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], **more)


CONFIGS = {
    "lora": lora,
    "rslora": lambda: lora(use_rslora=True, lora_alpha=16),
    "dora": lambda: lora(use_dora=True),
    "ia3": lambda: peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(target_modules=["query"], modules_to_save=["classifier"], init_weights=False),
}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_merged_adapter_is_what_peft_computes(kind, tmp_path):
    base = models.checkpoint("sequence-classification")
    wanted = logits(trained(base, tmp_path / "a", CONFIGS[kind]()), feeds())
    plain, merged = open_reference(str(base)), open_reference(str(base), SourceOptions(adapter=str(tmp_path / "a")))
    assert models.relative_error(plain.run(feeds())["logits"], wanted) > 0.05
    assert models.relative_error(merged.run(feeds())["logits"], wanted) < 1e-5
    assert plain.sha256 != merged.sha256


def test_an_adapter_without_a_classifier_leaves_that_of_the_model(tmp_path):
    """As transformers' own add_adapter saves it, though the config says SEQ_CLS."""
    from transformers import AutoModelForSequenceClassification

    base = models.checkpoint("sequence-classification")
    module = AutoModelForSequenceClassification.from_pretrained(base).eval()
    module.add_adapter(lora(init_lora_weights=False))
    module.save_pretrained(str(tmp_path / "a"))
    merged = open_reference(str(base), SourceOptions(adapter=str(tmp_path / "a")))
    assert models.relative_error(merged.run(feeds())["logits"], logits(module, feeds())) < 1e-5


def both(tmp_path):
    """Weights and adapter in one folder."""
    folder = tmp_path / "both"
    shutil.copytree(models.checkpoint("sequence-classification"), folder)
    return folder, logits(trained(models.checkpoint("sequence-classification"), folder, lora()), feeds())


def test_an_adapter_beside_its_base_is_refused_until_asked(tmp_path):
    folder, wanted = both(tmp_path)
    with pytest.raises(SourceError, match=r"LORA") as error:
        open_reference(str(folder))
    assert f"--adapter {folder}" in str(error.value)
    merged = open_reference(str(folder), SourceOptions(adapter=str(folder)))
    assert models.relative_error(merged.run(feeds())["logits"], wanted) < 1e-5
    (folder / "adapter_config.json").rename(tmp_path / "adapter_config.json")  # the other advice of the message
    without = open_reference(str(folder)).run(feeds())["logits"]
    assert (
        models.relative_error(without, open_reference(str(models.checkpoint("sequence-classification"))).run(feeds())["logits"])
        == 0
    )


def test_an_adapter_alone_names_its_base_and_is_merged_into_it(tmp_path):
    base = models.checkpoint("sequence-classification")
    wanted = logits(trained(base, tmp_path / "a", lora()), feeds())
    with pytest.raises(SourceError, match="only an adapter") as error:
        open_reference(str(tmp_path / "a"))
    assert str(base) in str(error.value) and f"--adapter {tmp_path / 'a'}" in str(error.value)
    for source in (tmp_path / "a", base):
        found = open_reference(str(source), SourceOptions(adapter=str(tmp_path / "a")))
        assert models.relative_error(found.run(feeds())["logits"], wanted) < 1e-5
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "/not/here"}))
    with pytest.raises(SourceError, match="'/not/here' is not on this machine"):
        open_reference(str(tmp_path / "a"), SourceOptions(adapter=str(tmp_path / "a")))


def test_the_classifier_of_an_adapter_stands_on_a_base_without_one(tmp_path):
    """A pre-trained encoder has no classifier; the adapter brings the trained one and its number of classes."""
    base = models.checkpoint("features")
    wanted = logits(trained(base, tmp_path / "a", lora(modules_to_save=["classifier"]), num_labels=4), feeds())
    merged = open_reference(str(base), SourceOptions(adapter=str(tmp_path / "a")))
    got = merged.run(feeds())["logits"]
    assert got.shape == (2, 4)
    assert models.relative_error(got, wanted) < 1e-5


def test_an_adapter_of_sentence_transformers(tmp_path):
    """SentenceTransformer.save_pretrained writes the adapter and the chain, not the base."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    base = models.checkpoint("features")
    theirs = SentenceTransformer(modules=[Transformer(str(base)), Pooling(32, "mean")], device="cpu")
    theirs.add_adapter(peft.LoraConfig(target_modules=["query", "value"], r=4, init_lora_weights=False))
    theirs.save_pretrained(str(tmp_path / "st"))
    assert not (tmp_path / "st" / "config.json").exists()
    with pytest.raises(SourceError, match="only an adapter"):
        open_reference(str(tmp_path / "st"))
    found = open_reference(str(tmp_path / "st"), SourceOptions(adapter=str(tmp_path / "st")))
    texts = ["the cat sat on a mat", "a dog"]
    ids = {k: v.numpy() for k, v in theirs.tokenize(texts).items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    np.testing.assert_allclose(found.run(ids)["sentence_embedding"], theirs.encode(texts), rtol=0, atol=1e-5)


def test_an_adapter_is_of_no_use_to_an_onnx_file(tmp_path):
    import tiny

    file = tiny.encoder(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"--adapter is for a checkpoint.* is an \.onnx file"):
        open_reference(str(file), SourceOptions(adapter=str(tmp_path)))


def test_what_cannot_be_merged_is_named(tmp_path):
    base = models.checkpoint("sequence-classification")
    trained(base, tmp_path / "p", peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(SourceError, match="PROMPT_TUNING adds inputs"):
        open_reference(str(base), SourceOptions(adapter=str(tmp_path / "p")))
    trained(base, tmp_path / "a", lora())
    with pytest.raises(SourceError, match=r"tensors of the adapter have no place.*'SEQ_CLS'"):
        open_reference(str(models.checkpoint("features")), SourceOptions(task="features", adapter=str(tmp_path / "a")))
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match="is the download complete"):
        open_reference(str(base), SourceOptions(adapter=str(tmp_path / "a")))
    (tmp_path / "a" / "adapter_config.json").write_text('{"config": {"non_linearity": "relu"}}')
    with pytest.raises(SourceError, match="no adapter of PEFT"):
        open_reference(str(base), SourceOptions(adapter=str(tmp_path / "a")))
    with pytest.raises(SourceError, match="is no folder"):
        open_reference(str(base), SourceOptions(adapter=str(tmp_path / "nowhere")))


def loaded(base, adapter, task):
    """The model with its adapter in the weights, not exported."""
    from bertc.source.adapter import read_adapter
    from bertc.source.checkpoint import read_checkpoint
    from bertc.source.loading import load_model

    return load_model(read_checkpoint(base, adapter=read_adapter(adapter, allow_pickle=False)), task, trust_remote_code=False)[0]


SHARED = {
    "the table of words, its decoder left": {"target_modules": ["word_embeddings"]},
    "the decoder, its table left": {"target_modules": ["decoder"]},
    "both, tied": {"target_modules": ["word_embeddings"], "ensure_weight_tying": True},
    "layers that are repeated": {"target_modules": ["query"], "layer_replication": [[0, 2], [1, 2]]},
}


@pytest.mark.parametrize("kind", list(SHARED))
def test_a_tensor_that_two_layers_share_gets_the_adapter_of_each_in_its_own(kind, tmp_path):
    base = models.checkpoint("masked-lm")
    config = peft.LoraConfig(r=4, **SHARED[kind])
    wanted = logits(trained(base, tmp_path / "a", config, "AutoModelForMaskedLM"), feeds())
    assert models.relative_error(logits(loaded(base, tmp_path / "a", "masked-lm"), feeds()), wanted) < 1e-5


def test_a_table_that_the_adapter_leaves_alone_stays_tied(tmp_path):
    base = models.checkpoint("masked-lm")
    trained(base, tmp_path / "a", peft.LoraConfig(r=4, target_modules=["query"]), "AutoModelForMaskedLM")
    merged = loaded(base, tmp_path / "a", "masked-lm")
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight


def test_an_adapter_that_computes_something_else_when_merged_is_refused(tmp_path):
    """PEFT computes a decoder tied to trained rows of the table without its bias, and merges it with."""
    base = models.checkpoint("masked-lm")
    config = peft.LoraConfig(r=4, target_modules=["query"], trainable_token_indices=[5, 6])
    biased = tmp_path / "base"
    shutil.copytree(base, biased)
    from safetensors.numpy import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["cls.predictions.bias"] = np.ones_like(weights["cls.predictions.bias"])
    save_file(weights, biased / "model.safetensors", {"format": "pt"})
    trained(biased, tmp_path / "a", config, "AutoModelForMaskedLM")
    with pytest.raises(SourceError, match="merged by PEFT, computes something else") as error:
        loaded(biased, tmp_path / "a", "masked-lm")
    assert "merge_and_unload" in str(error.value)


def test_a_table_of_another_size_and_adapters_in_folders_are_named(tmp_path):
    import transformers

    base = models.checkpoint("sequence-classification")
    resized = transformers.AutoModelForSequenceClassification.from_pretrained(base)
    rows = resized.config.vocab_size
    resized.resize_token_embeddings(rows + 8, mean_resizing=False)
    resized.save_pretrained(str(tmp_path / "resized"))
    wanted = logits(trained(tmp_path / "resized", tmp_path / "in" / "a", lora(modules_to_save=["word_embeddings"])), feeds())
    with pytest.raises(SourceError, match=rf"word_embeddings.*\[{rows + 8}, 32\].*\[{rows}, 32\].*resize_token_embeddings"):
        loaded(base, tmp_path / "in" / "a", "sequence-classification")
    got = logits(loaded(tmp_path / "resized", tmp_path / "in" / "a", "sequence-classification"), feeds())
    assert models.relative_error(got, wanted) < 1e-5
    with pytest.raises(SourceError) as error:
        loaded(base, tmp_path / "in", "sequence-classification")
    assert f"--adapter {tmp_path / 'in' / 'a'}" in str(error.value)
