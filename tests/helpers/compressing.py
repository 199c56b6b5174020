"""Tiny encoders of each family that bertc compress cuts, and texts that they take."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import models

SHAPE = {**models.TEXT, "num_hidden_layers": 3, "num_attention_heads": 4}
DISTIL = {**models.DISTIL, "n_layers": 3, "n_heads": 4}
FAMILIES = {
    "bert": ("BertModel", "BertConfig", SHAPE),
    "roberta": ("RobertaModel", "RobertaConfig", {**SHAPE, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", {**SHAPE, "type_vocab_size": 1}),
    "distilbert": ("DistilBertModel", "DistilBertConfig", DISTIL),
    "mpnet": ("MPNetModel", "MPNetConfig", SHAPE),
    "electra": ("ElectraModel", "ElectraConfig", {**SHAPE, "embedding_size": 16}),
}


@functools.cache
def checkpoint(family: str, layers: int = 3) -> Path:
    """The directory of a tiny model of a family."""
    class_name, config_name, config = FAMILIES[family]
    depth = "n_layers" if "n_layers" in config else "num_hidden_layers"
    return models.save(class_name, config_name, {**config, depth: layers}, models.folder() / f"compress-{family}-{layers}")


def opened(path: Path):
    """Its net."""
    from bertc.distill import net_of
    from bertc.source import open_trainable

    return net_of(open_trainable(str(path)), None)


def texts(count: int = 60) -> list[str]:
    drawn = random.Random(0)
    words = models.WORDS[5:]
    return [" ".join(drawn.choices(words, k=drawn.randint(3, 12))) + " ." * (at % 3) for at in range(count)]


def text_file(folder: Path) -> Path:
    path = folder / "texts.txt"
    path.write_text("\n".join(texts()) + "\n", encoding="utf-8")
    return path


def encoded(net):
    from bertc.distill import Example, encode

    return encode([Example(each) for each in texts(24)], net.encoder, lambda done, total: None)


def work_of(net):
    """What a step works on."""
    from bertc.compress.step import Work

    return Work(net, net, tuple(range(len(net.layers))), encoded(net))


def outputs(net):
    """The output of a net on a batch with padding, 0 at padding."""
    import torch

    from bertc.compress.importance import answers
    from bertc.distill import tensors

    with torch.no_grad():
        return answers(net, tensors(encoded(net).batch(range(6)), torch.device("cpu")))[0]
