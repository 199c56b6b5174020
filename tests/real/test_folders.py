"""Folders that peft, PyLate, DataParallel and torch.compile wrote: taken whole, or refused by what is in the way."""

from __future__ import annotations

import json

import brought
import models
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

ONE = ["onnxruntime=fp32"]


@pytest.fixture(scope="module")
def feeds():
    return brought.text_feeds(words=119, types=True)


def logits(module, feeds):
    with torch.no_grad():
        return module(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits.numpy()


def test_base_and_adapter_in_one_folder(feeds, tmp_path):
    """What save_pretrained and a Trainer leave: refused until it is asked for, then what peft computes; never the base alone."""
    base = transformers.AutoModelForSequenceClassification.from_pretrained(models.one_layer("sequence-classification")).eval()
    base.save_pretrained(tmp_path / "m")
    plain = logits(base, feeds)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"]))
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight.add_(torch.randn(weight.shape) if "lora_B" in name else 0)
    tuned.eval().save_pretrained(str(tmp_path / "m"))
    wanted = logits(tuned, feeds)
    assert brought.off(plain, wanted) > 0.05
    refused = brought.build(tmp_path / "m", tmp_path / "out", targets=ONE)
    assert refused.code == 2 and f"--adapter {tmp_path / 'm'}" in " ".join(refused.said.split())
    built = brought.build(tmp_path / "m", tmp_path / "out", "--adapter", tmp_path / "m", targets=ONE)
    assert built.code == 0, built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], wanted) < 1e-5


def test_names_of_wrappers_and_of_old_conversions(feeds, tmp_path):
    """torch.compile around DataParallel, and gamma and beta as TensorFlow's checkpoints called them, in one file."""
    source = models.one_layer("sequence-classification")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    base.save_pretrained(tmp_path / "m")
    weights = {
        "_orig_mod.module." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): w
        for name, w in load_file(tmp_path / "m" / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    built = brought.build(tmp_path / "m", tmp_path / "out", targets=ONE)
    assert built.code == 0, built.said
    assert "_orig_mod.module." in built.said
    assert brought.off(brought.answers(built.graph(), feeds)["logits"], logits(base, feeds)) < 1e-5


def test_a_chain_without_a_pooling(feeds, tmp_path):
    """ColBERT as PyLate saves it: a Dense on every token, which PyLate scales to unit length."""
    base = transformers.AutoModel.from_pretrained(models.one_layer("features")).eval()
    base.save_pretrained(tmp_path / "m")
    dense = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    (tmp_path / "m" / "1_Dense").mkdir()
    save_file({"linear.weight": dense}, tmp_path / "m" / "1_Dense" / "model.safetensors")
    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": 32, "out_features": 8, "bias": False, "activation_function": identity, "use_residual": False}
    (tmp_path / "m" / "1_Dense" / "config.json").write_text(json.dumps(config))
    listed = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(listed)]
    (tmp_path / "m" / "modules.json").write_text(json.dumps(modules))
    built = brought.build(tmp_path / "m", tmp_path / "out", targets=ONE)
    assert built.code == 0, built.said
    with torch.no_grad():
        states = base(**{name: torch.from_numpy(array) for name, array in feeds.items()}).last_hidden_state
        wanted = torch.nn.functional.normalize(states @ dense.T, dim=-1).numpy()
    got = brought.answers(built.graph(), feeds)["token_embeddings"]
    assert brought.off(got, wanted, feeds["attention_mask"]) < 1e-5


def test_a_padded_batch_of_audio(tmp_path):
    """HuBERT with layer norm, trained with masks: a batch is what PyTorch makes of it, a padded row what the clip alone gives."""
    torch.manual_seed(0)
    config = transformers.HubertConfig(**{**models.AUDIO, "num_hidden_layers": 1}, **models.LAYER, conv_bias=True)
    model = transformers.HubertForCTC(config).eval()
    model.save_pretrained(tmp_path / "m")
    about = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16000,
        "do_normalize": True,
    }
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps({**about, "return_attention_mask": True}))
    built = brought.build(tmp_path / "m", tmp_path / "out", targets=ONE)
    assert built.code == 0, built.said
    mask = np.ones((2, 3000), np.int64)
    mask[1, 1800:] = 0
    sound = (np.random.default_rng(0).standard_normal(mask.shape) * mask).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(sound), attention_mask=torch.from_numpy(mask)).logits.numpy()
    got = brought.answers(built.graph(), {"input_values": sound, "attention_mask": mask})["logits"]
    alone = brought.answers(built.graph(), {"input_values": sound[1:, :1800], "attention_mask": mask[1:, :1800]})["logits"]
    frames = alone.shape[1]
    assert brought.off(got[0], wanted[0]) < 1e-5
    assert brought.off(got[1, :frames], wanted[1, :frames]) < 1e-5
    assert brought.off(got[1, :frames], alone[0]) < 1e-5
