"""Tiny teachers of four layers, texts in their few words, and a distillation of seconds."""

from __future__ import annotations

import functools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import models

DEPTH = 4
SENTENCES = 200
QUICK = {"layers": 2, "steps": 60, "batch": 32, "learning_rate": 3e-3, "precision": "fp32", "evaluations": 3}


@functools.cache
def encoder(name: str = "features") -> Path:
    """A checkpoint of one of models.MODELS with four layers."""
    class_name, config_name, config = models.MODELS[name]
    depth = "n_layers" if "n_layers" in config else "num_hidden_layers"
    return models.save(class_name, config_name, {**config, depth: DEPTH}, models.folder() / f"{name}-{DEPTH}")


@functools.cache
def teacher() -> Path:
    """A sentence-transformers directory around the four layers: mean pooling, vectors of length 1."""
    path = models.folder() / "teacher"
    return models.sentence_transformer(path, {"pooling_mode_mean_tokens": True}, ["Normalize"], encoder())


@functools.cache
def reranker() -> Path:
    """A cross-encoder: one label."""
    class_name, config_name, config = models.MODELS["sequence-classification"]
    return models.save(class_name, config_name, {**config, "num_labels": 1}, models.folder() / "reranker")


def copy_of(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def sentences(count: int = SENTENCES, seed: int = 0) -> list[str]:
    """Different sentences of the tokenizer's words."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(draw.choices(models.WORDS[5:], k=draw.randint(3, 12)))] = None
    return list(found)


def text_file(path: Path, count: int = SENTENCES) -> Path:
    path.write_text("\n".join(sentences(count)) + "\n", encoding="utf-8")
    return path


def rows_file(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def value(document: dict[str, Any], which: str, name: str) -> float:
    """A measure of distillation.json."""
    return next(each["value"] for each in document["quality"][which] if each["name"] == name)
