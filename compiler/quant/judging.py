"""Held-out rows of the user's data: which rows judge and do not calibrate, and the float32 outputs they are compared with."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from ..core import Outputs, Profile
from ..data import Labels, Layout, Sample, batch_dim, index_bounds, preprocess, row_count
from ..graph import Graph
from ..source import Source
from ..verification import RunSource, Truth, has_decisions

HOLD_OUT_EVERY, HOLD_OUT_EVERY_MORE = 4, 2  # every so many batches are held out; more, where a limit needs them
MAX_HELD_OUT = 256  # rows, where no limit on decisions is to be shown
SPARE_FACTOR = 4  # times the rows that show a limit when not one decision changes: some do, and pairs of rows are half as many
EMBEDDING = "sentence-embedding"  # judged by cosines, of which each row has one, and by neighbours beside them
NEIGHBOUR_ROWS = 1024  # of 256 rows the count of neighbours kept is off by 1.3 % on average, and the search takes what is lucky
MIN_ROWS_TO_SPLIT = 64  # of fewer rows all judge and calibrate


@dataclasses.dataclass(frozen=True)
class JudgingRows:
    """The batches of a file, the rows of each (`sizes`), and which of them judge. `labels` is None where those have none."""

    name: str
    batches: tuple[Sample, ...]
    sizes: tuple[int, ...]
    judges: tuple[bool, ...]
    label_meanings: Labels
    notes: tuple[str, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(itertools.compress(self.batches, self.judges))

    @property
    def rows(self) -> int:
        return sum(itertools.compress(self.sizes, self.judges))

    @property
    def labels(self) -> Labels | None:
        return self.label_meanings if any(sample.labels for sample in self.samples) else None


def read_judging_rows(
    path: Path, graph: Graph, source: Source, profiles: Sequence[Profile], *, calibrated: bool, max_drop: float | None = None
) -> JudgingRows:
    """Read a user's file. `calibrated`: some rows calibrate, and only the others judge; else all of them do.

    `max_drop`: the limit that the held-out rows must be able to show.

    Raises DataError for data that is missing or unfit.
    """
    label_meanings = Labels.from_assets(source.task, source.assets, graph.outputs)
    bounds = index_bounds(source.graph)
    found = preprocess.read_data(path, graph.inputs, source.dims, source.assets, profiles, label_meanings, bounds)
    batched = batch_dim(graph.inputs, source.dims) is not None  # else a sample is one row, as for `unpadded.open_unpadded`
    layout = Layout.of(graph.inputs, graph.outputs)
    sizes = tuple(row_count(sample, layout) if batched else 1 for sample in found.samples)
    judges = choose_judging(sizes, _rows_wanted(source.task, found.samples, max_drop)) if calibrated else (True,) * len(sizes)
    return JudgingRows(path.name, found.samples, sizes, judges, label_meanings, found.notes)


def truth_of_rows(judging: JudgingRows, answers: Sequence[Outputs] | RunSource) -> Truth:
    """The rows that judge, with the outputs of the float32 graph, or a function that computes them."""
    held_out = "" if all(judging.judges) else "held-out "
    name = f"{judging.rows} {held_out}rows of {judging.name}, against the float32 graph"
    return Truth(judging.samples, answers, name, synthetic=False, labels=judging.labels)


def _rows_wanted(task: str, samples: Sequence[Sample], limit: float | None) -> int:
    """Rows that should judge a limit."""
    labelled = any(sample.labels for sample in samples)
    if limit is None or not (labelled or has_decisions(task)):
        return MAX_HELD_OUT
    return NEIGHBOUR_ROWS if task == EMBEDDING and not labelled else rows_needed(limit)


def rows_needed(limit: float | None) -> int:
    """Rows that can show that a share of decisions is within a limit.

    With 95 % intervals of Clopper and Pearson, n rows of which none changed show 1 - 0.025^(1/n).
    """
    if limit is None or not 0 < limit < 1:
        return MAX_HELD_OUT
    return max(MAX_HELD_OUT, math.ceil(SPARE_FACTOR * math.log(0.025) / math.log1p(-limit)))


def choose_judging(sizes: Sequence[int], wanted: int = MAX_HELD_OUT) -> tuple[bool, ...]:
    """Which batches judge: every fourth, up to 256 rows, or every second where more are wanted and a quarter is too few.

    All of them where there are few, and then they calibrate too.
    """
    if sum(sizes) < MIN_ROWS_TO_SPLIT or len(sizes) < HOLD_OUT_EVERY:
        return (True,) * len(sizes)
    every = HOLD_OUT_EVERY_MORE if wanted > MAX_HELD_OUT and sum(sizes) < HOLD_OUT_EVERY * wanted else HOLD_OUT_EVERY
    made, count = [False] * len(sizes), 0
    for at in range(every - 1, len(sizes), every):
        if count >= wanted:
            break
        made[at], count = True, count + sizes[at]
    return tuple(made)
