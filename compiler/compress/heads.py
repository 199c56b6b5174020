"""Attention heads that go, wherever they are missed least: layers then have different numbers of them.

Importance: importance.py (Michel et al., 2019; Molchanov et al., 2019). A head is `head size` inputs of the matrix that brings
heads together; without it the model is the one in which it gives 0. (transformers 5 no longer has prune_heads.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import InputError, Progress
from ..distill import Net
from .importance import taylor, worth
from .parts import Parts, all_the_same, columns_kept, parts_of, rows_kept
from .step import Step, Work

COUNTS = ("num_attention_heads", "n_heads")
WIDTHS = ("all_head_size", "dim")


class HeadsOfBias(nn.Module):
    """MPNet's attention with fewer heads: the bias of positions, made once for all layers, has a row for every head."""

    kept: Tensor

    def __init__(self, inner: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("kept", kept)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, position_bias: Tensor | None, **more: Any) -> Any:
        bias = None if position_bias is None else position_bias.index_select(1, self.kept)
        return self.inner(hidden_states, attention_mask, bias, **more)


def prune(work: Work, share: float, multiple: int, log: Progress) -> Step:
    """Take `share` of all heads out, in groups that keep the width of each layer a multiple of `multiple`."""
    parts = parts_of(work.net)
    group, total, note = group_of(parts, share, multiple)
    with log.stage("importance of heads") as advance:
        tables = taylor(work.net, work.encoded, [each.get(each.together) for each in parts], work.seed, advance)
    scores = [worth(table, each.head_size) for table, each in zip(tables, parts, strict=True)]
    kept = choose(scores, share * total, group)
    left = sum(map(len, kept))
    notes = [note] if note else []
    if total - left != share * total:
        notes.append(f"heads: {share * total:g} of {total} wanted, {total - left} taken out, in groups of {group} a layer")
    counts = [len(each) for each in kept]
    said = f"{total - left} of {total} heads out, by layer {', '.join(map(str, counts))} left"
    facts = {"before": [len(each) for each in scores], "after": counts, "kept": [each.tolist() for each in kept]}
    return Step("prune_heads", with_heads(work.net, kept), said, facts, work.layers, uniform=False, notes=tuple(notes))


def group_of(parts: Sequence[Parts], share: float, multiple: int) -> tuple[int, int, str]:
    """(how many heads go together, all heads, why no more go together): what is left in a layer is a multiple of `multiple` wide.

    InputError where none would go, or more than can.
    """
    size, heads = parts[0].head_size, parts[0].heads
    group, note = multiple // math.gcd(multiple, size), ""
    if heads % group or group >= heads:
        group, note = 1, f"heads: {heads} of {size} cannot stay a multiple of {multiple} wide in groups, so they go one by one"
    total = sum(each.heads for each in parts)
    wanted, most = share * total, total - group * len(parts)
    if round(wanted / group) < 1:
        raise InputError(
            f"--prune-heads {share:g}: {wanted:g} of {total} heads, in groups of {group}, is none; take more out, or give "
            "--multiple a smaller number"
        )
    if round(wanted / group) * group > most:
        raise InputError(
            f"--prune-heads {share:g}: {wanted:g} of {total} heads are more than can go: each layer keeps {group}; "
            f"take out {math.floor(1000 * most / total) / 1000} at most"
        )
    return group, total, note


def choose(scores: Sequence[Tensor], gone: float, group: int) -> list[Tensor]:
    """The heads that stay in each layer: groups of the least worth go first, and a layer keeps its best one."""
    groups = []
    for layer, score in enumerate(scores):
        order = torch.split(score.argsort(stable=True), group)
        groups += [(float(score[heads].sum()), layer, heads) for heads in order[:-1]]
    groups.sort(key=lambda each: each[:2])
    out: list[list[Tensor]] = [[] for _ in scores]
    for _, layer, heads in groups[: round(gone / group)]:
        out[layer].append(heads)
    everything = [torch.arange(len(score)) for score in scores]
    return [a[~torch.isin(a, torch.cat(o))] if o else a for a, o in zip(everything, out, strict=True)]


def with_heads(net: Net, kept: Sequence[Tensor]) -> Net:
    """A copy that has these heads alone, by layer."""
    made = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    for parts, heads in zip(parts_of(made), kept, strict=True):
        if len(heads) < parts.heads:
            _shrink(parts, heads, made.model.config.model_type)
    return made


def _shrink(parts: Parts, heads: Tensor, family: str) -> None:
    size = parts.head_size
    rows = (heads[:, None] * size + torch.arange(size)).flatten()
    for name in parts.projections:
        parts.set(name, rows_kept(parts.get(name), rows))
    parts.set(parts.together, columns_kept(parts.get(parts.together), rows))
    for names, value in ((COUNTS, len(heads)), (WIDTHS, len(rows))):
        for name in names:
            if hasattr(parts.inner, name):
                setattr(parts.inner, name, value)
    if family == "mpnet":
        found = parts.get(parts.attention)
        before = found.kept if isinstance(found, HeadsOfBias) else None
        parts.set(parts.attention, HeadsOfBias(parts.inner, heads if before is None else before[heads]))


def uniform(net: Net) -> bool:
    """Whether every layer has the number of heads that the config says."""
    counts = [each.heads for each in parts_of(net)]
    return all_the_same(counts) and counts[0] == net.heads
