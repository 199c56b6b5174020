"""How much a model's output changes when a head, a neuron or a layer goes, measured on texts.

Against its own output a model has a loss of 0 and no gradient, so the first order of the loss (Michel et al., "Are Sixteen Heads
Really Better than One?", 2019, section 4.1) says nothing without labels. Here the output itself is expanded: without a part
with activation a it moves by about J a, and |J a|^2 is the mean of (r.J a)^2 over random signs r (Hutchinson, 1990): the squared
first-order score of Molchanov et al. ("Importance Estimation for Neural Network Pruning", 2019, equation 8), of outputs in
place of a loss. It needs a backward pass for each r, and parts of all layers are told in one unit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Advance
from ..distill import Encoded, Net, tensors

AT_ONCE = 32  # texts
PROBES = 4  # random signs a batch
CPU = torch.device("cpu")


@dataclasses.dataclass
class Moments:
    """Mean and covariance of the inputs of a Linear over all tokens, as sums."""

    count: float = 0.0
    total: Tensor | None = None
    products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = rows.double()
        total, products = rows.sum(0), rows.T @ rows
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products
        self.count += len(rows)

    def mean(self) -> Tensor:
        assert self.total is not None, "no token was seen"
        return self.total / self.count

    def covariance(self) -> Tensor:
        assert self.products is not None, "no token was seen"
        return self.products / self.count - torch.outer(self.mean(), self.mean())


def batches(encoded: Encoded, advance: Advance) -> Iterator[dict[str, Tensor]]:
    """All texts by length, little padding."""
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), AT_ONCE):
        yield tensors(encoded.batch(order[start : start + AT_ONCE].tolist()), CPU)
        advance(min(start + AT_ONCE, len(order)), len(order))


def answers(net: Net, feeds: dict[str, Tensor]) -> list[Tensor]:
    """What is compared: the outputs in float32, 0 at padding; of a masked LM its last hidden states, which its head only maps."""
    if net.task == "masked-lm":
        last = len(net.layers) - 1
        found: Any = (net.run(feeds, (last,)).hidden[last],)
    else:
        output = net.run(feeds).output
        found = output if isinstance(output, tuple) else (output,)
    shape = feeds["attention_mask"].shape
    return [_without_padding(each.float(), feeds["attention_mask"].float(), shape) for each in found]


def _without_padding(value: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    by_token = value.ndim == 3 or (value.ndim == 2 and value.shape == shape)
    return value * mask.view(*shape, *(1,) * (value.ndim - 2)) if by_token else value


def taylor(net: Net, encoded: Encoded, places: Sequence[nn.Linear], seed: int, advance: Advance) -> list[Tensor]:
    """For each of some Linear modules a table [texts x probes, inputs] of r.J a, summed over the tokens of a text.

    What a group of inputs is worth is the mean square of the sum of its columns (`worth`).
    """
    random = torch.Generator().manual_seed(seed)
    kept: list[list[Tensor]] = [[] for _ in places]
    before = [(each, each.requires_grad) for each in net.module.parameters()]
    net.module.requires_grad_(True)
    with _inputs_of(places) as seen:
        for feeds in batches(encoded, advance):
            seen.clear()
            found = answers(net, feeds)
            entering = [seen[at] for at in range(len(places))]
            for probe in range(PROBES):
                signs = [torch.randint(0, 2, each.shape, generator=random).mul(2).sub(1).float() for each in found]
                aim = torch.stack([(sign * each).sum() for sign, each in zip(signs, found, strict=True)]).sum()
                slopes = torch.autograd.grad(aim, entering, retain_graph=probe < PROBES - 1)
                for table, value, slope in zip(kept, entering, slopes, strict=True):
                    table.append((value * slope).detach().flatten(1, -2).sum(1))
    for each, wanted in before:
        each.requires_grad_(wanted)
    return [torch.cat(table) for table in kept]


def worth(table: Tensor, group: int = 1) -> Tensor:
    """The mean square of each group of `group` columns in a row: of a head all its columns, of a neuron its own."""
    return table.view(len(table), -1, group).sum(2).double().pow(2).mean(0)


@torch.no_grad()
def moments(net: Net, encoded: Encoded, places: Sequence[nn.Linear], advance: Advance) -> list[Moments]:
    """Mean and covariance of what enters some Linear modules, without padding."""
    found = [Moments() for _ in places]
    with _inputs_of(places) as seen:
        for feeds in batches(encoded, advance):
            seen.clear()
            net.run(feeds)
            real = feeds["attention_mask"].bool()
            for at, each in enumerate(found):
                each.add(seen[at][real])
    return found


@torch.no_grad()
def change(net: Net, original: Net, encoded: Encoded, advance: Advance) -> float:
    """How far the outputs of two models are apart: the mean square of their difference over that of the original's output."""
    apart = whole = 0.0
    for feeds in batches(encoded, advance):
        for one, other in zip(answers(net, feeds), answers(original, feeds), strict=True):
            apart += float((one - other).double().pow(2).sum())
            whole += float(other.double().pow(2).sum())
    return apart / max(whole, 1e-300)


@contextlib.contextmanager
def _inputs_of(places: Sequence[nn.Linear]) -> Iterator[dict[int, Tensor]]:
    seen: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[at] = inputs[0]

        return hook

    handles = [each.register_forward_pre_hook(keep(at)) for at, each in enumerate(places)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
