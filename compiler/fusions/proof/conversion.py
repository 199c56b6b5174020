"""Is a graph that was converted to a newer opset the same? Both are run on synthetic feeds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...core import DataError, Dim, NotFused, RunFailed, stop_if_exhausted
from ...data import synthetic as data
from ...graph import Graph, Refused, short_reason
from ...runtime import ReferenceRunner
from .prover import distance

# The same operators in the same order: what is seen is 0. An operator's kernel may be another one at a newer opset.
TOLERANCE = 1e-5

SAMPLE_ELEMENTS = 4096  # rows x length


def check_conversion(before: Graph, after: Graph, dims: Mapping[str, Dim], seed: int = 0) -> str:
    """Compare the converted graph with the original on synthetic feeds of every shape and mask; returns a note.

    Raises NotFused where they differ by more than `TOLERANCE`, Missing without onnxruntime.
    """
    try:
        samples = data.synthetic_samples(before, dims, seed, SAMPLE_ELEMENTS)
    except DataError as why:
        return f"opset conversion not checked: {why}"
    first, second = ReferenceRunner(before), ReferenceRunner(after)
    worst, count, failed = 0.0, 0, ""
    for sample in samples:
        try:
            wanted = first.run(sample.feeds)
        except RunFailed as error:  # a table shorter than the sample
            stop_if_exhausted(error)
            failed = f"{sample.label}: {short_reason(error)}"
            continue
        try:
            got = second.run(sample.feeds)
        except Exception as error:
            raise NotFused(
                f"not fused: the graph does not run after opset conversion ({sample.label}): {short_reason(error)}"
            ) from error
        worst, count = max(worst, *(_difference(got[name], wanted[name], name, sample.label) for name in wanted)), count + 1
    if not count:
        return f"opset conversion not checked: the graph does not run on synthetic feeds ({failed})"
    return f"opset conversion checked: {count} shapes and masks, max relative error {worst:.1e}"


def _difference(got: np.ndarray, wanted: np.ndarray, name: str, label: str) -> float:
    try:
        found = distance(got, wanted, "the converted graph")
    except Refused as why:
        raise NotFused(f"not fused: opset conversion changes output {name!r} at {label}: {why}") from why
    if not found <= TOLERANCE:
        raise NotFused(
            f"not fused: opset conversion changes {name!r} at {label}: relative error {found:.1e}; export with opset 20"
        )
    return found
