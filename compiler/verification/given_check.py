"""The float32 graph of a source that computes in low precision, held against the source as it was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core import ExportFailed, Outputs, first_line, raise_unless_of_run
from ..data import Layout, Sample, live_rows
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
    layout = Layout.of(source.graph.inputs, source.graph.outputs)
    comparison, overflowed, hidden, failed = Comparison(source.task, layout=layout), 0, 0, ""
    for sample, made in zip(samples, outputs, strict=True):
        try:
            wanted = given.run(sample.feeds)
        except Exception as error:  # noqa: BLE001 - PyTorch's exceptions share no public base class
            raise_unless_of_run(error)
            failed = first_line(error)
            continue
        if not _finite(wanted, sample, layout):
            overflowed += 1
            continue
        hidden += given.rounded is not None and not _finite(given.rounded(sample.feeds), sample, layout)
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


def _finite(outputs: Outputs, sample: Sample, layout: Layout) -> bool:
    """Whether all is finite but the rows whose mask is all zero."""
    return all(np.isfinite(live_rows(array, sample, layout.outputs.get(name, 0))).all() for name, array in outputs.items())


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
