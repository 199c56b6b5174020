"""An encoder that teaches or learns: the module that `bertc build` exports, and what its layers compute on the way."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import InputError
from ..data import Encoder
from ..source import Trainable

QUERY, KEY, VALUE = ("query", "q_lin", "q_proj", "q"), ("key", "k_lin", "k_proj", "k"), ("value", "v_lin", "v_proj", "v")
DEFAULT_LENGTH = 128


@dataclasses.dataclass
class Seen:
    """What one batch gave: the output, and by layer what was asked for."""

    output: Any = None
    entering: Tensor | None = None
    hidden: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    projected: dict[tuple[int, str], Tensor] = dataclasses.field(default_factory=dict)  # (layer, query | key | value)


@dataclasses.dataclass
class Net:
    """`module` is the transformers model with its pooling or head; `origin` is the checkpoint that it comes from."""

    module: nn.Module
    origin: Trainable
    encoder: Encoder

    @property
    def model(self) -> Any:
        return self.module.model

    @property
    def task(self) -> str:
        return self.origin.task

    @property
    def layers(self) -> nn.ModuleList:
        return find_layers(self.model)[1]

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def ffn(self) -> int:
        """Neurons of a feed-forward network; DistilBERT has its own name for them."""
        config = self.model.config
        return int(getattr(config, "intermediate_size", None) or config.hidden_dim)

    @property
    def heads(self) -> int:
        return int(self.model.config.num_attention_heads)

    def run(self, feeds: Mapping[str, Tensor], hidden: tuple[int, ...] = (), projected: tuple[int, ...] = ()) -> Seen:
        """The output (one tensor, or a tuple), the hidden states behind the layers `hidden` (-1: what enters the first), and
        queries, keys and values of the layers `projected`."""
        seen = Seen()
        with _taps(self, seen, hidden, projected):
            seen.output = self.module(**{name: feeds[name] for name in self.origin.inputs})
        return seen


def net_of(origin: Trainable, max_length: int | None) -> Net:
    """The net of an opened checkpoint, with its tokenizer; texts are cut at `max_length` or at the model's own limit."""
    if "tokenizer.json" not in origin.assets:
        raise InputError(
            f"{origin.root} has no tokenizer.json; save it with AutoTokenizer.from_pretrained(MODEL).save_pretrained"
        )
    rows = getattr(origin.model.config, "vocab_size", None)
    encoder = Encoder.from_files(origin.assets, max_length or DEFAULT_LENGTH, origin.inputs, rows)
    limit = getattr(origin.model.config, "max_position_embeddings", None)
    if limit and (encoder.max_length or 0) > limit:
        encoder = dataclasses.replace(encoder, max_length=limit)
    return Net(origin.module, origin, encoder)


def find_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of layers in a transformers model, with its name. InputError where there is none that can be cut."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise InputError(
        f"{type(model).__name__} has no list of {depth} layers of its own (layers that are shared, or in groups): bertc cannot "
        "cut it, or look between its layers. Distil another teacher, or keep its layers and the losses of its output"
    )


def copied(net: Net) -> Net:
    return Net(copy.deepcopy(net.module), net.origin, net.encoder)


def tensors(feeds: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in feeds.items()}


def projections(layer: nn.Module) -> dict[str, nn.Linear]:
    """The three linear modules that make queries, keys and values. InputError where a layer has them in one."""
    found: dict[str, nn.Linear] = {}
    for name, module in layer.named_modules():
        last = name.rpartition(".")[2]
        for role, names in (("query", QUERY), ("key", KEY), ("value", VALUE)):
            if isinstance(module, nn.Linear) and last in names:
                found.setdefault(role, module)
    if len(found) < 3:
        raise InputError(
            f"{type(layer).__name__} has no modules of its own for queries, keys and values (they may be one): no loss of "
            "attention or relations, and no other width; use --loss hidden, or the losses of the output"
        )
    return found


@contextlib.contextmanager
def _taps(net: Net, seen: Seen, hidden: tuple[int, ...], projected: tuple[int, ...]) -> Iterator[None]:
    handles: list[Any] = []

    def keep_hidden(at: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.hidden[at] = output[0] if isinstance(output, tuple) else output

        return hook

    def keep_entering(module: nn.Module, inputs: Any, named: Any) -> None:
        seen.entering = inputs[0] if inputs else named["hidden_states"]

    def keep_projected(at: int, role: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen.projected[at, role] = output

        return hook

    try:
        for at in hidden:
            if at < 0:
                handles.append(net.layers[0].register_forward_pre_hook(keep_entering, with_kwargs=True))
            else:
                handles.append(net.layers[at].register_forward_hook(keep_hidden(at)))
        for at in projected:
            handles += [m.register_forward_hook(keep_projected(at, role)) for role, m in projections(net.layers[at]).items()]
        yield
    finally:
        for handle in handles:
            handle.remove()
