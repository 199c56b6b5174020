"""Where a layer's heads and neurons are: the four matrices of its attention and the two of its feed-forward network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import InputError
from ..distill import Net, find_layers

BERT = ("attention.self", "query key value", "attention.output.dense", "intermediate.dense", "output.dense")
DISTILBERT = ("attention", "q_lin k_lin v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2")
MPNET = ("attention.attn", "q k v", "attention.attn.o", "intermediate.dense", "output.dense")
# By model_type: the module of self-attention, its three projections, what brings heads together, first and second FFN matrix.
FAMILIES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), BERT),
    "distilbert": DISTILBERT,
    "mpnet": MPNET,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The names of one layer's modules in it."""

    layer: nn.Module
    attention: str
    projections: tuple[str, ...]
    together: str
    first: str
    second: str

    def get(self, name: str) -> Any:
        return self.layer.get_submodule(name)

    def set(self, name: str, module: nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        setattr(self.layer.get_submodule(parent), last, module)

    @property
    def inner(self) -> Any:
        """The module of self-attention; of MPNet with fewer heads it is inside of what picks their bias."""
        found = self.get(self.attention)
        return getattr(found, "inner", found)

    @property
    def head_size(self) -> int:
        return int(self.inner.attention_head_size)

    @property
    def heads(self) -> int:
        return width_of(self.get(self.projections[0]))[1] // self.head_size

    @property
    def neurons(self) -> int:
        return width_of(self.get(self.first))[1]


def parts_of(net: Net) -> tuple[Parts, ...]:
    """The parts of every layer."""
    attention, projections, together, first, second = FAMILIES[net.model.config.model_type]
    made = []
    for layer in net.layers:
        inside = f"{attention}.inner" if hasattr(layer.get_submodule(attention), "inner") else attention
        names = tuple(f"{inside}.{name}" for name in projections.split())
        made.append(Parts(layer, attention, names, together.replace(f"{attention}.", f"{inside}."), first, second))
    return tuple(made)


def check_family(net: Net) -> None:
    """InputError for a model that bertc cannot cut so: a decoder, a family that it does not know, layers that are shared."""
    config, name = net.model.config, type(net.model).__name__
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise InputError(f"{name} is a decoder, or has one; bertc compress cuts encoders: {', '.join(FAMILIES)}")
    if config.model_type not in FAMILIES:
        raise InputError(f"{name} ({config.model_type}) is of a family that is not cut here; known: {', '.join(FAMILIES)}")
    find_layers(net.model)
    for parts in parts_of(net):
        for each in (*parts.projections, parts.together, parts.first, parts.second):
            if not isinstance(parts.get(each), nn.Linear):
                raise InputError(
                    f"{name}: {each} of a layer is a {type(parts.get(each)).__name__}, not a Linear; bertc compress takes plain "
                    "weights: merge adapters, and give a checkpoint that is not quantised"
                )


def width_of(module: Any) -> tuple[int, int]:
    """(columns in, columns out) of a Linear, or of two that stand for one."""
    ends: tuple[Any, Any] = (module[0], module[-1]) if isinstance(module, nn.Sequential) else (module, module)
    return int(ends[0].in_features), int(ends[1].out_features)


def rows_kept(linear: nn.Linear, rows: Tensor) -> nn.Linear:
    """The same with some of its outputs."""
    bias = None if linear.bias is None else linear.bias.detach()[rows]
    return linear_of(linear.weight.detach()[rows], bias)


def columns_kept(linear: nn.Linear, columns: Tensor) -> nn.Linear:
    """The same with some of its inputs."""
    return linear_of(linear.weight.detach()[:, columns], None if linear.bias is None else linear.bias.detach())


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear of these numbers."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made.eval()


def rounded(wanted: float, whole: int, multiple: int, what: str) -> tuple[int, str]:
    """(the multiple nearest to `wanted`, at least one, what rounding did). InputError where that leaves everything."""
    fitting = multiple if multiple < whole else 1
    count = min(whole, max(fitting, round(wanted / fitting) * fitting))
    if count >= whole:
        raise InputError(
            f"{what}: {wanted:g} of {whole} rounds to {count}, a multiple of {fitting}: nothing would go; take more out, or give "
            "--multiple a smaller number"
        )
    notes = []
    if fitting != multiple:
        notes.append(f"{what}: {whole} is no more than the multiple {multiple}, so nothing is rounded to it")
    if count != wanted:
        notes.append(f"{what}: {wanted:g} wanted, {count} kept, a multiple of {fitting}")
    return count, "; ".join(notes)


def all_the_same(values: Sequence[int]) -> bool:
    return len(set(values)) == 1
