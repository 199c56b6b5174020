"""Matrices of feed-forward networks as products of two thin ones.

Plain SVD keeps what is large in the weights; here it keeps what is large in the results on texts: with inputs of covariance S S^T
the best product of rank r for W is U U^T W, where U are the first r left singular vectors of W S (Chen et al., "DRONE: Data-aware
Low-rank Compression for Large NLP Models", 2021; Wang et al., "SVD-LLM", 2024, whiten so). What goes
of the inputs' mean goes into the bias.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..core import InputError, Progress
from ..distill import Net
from .importance import Moments, moments
from .parts import linear_of, parts_of
from .step import Step, Work

RIDGE = 1e-6  # of the mean variance: directions that no text has are ranked by their weights, not by chance


def factorise(work: Work, wanted: float, multiple: int, log: Progress, weighted: bool = True) -> Step:
    """Both FFN matrices of each layer in rank `wanted`: a share of full rank, rounded to `multiple`, or a rank as it is."""
    parts = parts_of(work.net)
    first = parts[0].get(parts[0].first)
    full, dense, size = min(first.weight.shape), first.weight.numel(), sum(first.weight.shape)
    rank, note = rank_of(wanted, first.out_features, first.in_features, multiple)
    places = [each.get(name) for each in parts for name in (each.first, each.second)]
    with log.stage("inputs of the FFN") as advance:
        seen = moments(work.net, work.encoded, places, advance) if weighted else [None] * len(places)
    net = with_rank(work.net, rank, seen)
    notes = [note] if note else []
    notes.append("low rank: the matrices of attention stay whole; square ones gain only below half their rank")
    how = "weighted by inputs" if weighted else "plain SVD"
    said = f"FFN matrices of {len(parts)} layers in rank {rank} of {full} ({how}): {rank * size / dense:.0%} of their weights"
    facts = {"rank": rank, "full": full, "weighted": weighted, "weights": rank * size / dense}
    return Step("low_rank", net, said, facts, work.layers, uniform=False, notes=tuple(notes))


def rank_of(wanted: float, rows: int, columns: int, multiple: int) -> tuple[int, str]:
    """(the rank, what rounding did). InputError for more than there is, or for one that makes nothing smaller."""
    full = min(rows, columns)
    if wanted > full:
        raise InputError(f"--low-rank {wanted:g} is more than full rank, which is {full}")
    rank, note = int(wanted), ""
    if wanted < 1:
        fitting = multiple if multiple < full else 1
        rank = max(fitting, round(wanted * full / fitting) * fitting)
        note = f"rank: {wanted * full:g} wanted, {rank} kept, a multiple of {fitting}" if rank != wanted * full else ""
    dense, size = rows * columns, rows + columns
    if rank * size >= dense:
        raise InputError(
            f"--low-rank {wanted:g}: rank {rank} of a matrix of {rows} x {columns} has {rank * size} weights, the matrix itself "
            f"{dense}; a rank up to {(dense - 1) // size} makes it smaller"
        )
    return rank, note


def with_rank(net: Net, rank: int, seen: list[Moments] | list[None]) -> Net:
    """A copy whose FFN matrices are products; `seen` are the inputs of each, in the order of layers; None: plain SVD."""
    made = Net(copy.deepcopy(net.module), net.origin, net.encoder)
    found = iter(seen)
    for parts in parts_of(made):
        for name in (parts.first, parts.second):
            parts.set(name, product(parts.get(name), rank, next(found)))
    return made


@torch.no_grad()
def product(linear: nn.Linear, rank: int, seen: Moments | None) -> nn.Sequential:
    """Two Linear modules in place of one."""
    weight = linear.weight.detach().double()
    scaled = weight if seen is None else weight @ root(seen.covariance())
    left = torch.linalg.svd(scaled, full_matrices=False).U[:, :rank]
    right = left.T @ weight
    bias = torch.zeros(len(weight), dtype=torch.float64) if linear.bias is None else linear.bias.detach().double()
    if seen is not None:
        bias = bias + (weight - left @ right) @ seen.mean()
    return nn.Sequential(linear_of(right.float(), None), linear_of(left.float(), bias.float()))


def root(covariance: Tensor) -> Tensor:
    """S with S S^T = covariance (and a ridge)."""
    size = len(covariance)
    ridge = RIDGE * covariance.diagonal().mean().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(size, dtype=covariance.dtype))
    return vectors * values.clamp(min=0).sqrt()
