"""Layers that go: those whose absence changes the output least, by trying it on texts.

Sajjad et al. ("On the Effect of Dropping Layers of Pre-trained Transformer Models", 2020) drop by position; here the effect
is measured, all choices where they are few and one layer after another where they are many (distill's search).
"""

from __future__ import annotations

from ..core import InputError, Progress, silent
from ..distill import Net, Settings, cut
from .importance import change
from .step import Step, Work


def require_layers(depth: int, count: int) -> None:
    """InputError where no layer would be left."""
    if count >= depth:
        raise InputError(f"--drop-layers {count}: the model has {depth}, and one has to stay; give 1 to {depth - 1}")


def drop(work: Work, count: int, log: Progress) -> Step:
    """Leave `count` layers out."""
    depth = len(work.net.layers)
    require_layers(depth, count)

    def score(student: Net) -> float:
        return -change(student, work.original, work.encoded, silent)

    found = cut(work.net, Settings(layers=depth - count, layer_map="search"), score, log)
    gone = tuple(each for each in range(depth) if each not in found.layers)
    said = f"layers {', '.join(map(str, gone))} of {depth} left out"
    kept = tuple(work.layers[at] for at in found.layers)
    return Step("drop_layers", found.student, said, {"gone": gone, "kept": found.layers}, kept, notes=found.notes)
