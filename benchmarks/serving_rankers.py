"""A cross-encoder of MiniLM's size with a seeded head: real weights below, so that texts cost what they cost."""

from __future__ import annotations

from pathlib import Path

import bertc

from .tools import MODEL


def rankers(folder: Path) -> dict[str, Path]:
    """The artifacts of a ranker, padded and packed, built for ONNX Runtime below `folder`."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = folder / "ranker-source"
    AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1).save_pretrained(source)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(source)
    made = {form: folder / f"ranker-{form}" for form in ("padded", "packed")}
    for form, out in made.items():
        bertc.build(str(source), out, precision="fp32", targets=["onnxruntime"], packed=form == "packed")
    return made
