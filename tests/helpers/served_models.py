"""Small artifacts of real checkpoints, for what stands around them: a sentence embedding with prompts, and classifiers."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import models

import bertc


@functools.cache
def embedder() -> tuple[Path, Path]:
    """(the sentence-transformers folder, its artifact): mean pooling, normalised, prompts of which one is the default."""
    source = models.sentence_transformer(models.folder() / "served-embedder", {"pooling_mode_mean_tokens": True}, ("Normalize",))
    words = " ".join(models.WORDS[5:8]) + " "
    settings = {"prompts": {"query": words, "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return source, built(source)


@functools.cache
def classifier(problem: str) -> tuple[Path, Path]:
    """(the checkpoint, its artifact) of a classifier of a `problem_type` ("": none is said), three classes with names."""
    more = {"problem_type": problem} if problem else {}
    names = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
    class_name, config_name, config = models.MODELS["sequence-classification"]
    path = models.folder() / f"served-classifier-{problem}"
    models.save(class_name, config_name, {**config, "num_hidden_layers": 1, **names, **more}, path)
    return path, built(path)


def built(source: Path) -> Path:
    """The artifact of a source for ONNX Runtime, made without the slower proofs: they are not what is asked."""
    out = models.folder() / f"{source.name}-artifact"
    bertc.build(source, out, targets=["onnxruntime"], prove=False)
    return out


def texts(count: int, longest: int = 20, seed: int = 3) -> list[str]:
    """Texts of different lengths over the words of `models.tokenizer`."""
    import numpy as np

    rng = np.random.default_rng(seed)
    words = models.WORDS[5:]
    return [" ".join(rng.choice(words, int(rng.integers(1, longest)))) for _ in range(count)]
