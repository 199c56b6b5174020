"""The float32 graph of a source that computes in low precision, held against the source as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core import BertcError, ExportFailed, Outputs, first_line
from ..data import Sample
from . import budgets
from .budgets import Budget
from .comparison import Comparison

if TYPE_CHECKING:
    from ..source import Given, Source

# Cosines as in budgets.py. Of short outputs the relative error is judged: a rounding is 5e-4 in float16 and 4e-3 in bfloat16, and
# some hundred of them in a row, independent of each other, add up to ten or twenty times one; 40 are allowed. Activations in int8
# round to 4e-3 of the largest.
GIVEN_BUDGETS = {
    "fp16": Budget(rel=0.02, cosine=0.9999),
    "bf16": Budget(rel=0.16, cosine=0.999),
    "int8": Budget(rel=0.16, cosine=0.99),
}


def check_given(source: Source, samples: Sequence[Sample], outputs: Sequence[Outputs]) -> tuple[str, ...]:
    """Compare the float32 graph's outputs with those of the source as given; notes. ExportFailed where they are too far apart."""
    given = source.given
    if given is None:
        return ()
    comparison, overflowed, hidden, failed = Comparison(source.task), 0, 0, ""
    for sample, made in zip(samples, outputs, strict=True):
        try:
            wanted = given.run(sample.feeds)
        except (BertcError, OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - PyTorch's and onnxruntime's exceptions share no public base class
            failed = first_line(error)
            continue
        rows = [row for row in range(len(next(iter(sample.feeds.values())))) if row not in sample.dead_rows]
        if not _finite(wanted, rows, sample):
            overflowed += 1
            continue
        hidden += given.rounded is not None and not _finite(given.rounded(sample.feeds), rows, sample)
        comparison.add(wanted, made, sample)
    notes = []
    if overflowed:
        notes.append(
            f"the source as given overflows at {overflowed} of {len(samples)} samples ({given.how}); in float32 it does not"
        )
    if hidden:
        notes.append(
            f"with every result rounded to its type, as a GPU does, the source overflows at {hidden} of {len(samples)} samples; "
            "in float32 it does not"
        )
    if failed:
        notes.append(f"the source as given fails at some samples: {failed}")
    return (*notes, _judged(given, comparison))


def _finite(outputs: Outputs, rows: Sequence[int], sample: Sample) -> bool:
    live = (array[list(rows)] if sample.dead_rows and array.ndim else array for array in outputs.values())
    return all(np.isfinite(array).all() for array in live)


def _judged(given: Given, comparison: Comparison) -> str:
    result = comparison.result()
    if not result.outputs:
        return "the float32 graph could not be compared with the source as given"
    budget = GIVEN_BUDGETS[given.precision]
    if violations := budgets.find_violations(result, budget):
        raise ExportFailed(
            f"the graph in float32 differs from the source as given by more than {given.precision} explains: {violations[0]}. "
            "Give the float32 model that it was made from"
        )
    worst, cosine = max(out.relative for out in result.outputs), min(out.cosine_min for out in result.outputs)
    found = f"relative error {worst:.1e} <= {budget.rel}, cosine {cosine:.7f}"
    return f"float32 graph against the source as given, {result.samples} samples: {found}; {given.reason} ({given.how})"
