"""Every refusal is tried for truth: it says what to do, that is done as it stands, and then the source opens and computes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import advice
import models
import pytest
import torch
from safetensors.torch import load_file

Words = Sequence[object]
Follow = Callable[[Path, Words, str], Words]


def copy(folder: Path, name: str = "features") -> Path:
    return Path(shutil.copytree(models.one_layer(name), folder / "m"))


def edit(path: Path, *, drop: str = "", **changes: Any) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if key != drop}))


def pickled(folder: Path) -> Words:
    """Weights only as a pickle."""
    path = copy(folder)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return [path]


def no_architecture(folder: Path) -> Words:
    path = copy(folder)
    edit(path / "config.json", drop="architectures")
    return [path]


def no_task(folder: Path) -> Words:
    return [models.save("BertForNextSentencePrediction", "BertConfig", models.TEXT | {"num_hidden_layers": 1}, folder / "m")]


def another_head(folder: Path) -> Words:
    return [copy(folder), "--task", "question-answering"]


def no_pooling(folder: Path) -> Words:
    return [copy(folder), "--task", "sentence-embedding"]


def kernel_of_the_hub(folder: Path) -> Words:
    path = copy(folder)
    edit(path / "config.json", attn_implementation="kernels-community/flash-attn")
    return [path]


def other_weights(folder: Path) -> Words:
    path = copy(folder)
    (path / "model.safetensors").rename(path / "other.safetensors")
    edit(path / "config.json", transformers_weights="other.safetensors")
    return [path]


def own_code(folder: Path) -> Words:
    path = copy(folder)
    (path / "modeling_own.py").write_text("from transformers import BertModel\n\nclass OwnModel(BertModel):\n    pass\n")
    edit(path / "config.json", auto_map={"AutoModel": "modeling_own.OwnModel"}, architectures=["OwnModel"])
    return [path]


def dense_without_pooling(folder: Path) -> Words:
    path = models.sentence_transformer(folder / "m", {"pooling_mode": "mean"}, ("Dense",))
    shutil.rmtree(path / "1_Pooling")
    listed = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([each for each in listed if "Pooling" not in each["type"]]))
    return [path]


def adapter_files(folder: Path, out: Path) -> Path:
    import peft
    import transformers

    base = transformers.AutoModelForSequenceClassification.from_pretrained(models.one_layer("sequence-classification"))
    tuned = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    tuned.save_pretrained(str(out))
    return out


def adapter_beside(folder: Path) -> Words:
    return [adapter_files(folder, copy(folder, "sequence-classification"))]


def adapter_alone(folder: Path) -> Words:
    return [adapter_files(folder, folder / "a")]


def adapter_pickled(folder: Path) -> Words:
    path = adapter_files(folder, folder / "a")
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    return [models.one_layer("sequence-classification"), "--adapter", path]


def adapter_elsewhere(folder: Path) -> Words:
    path = adapter_files(folder, folder / "a")
    edit(path / "adapter_config.json", base_model_name_or_path="/not/here")
    return [path, "--adapter", path]


def adapter_of_a_file(folder: Path) -> Words:
    return [advice.linear(folder / "m.onnx"), "--adapter", adapter_files(folder, folder / "a")]


def quantised_config(folder: Path) -> Words:
    path = copy(folder)
    edit(path / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    return [path]


def encoder_decoder(folder: Path) -> Words:
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 40}
    return [models.save("T5ForConditionalGeneration", "T5Config", small, folder / "m"), "--task", "masked-lm"]


def float_model_given(folder: Path, words: Words, message: str) -> Words:
    return [models.one_layer("features")]


ENCODER = """
import torch, transformers

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = transformers.T5EncoderModel.from_pretrained("{path}")
    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

def make():
    ids = torch.ones(2, 7, dtype=torch.int64)
    dims = ("batch", "length")
    return Encoder().eval(), {"input_ids": ids, "attention_mask": ids}, {"input_ids": dims, "attention_mask": dims}
"""


def factory_written(folder: Path, words: Words, message: str) -> Words:
    """`write a Python factory (package.module:function) that returns its encoder`."""
    name = f"advised_encoder_{folder.name}"
    (folder / f"{name}.py").write_text(ENCODER.replace("{path}", str(folder / "m")))
    return [f"{name}:make"]


def typed(folder: Path, words: Words, message: str) -> Words:
    """Options that the message names are added; one that was given already is given anew."""
    found = advice.options_in(message)
    if "--task" in found and "--task" in words:
        words = [word for at, word in enumerate(words) if word != "--task" and words[at - 1] != "--task"]
    return [*words, *found]


def converted(folder: Path, words: Words, message: str) -> Words:
    """`model.save_pretrained(folder)`."""
    import transformers

    transformers.BertModel.from_pretrained(folder / "m", use_safetensors=False).save_pretrained(folder / "m")
    return words


def architectures_added(folder: Path, words: Words, message: str) -> Words:
    found = re.search(r'add e\.g\. ("architectures": \[[^]]*\])', message)
    assert found
    edit(folder / "m" / "config.json", **json.loads("{" + found[1] + "}"))
    return words


def task_chosen(folder: Path, words: Words, message: str) -> Words:
    """One of the tasks that the message lists, or the one of the encoder alone."""
    assert "--task" in message
    return [words[0], "--task", "features"]


def key_removed(key: str) -> Follow:
    def follow(folder: Path, words: Words, message: str) -> Words:
        assert key in message
        edit(folder / "m" / "config.json", drop=key)
        other = folder / "m" / "other.safetensors"
        if other.exists():  # `rename that file`
            other.rename(folder / "m" / "model.safetensors")
        return words

    return follow


def ports_written(folder: Path, words: Words, message: str) -> Words:
    """`or write {...} into FILE`."""
    found = re.search(r"write (\{.*?\}) into (\S+)", message)
    assert found
    edit(Path(found[2]), **json.loads(found[1]))
    return words


def moved_out(folder: Path, words: Words, message: str) -> Words:
    (folder / "m" / "adapter_config.json").rename(folder / "adapter_config.json")
    return words


def base_given(folder: Path, words: Words, message: str) -> Words:
    """`give a folder of that model as SOURCE, with --adapter FOLDER`."""
    return [models.one_layer("sequence-classification"), *advice.options_in(message)[-2:]]


def checkpoint_given(folder: Path, words: Words, message: str) -> Words:
    assert "a checkpoint's folder" in message
    return [models.one_layer("sequence-classification"), *words[1:]]


# name: (what is refused, the advice in words, how it is followed)
CASES: dict[str, tuple[Callable[[Path], Words], str, Follow]] = {
    "a pickle, allowed": (pickled, "pass --allow-pickle", typed),
    "a pickle, converted": (pickled, "model.save_pretrained(folder) writes safetensors", converted),
    "no architectures": (no_architecture, 'add e.g. "architectures"', architectures_added),
    "a class without a task": (no_task, "choose one with --task", task_chosen),
    "a head that is not there": (another_head, "with --task", task_chosen),
    "no pooling": (no_pooling, "use --task features", typed),
    "a kernel of the hub": (kernel_of_the_hub, "remove the key", key_removed("attn_implementation")),
    "other weights": (other_weights, "rename that file and remove the key", key_removed("transformers_weights")),
    "code of its own": (own_code, "pass --trust-remote-code", typed),
    "Dense without a pooling": (dense_without_pooling, "or write {", ports_written),
    "a quantised checkpoint": (quantised_config, "give the float model", float_model_given),
    "an encoder-decoder": (encoder_decoder, "that returns its encoder", factory_written),
    "an adapter beside its base, merged": (adapter_beside, "pass --adapter", typed),
    "an adapter beside its base, without it": (adapter_beside, "move adapter_config.json out", moved_out),
    "an adapter alone": (adapter_alone, "as well", lambda folder, words, message: [*words, *advice.options_in(message)[:2]]),
    "an adapter alone, on its base": (adapter_alone, "give a folder of that model as SOURCE", base_given),
    "an adapter as a pickle": (adapter_pickled, "--allow-pickle", typed),
    "an adapter whose base is elsewhere": (adapter_elsewhere, "give a folder of the model it was trained on", base_given),
    "an adapter of a file": (adapter_of_a_file, "--adapter is for a checkpoint's folder", checkpoint_given),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_refusal_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, wanted, follow = CASES[name]
    if "adapter" in name:
        pytest.importorskip("peft")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = make(tmp_path)
    message = advice.refusal(*words)
    assert wanted in message
    advice.answers(advice.opened(*follow(tmp_path, words, message)))
