"""All layers folded into one, as ALBERT has them (Lan et al., 2020, section 3.1): its weights are stored once, and run as often.

No FLOPs and no kernels are saved, bytes are. Folding alone leaves little of the model: it has to learn again (--recover).
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..core import InputError, Progress, silent
from ..distill import Net, find_layers
from .importance import change
from .step import Step, Work

NOTE = (
    "shared layers: a Hugging Face config cannot say that layers are one, so model.safetensors repeats them; what bertc builds "
    "of it stores each weight once"
)


def require_several(depth: int) -> None:
    """InputError for a model of one layer."""
    if depth < 2:
        raise InputError("--share-layers: the model has one layer, which shares with none; leave it out")


def share(work: Work, rule: str, log: Progress) -> Step:
    """Fold the layers into one: their mean, or the one of them that changes the output least; `best` tries all of these."""
    depth = len(work.net.layers)
    require_several(depth)
    each: list[str | int] = list(range(depth))
    choices: dict[str, list[str | int]] = {"mean": ["mean"], "one": each, "best": ["mean", *each]}
    names = choices[rule]
    notes = []
    if not _alike(work.net) and "mean" in names:
        if rule == "mean":
            raise InputError("--share-layers mean: layers of different shapes (heads, ranks) have no mean; give one")
        names.remove("mean")
        notes.append("shared layers: the layers differ in their shapes, so their mean was not tried")
    with log.stage("fold layers") as advance:
        changes = {}
        for at, name in enumerate(names):
            changes[str(name)] = change(folded(work.net, name), work.original, work.encoded, silent)
            advance(at + 1, len(names))
    best = min(names, key=lambda name: changes[str(name)])
    what = "the mean of all" if best == "mean" else f"layer {best}"
    said = f"{depth} layers are one: {what}"
    return Step("share_layers", folded(work.net, best), said, {"of": best, "changes": changes}, work.layers, notes=(*notes, NOTE))


def folded(net: Net, name: str | int) -> Net:
    """A copy in which every layer is the same module."""
    made = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    layers = made.layers
    one = layers[0 if name == "mean" else int(name)]
    if name == "mean":
        with torch.no_grad():
            for target, *values in zip(*(each.parameters() for each in (one, *layers)), strict=True):
                target.copy_(torch.stack([value.detach().clone() for value in values]).mean(0))
    _replace(made, [one] * len(layers))
    return made


def apart(net: Net) -> Net:
    """A copy whose layers are modules of their own again, with equal weights: what a file of weights can hold."""
    made = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    _replace(made, [copy.deepcopy(each) for each in made.layers])
    return made


def _replace(net: Net, layers: list[nn.Module]) -> None:
    name, _ = find_layers(net.model)
    parent, _, last = name.rpartition(".")
    setattr(net.model.get_submodule(parent), last, nn.ModuleList(layers))


def is_shared(net: Net) -> bool:
    """Whether layers are one module."""
    return len({id(each) for each in net.layers}) < len(net.layers)


def _alike(net: Net) -> bool:
    shapes = [[tuple(each.shape) for each in layer.parameters()] for layer in net.layers]
    return all(each == shapes[0] for each in shapes)
