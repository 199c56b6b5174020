"""Batches of texts of different lengths: masks of which a wanted share is tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..core import InputError
from ..graph import Graph
from .mask_kinds import ADDITIVE, LOW, mask_kinds
from .mask_uses import INVERTED
from .samples import Sample

SIGMA = 0.75  # of the logarithm of a length; requests of search and question answering have 0.6 to 0.9
DRAWS = 200


def log_normal_lengths(rows: int, longest: int, fill: float, seed: int = 0) -> np.ndarray:
    """Lengths [rows] int64 of 1 to `longest`, of log-normal draws the one whose mean comes nearest to `fill` of the longest."""
    if fill >= 1:
        return np.full(rows, longest)
    middle = np.log(fill * longest) - SIGMA**2 / 2
    draws = [np.random.default_rng([seed, draw]).lognormal(middle, SIGMA, rows) for draw in range(DRAWS)]
    lengths = [np.clip(np.round(draw), 1, longest).astype(np.int64) for draw in draws]
    return min(lengths, key=lambda each: abs(float(each.mean()) / longest - fill))


def padded_sample(sample: Sample, graph: Graph, fill: float, seed: int = 0) -> Sample:
    """The sample with masks, padded on the right, of which about `fill` is tokens; one row more or less with few rows.

    Raises InputError for a fill that is not above 0 and up to 1, or a graph without a mask.
    """
    kinds = mask_kinds(graph)
    if not 0 < fill <= 1:
        raise InputError(f"--fill {fill}: it is the share of positions with a token, above 0 and up to 1")
    if not kinds:
        raise InputError(f"--fill {fill}: no input of this model is a mask, so nothing says what is padding")
    feeds = dict(sample.feeds)
    for name, kind in kinds.items():
        whole = feeds[name]
        if whole.ndim < 2:
            continue
        lengths = log_normal_lengths(whole.shape[0], whole.shape[-1], fill, seed)
        live = np.arange(whole.shape[-1]) < lengths.reshape(-1, *[1] * (whole.ndim - 1))
        filled = np.where(live, 0, LOW) if kind == ADDITIVE else ~live if kind == INVERTED else live
        feeds[name] = np.broadcast_to(filled, whole.shape).astype(whole.dtype)
    return dataclasses.replace(sample, label=f"{sample.label}, fill {fill:g}", feeds=feeds)
