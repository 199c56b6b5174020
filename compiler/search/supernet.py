"""One network whose parts are all candidates: it is trained once, and a candidate runs on its slice of the weights.

Heads and neurons are sorted by their importance, so the first ones are those that a narrow candidate has: the rewiring of Hou et
al., "DynaBERT: Dynamic BERT with Adaptive Width and Depth", 2020, section 2.1. Weights are shared as in Cai et al.,
"Once-for-All: Train One Network and Specialize it for Efficient Deployment", 2020, section 3.2, layers are left out as in Fan et
al., "Reducing Transformer Depth on Demand with Structured Dropout", 2020, section 3.1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compress import ffn, heads, importance, parts
from ..core import Progress
from ..distill import Encoded, Net, find_layers, keep_layers
from .space import Candidate, Space


class Sliced(nn.Linear):
    """A Linear that can be told to use its first rows and columns alone."""

    rows: int | None = None
    columns: int | None = None

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias[: self.rows]
        return F.linear(input, self.weight[: self.rows, : self.columns], bias)


def supernet_of(net: Net, space: Space, encoded: Encoded, seed: int, log: Progress) -> Net:
    """A copy with heads and neurons sorted, the most important first, that `active` can narrow. It computes what `net` does."""
    found = parts.parts_of(net)
    with log.stage("importance of heads and neurons") as advance:
        places = [each.get(each.second) for each in found] + [each.get(each.together) for each in found]
        tables = importance.taylor(net, encoded, places, seed, advance)
    orders = [importance.worth(table).argsort(descending=True, stable=True) for table in tables[: len(found)]]
    made = ffn.with_neurons(net, orders)
    for each, table in zip(parts.parts_of(made), tables[len(found) :], strict=True):
        if len(space.heads) > 1:
            _sort_heads(each, importance.worth(table, each.head_size).argsort(descending=True, stable=True))
        for name in _sliced(each):
            each.get(name).__class__ = Sliced  # the same parameters under the same names
    return made


def _sort_heads(each: parts.Parts, order: Tensor) -> None:
    rows = (order[:, None] * each.head_size + torch.arange(each.head_size)).flatten()
    for name in each.projections:
        each.set(name, parts.rows_kept(each.get(name), rows))
    each.set(each.together, parts.columns_kept(each.get(each.together), rows))


def _sliced(each: parts.Parts) -> tuple[str, ...]:
    return (*each.projections, each.together, each.first, each.second)


@contextlib.contextmanager
def active(net: Net, candidate: Candidate) -> Iterator[None]:
    """In the block the network is this candidate; its parameters stay where they are, and gradients reach the slices."""
    name, layers = find_layers(net.model)
    found = parts.parts_of(net)
    owner, _, last = name.rpartition(".")
    config, depth = net.model.config, len(layers)
    for at, count, neurons in zip(candidate.layers, candidate.heads, candidate.ffn, strict=True):
        _narrow(found[at], count * found[at].head_size, neurons)
    setattr(net.model.get_submodule(owner), last, nn.ModuleList(layers[at] for at in candidate.layers))
    config.num_hidden_layers = len(candidate.layers)
    try:
        yield
    finally:
        setattr(net.model.get_submodule(owner), last, layers)
        config.num_hidden_layers = depth
        for each in found:
            _narrow(each, None, None)


def _narrow(each: parts.Parts, width: int | None, neurons: int | None) -> None:
    for name in each.projections:
        each.get(name).rows = width
    each.get(each.together).columns = width
    each.get(each.first).rows = neurons
    each.get(each.second).columns = neurons


def cut_out(net: Net, candidate: Candidate) -> Net:
    """A candidate as a net of its own, of plain modules: what is trained on, exported and written."""
    made = keep_layers(net, candidate.layers)
    for each in parts.parts_of(made):
        for name in _sliced(each):
            each.get(name).__class__ = nn.Linear
    made = ffn.with_neurons(made, [torch.arange(count) for count in candidate.ffn])
    return heads.with_heads(made, [torch.arange(count) for count in candidate.heads])
