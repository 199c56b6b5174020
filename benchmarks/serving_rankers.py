"""A cross-encoder of MiniLM's size with a seeded head: real weights below, so that texts cost what they cost."""

from __future__ import annotations

from pathlib import Path

import bertc

from .tools import MODEL


def ranker(folder: Path) -> Path:
    """The artifact of a ranker, built for ONNX Runtime below `folder`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = folder / "ranker-source"
    AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1).save_pretrained(source)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(source)
    bertc.build(str(source), folder / "ranker", precision="fp32", targets=["onnxruntime"], packed=True)
    return folder / "ranker"
