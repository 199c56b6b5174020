"""A student cut out of its teacher: some of its layers, and of their width the parts that weigh most.

What is copied is a start that training needs far less time from than from random numbers (Sanh et al., "DistilBERT", 2019,
section 2, "Student initialization").
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import InputError, Progress
from ..source import heads
from .nets import KEY, QUERY, VALUE, Net, find_layers, projections
from .settings import Settings, layer_numbers

TRIALS = 64  # mappings that a search tries one by one; above, it drops the layer that is missed least, again and again
OUT = ("out_lin", "out_proj", "o_proj", "o")  # what brings heads together again; in a BERT it is attention.output.dense
NOT_BY_LAYER = ("_token_id", "_token_ids", "_tokens", "_words_ids", "architectures")  # lists that are as long by chance
SIZES = {"width": ("hidden_size", "embedding_size", "dim"), "ffn": ("intermediate_size", "hidden_dim")}


@dataclasses.dataclass(frozen=True)
class Cut:
    """A student, the teacher's layers that it has, and what was decided on the way."""

    student: Net
    layers: tuple[int, ...]
    notes: tuple[str, ...] = ()


def cut(teacher: Net, settings: Settings, score: Callable[[Net], float], log: Progress) -> Cut:
    """The student that the settings ask for. `score` says how good an untrained student is, for a search.

    Raises InputError for a shape that the teacher has not, or that bertc cannot cut.
    """
    depth = int(teacher.model.config.num_hidden_layers)
    numbers = layer_numbers(settings.layer_map)
    wanted = settings.layers or (len(numbers) if numbers else depth)
    _check_layers(depth, wanted, numbers, settings.layer_map)
    notes: tuple[str, ...] = ()
    if wanted == depth:
        layers = tuple(range(depth))
    elif numbers:
        layers = numbers
    elif settings.layer_map == "search":
        with log.stage("search layers") as advance:
            layers, tried = _search(teacher, wanted, score, advance)
        notes = (f"layers {', '.join(map(str, layers))}: the best of {tried} students without training",)
    else:
        layers = choose(depth, wanted, settings.layer_map)
    student = keep_layers(teacher, layers)
    if settings.width is not None or settings.ffn is not None:
        student, more = narrow(student, settings.width, settings.ffn)
        notes += more
    return Cut(student, layers, notes)


def _check_layers(depth: int, wanted: int, numbers: Sequence[int] | None, text: str) -> None:
    if wanted > depth:
        raise InputError(f"--layers {wanted} is more than the teacher has: {depth}; give 1 to {depth}")
    if numbers and len(numbers) != wanted:
        raise InputError(f"--layers {wanted} and --layer-map {text} ({len(numbers)} layers) differ; give one of them")
    if numbers and max(numbers) >= depth:
        raise InputError(f"--layer-map {text}: the teacher has the layers 0 to {depth - 1}")


def choose(depth: int, wanted: int, rule: str) -> tuple[int, ...]:
    """even: the last layer of each of `wanted` blocks, so 1, 3, 5 of 6; first or last: so many from that end."""
    if rule == "first":
        return tuple(range(wanted))
    if rule == "last":
        return tuple(range(depth - wanted, depth))
    return tuple((at + 1) * depth // wanted - 1 for at in range(wanted))


def _search(teacher: Net, wanted: int, score: Callable[[Net], float], advance: Any) -> tuple[tuple[int, ...], int]:
    """The layers whose student is closest to the teacher without training: all choices, or greedily where they are many."""
    depth = int(teacher.model.config.num_hidden_layers)
    tried: dict[tuple[int, ...], float] = {}
    count = math.comb(depth, wanted)
    exhaustive = count <= TRIALS
    total = count if exhaustive else sum(range(wanted + 1, depth + 1))

    def measured(layers: tuple[int, ...]) -> float:
        if layers not in tried:
            tried[layers] = score(keep_layers(teacher, layers))
            advance(len(tried), total)
        return tried[layers]

    if exhaustive:
        return max(itertools.combinations(range(depth), wanted), key=measured), count
    kept = tuple(range(depth))
    while len(kept) > wanted:
        kept = max((tuple(each for each in kept if each != out) for out in kept), key=measured)
    return kept, len(tried)


def keep_layers(net: Net, layers: Sequence[int]) -> Net:
    """A copy with these of its layers alone, in order."""
    module = copy.deepcopy(net.module)
    model: Any = module.model
    config, depth = model.config, int(model.config.num_hidden_layers)
    if len(layers) == depth:
        return Net(module, net.origin, net.encoder)
    name, found = find_layers(model)
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.ModuleList(found[at] for at in layers))
    config.num_hidden_layers = len(layers)
    for key, value in vars(config).items():
        by_layer = not key.endswith(NOT_BY_LAYER) and not key.startswith("conv_")
        if by_layer and isinstance(value, list | tuple) and len(value) == depth:  # as ModernBERT's layer_types
            setattr(config, key, [value[at] for at in layers])
    return Net(module, net.origin, net.encoder)


# ---- width -----------------------------------------------------------------------------------------------------------


def narrow(net: Net, width: int | None, ffn: int | None) -> tuple[Net, tuple[str, ...]]:
    """A copy that is narrower: of hidden states, heads and FFN neurons those of the largest weights. Heads keep their size.

    A sentence embedding gets a linear module behind its pooling, back to the teacher's width: indexes of vectors stay of use.
    """
    old: Any = net.model
    head = net.width // net.heads
    width, ffn = width or net.width, ffn or net.ffn
    _check_width(net, width, ffn, head)
    config = copy.deepcopy(old.config)
    for kind, size in (("width", width), ("ffn", ffn)):
        for name in SIZES[kind]:
            if hasattr(config, name) and getattr(config, name) == (net.width if kind == "width" else net.ffn):
                setattr(config, name, size)
    config.num_attention_heads = width // head
    extra = {"add_pooling_layer": False} if getattr(old, "pooler", 0) is None else {}
    new: Any = type(old)(config, **extra).eval()
    kept = _Kept(net, width, ffn, head)
    _copy_sliced(old, new, kept)
    module = copy.copy(net.module)
    module._modules = {**net.module._modules, "model": new}
    module = copy.deepcopy(module)
    notes = _fit_after(module, net, kept.hidden) if width != net.width else ()
    return Net(module, net.origin, net.encoder), notes


def _check_width(net: Net, width: int, ffn: int, head: int) -> None:
    if not 0 < width <= net.width or width % head:
        raise InputError(f"--width {width}: it is a multiple of the size of a head ({head}), at most the teacher's {net.width}")
    if not 0 < ffn <= net.ffn:
        raise InputError(f"--ffn {ffn}: it is at most the teacher's {net.ffn}")
    for layer in net.layers:
        projections(layer)


class _Kept:
    """Which hidden dimensions, heads (by layer) and FFN neurons (by layer) stay, as indices in rising order."""

    def __init__(self, net: Net, width: int, ffn: int, head: int) -> None:
        self.width, self.ffn = net.width, net.ffn
        table = net.model.get_input_embeddings().weight.detach()
        energy = table.float().pow(2).mean(0) if table.shape[1] == net.width else torch.ones(net.width)
        self.hidden = _top(energy, width)
        self.heads: dict[int, Tensor] = {}
        self.neurons: dict[int, Tensor] = {}
        for at, layer in enumerate(net.layers):
            value = projections(layer)["value"].weight.detach().float()
            best = _top(value.pow(2).sum(1).view(-1, head).sum(1), width // head)
            self.heads[at] = (best[:, None] * head + torch.arange(head)).flatten()
            wide = [m for m in layer.modules() if isinstance(m, nn.Linear) and m.out_features == self.ffn != m.in_features]
            strength = wide[0].weight.detach().float().pow(2).sum(1) if wide else torch.ones(self.ffn)
            self.neurons[at] = _top(strength, ffn)


def _top(strength: Tensor, count: int) -> Tensor:
    return strength.topk(count).indices.sort().values


def _copy_sliced(old: Any, new: Any, kept: _Kept) -> None:
    """Each tensor of the narrow model from the wide one's, cut along the axes that differ."""
    name = find_layers(old)[0] + "."
    state = {}
    for key, target in new.state_dict().items():
        value = old.state_dict()[key]
        layer = int(key.removeprefix(name).partition(".")[0]) if key.startswith(name) else None
        for axis, (have, want) in enumerate(zip(value.shape, target.shape, strict=True)):
            if have != want:
                value = value.index_select(axis, _indices(key, axis, have, layer, kept))
        state[key] = value.clone()
    new.load_state_dict(state)


def _indices(key: str, axis: int, size: int, layer: int | None, kept: _Kept) -> Tensor:
    parts = key.split(".")
    owner = parts[-2] if len(parts) > 1 else ""
    brings_together = owner in OUT or "attention.output.dense" in key
    if layer is not None and size == kept.width and axis == 0 and owner in (*QUERY, *KEY, *VALUE):
        return kept.heads[layer]
    if layer is not None and size == kept.width and axis == 1 and brings_together:
        return kept.heads[layer]
    if size == kept.width:
        return kept.hidden
    if layer is not None and size == kept.ffn:
        return kept.neurons[layer]
    raise InputError(f"bertc cannot cut the width of {key} ({size} along axis {axis}); leave --width and --ffn out")


def _fit_after(module: Any, net: Net, hidden: Tensor) -> tuple[str, ...]:
    """What follows a narrower encoder: a linear module that puts its dimensions where the teacher has them."""
    if net.task != "sentence-embedding":
        return ()
    modes = getattr(module.pooling, "modes", ())
    if len(modes) != 1 or len(module.tokens):
        raise InputError("--width needs a sentence embedding that pools in one way, straight behind its encoder; leave it out")
    linear = nn.Linear(len(hidden), net.width, bias=False)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[hidden, torch.arange(len(hidden))] = 1.0
    module.after.insert(0, heads.Dense(linear, nn.Identity(), None))
    return (f"a linear module brings the student's {len(hidden)} dimensions to the teacher's {net.width}",)
