"""Which rows of the user's data judge what the others calibrated, and the truth they judge by: what the float32 graph answers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from ..core import Outputs, Profile
from ..data import Labels, Sample, preprocess
from ..data import samples as samples_module
from ..graph import Graph
from ..source import Source
from ..verification import RunSource, Truth, has_decisions

JUDGED, JUDGED_MORE = 4, 2  # every so many batches of the data judge what the others calibrated; more, where a limit needs them
MOST_JUDGED = 256  # rows, where no limit on decisions is to be shown
SPARE = 4  # times the rows that show a limit when not one decision changes: some do, and pairs of rows are half as many
EMBEDDING = "sentence-embedding"  # judged by cosines, of which each row has one, and by neighbours beside them
NEIGHBOURS = 1024  # rows: of 256 the count of neighbours kept is off by 1.3 % on the average, and the search takes what is lucky
FEWEST = 64  # rows below which both are done on all of them


@dataclasses.dataclass(frozen=True)
class JudgingRows:
    """The batches of a file with their rows counted, and which of them judge. `labels` is None where those have none."""

    name: str
    batches: tuple[Sample, ...]
    sizes: tuple[int, ...]
    judges: tuple[bool, ...]
    meaning: Labels
    notes: tuple[str, ...]

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(itertools.compress(self.batches, self.judges))

    @property
    def rows(self) -> int:
        return sum(itertools.compress(self.sizes, self.judges))

    @property
    def labels(self) -> Labels | None:
        return self.meaning if any(sample.labels for sample in self.samples) else None


def read_judging_rows(
    path: Path, graph: Graph, source: Source, profiles: Sequence[Profile], *, apart: bool, limit: float | None = None
) -> JudgingRows:
    """Read a user's file. `apart`: some rows calibrate, so only the others judge; else nothing calibrates and all of them do.

    `limit`: the largest drop that the rows must be able to show.

    Raises DataError for data that is missing or unfit.
    """
    meaning = Labels.from_assets(source.task, source.assets, graph.outputs)
    found = preprocess.read_data(path, graph.inputs, source.dims, source.assets, profiles, meaning)
    sizes = tuple(_size(sample, graph, source) for sample in found.samples)
    judges = choose_judging(sizes, _wanted(source.task, found.samples, limit)) if apart else (True,) * len(sizes)
    return JudgingRows(path.name, found.samples, sizes, judges, meaning, found.notes)


def truth_of_rows(judging: JudgingRows, answers: Sequence[Outputs] | RunSource) -> Truth:
    """The rows that judge, with what the float32 graph answers, or how to ask it."""
    name = f"{judging.rows} rows of {judging.name}, against the float32 graph"
    return Truth(judging.samples, answers, name, synthetic=False, labels=judging.labels)


def _size(sample: Sample, graph: Graph, source: Source) -> int:
    """Rows of a sample, as `rows.open_rows` tells them apart; one where the model knows no batch."""
    batch = samples_module.batch_dim(graph.inputs, source.dims)
    return next((sample.feeds[s.name].shape[0] for s in graph.inputs if batch and s.dims and s.dims[0] == batch), 1)


def _wanted(task: str, samples: Sequence[Sample], limit: float | None) -> int:
    """Rows that should judge a limit."""
    labelled = any(sample.labels for sample in samples)
    if limit is None or not (labelled or has_decisions(task)):
        return MOST_JUDGED
    return NEIGHBOURS if task == EMBEDDING and not labelled else rows_needed(limit)


def rows_needed(limit: float | None) -> int:
    """Rows that can show that a share of decisions is within a limit.

    With 95 % intervals of Clopper and Pearson, n rows of which none changed show 1 - 0.025^(1/n).
    """
    if limit is None or not 0 < limit < 1:
        return MOST_JUDGED
    return max(MOST_JUDGED, math.ceil(SPARE * math.log(0.025) / math.log1p(-limit)))


def choose_judging(sizes: Sequence[int], wanted: int = MOST_JUDGED) -> tuple[bool, ...]:
    """Which batches judge: every fourth, up to 256 rows, or every second where more are wanted and a quarter is too few.

    All of them where there are few, and then they calibrate too.
    """
    if sum(sizes) < FEWEST or len(sizes) < JUDGED:
        return (True,) * len(sizes)
    every = JUDGED_MORE if wanted > MOST_JUDGED and sum(sizes) < JUDGED * wanted else JUDGED
    made, count = [False] * len(sizes), 0
    for at in range(every - 1, len(sizes), every):
        if count >= wanted:
            break
        made[at], count = True, count + sizes[at]
    return tuple(made)
