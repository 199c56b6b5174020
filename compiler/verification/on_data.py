"""A build's --data as samples to verify on: what no synthetic sample shows is on the texts that the model will see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..core import InputError, Profile, counted
from ..data import Labels, Sample, read_data, row_count, special_ids
from ..data import synthetic as data
from ..precision import Evidence
from ..runtime import ReferenceRunner
from ..source import Source
from .closeness import MIN_COSINE_WIDTH
from .decisions import has_decisions
from .export_check import ExportCheck
from .verdict import Truth

MOST_ROWS = 256  # verified at build; bertc verify --data takes them all
EVIDENCE_ROWS = 64  # that values are measured on
Rows = Callable[[], Truth | None]


def no_rows() -> Truth | None:
    """Where there is no --data to verify on."""
    return None


def require_judgeable(source: Source) -> None:
    """Raises InputError where nothing can judge what few bits cost: no decisions of a task, and no output of vectors."""
    widths = [spec.dims[-1] if spec.dims else 1 for spec in source.graph.outputs if np.dtype(spec.dtype).kind == "f"]
    if has_decisions(source.task) or any(isinstance(width, str) or width >= MIN_COSINE_WIDTH for width in widths):
        return
    shown = ", ".join(map(str, source.graph.outputs))
    raise InputError(
        f"what int8 or fp8 costs this model cannot be judged: task {source.task!r} has no decisions to compare, and no output is "
        f"a vector of {MIN_COSINE_WIDTH} numbers or more ({shown}); name the task, as in --task sequence-classification"
    )


def goldens_truth(check: ExportCheck, *, synthetic: bool) -> Truth:
    """The goldens to verify on."""
    return Truth(check.samples, check.outputs, "goldens", synthetic=synthetic)


def read_when_wanted(path: Path | None, source: Source, profiles: Sequence[Profile]) -> Rows:
    """A function that reads the rows to verify on once, when they are first wanted; None of no file."""
    return no_rows if path is None else functools.cache(lambda: truth_on_data(path, source, profiles))


def truth_on_data(path: Path, source: Source, profiles: Sequence[Profile]) -> Truth:
    """Rows of a user's file, evenly spread over it, answered by the source, or by its float32 graph where it is an artifact.

    Raises DataError for data that the model cannot be fed.
    """
    labels = Labels.from_assets(source.task, source.assets, source.graph.outputs)
    read = read_data(path, source.graph.inputs, source.dims, source.assets, profiles, labels)
    samples = spread_rows(read.samples)
    rows, every = (sum(map(row_count, each)) for each in (samples, read.samples))
    named = f"{counted(rows, 'row')} of {path.name}" if rows == every else f"{rows} of the {every} rows of {path.name}"
    if source.run is None:
        named += ", against the float32 graph"
    run = source.run or ReferenceRunner(source.graph).run
    labelled = any(sample.labels for sample in samples)
    return Truth(samples, run, named, read.notes, False, labels if labelled else None)


def spread_rows(samples: Sequence[Sample], most: int = MOST_ROWS) -> tuple[Sample, ...]:
    """Whole samples at even steps until `most` rows are there; one at least."""
    step = max(1, -(-sum(map(row_count, samples)) // most))
    return tuple(samples[::step])


def collect_evidence(samples: Sequence[Sample], source: Source, rows: Truth | None, file: str | None, seed: int) -> Evidence:
    """What values are measured on: goldens, rows of --data, and synthetic samples of every kind of mask.

    `file`: the name of --data. Without `rows` it is what the goldens are made of.
    """
    name = f"{len(samples)} synthetic samples" if source.run else f"the {len(samples)} goldens of the export"
    if rows is not None:
        some = spread_rows(rows.samples, EVIDENCE_ROWS)
        return Evidence((*samples, *some), f"{name} and {sum(map(row_count, some))} rows of {file}")
    if source.run is None or file is None:
        return Evidence(tuple(samples), name)
    made = data.synthetic_samples(source.graph, source.dims, seed, special=special_ids(source.assets))
    return Evidence((*samples, *made), f"{sum(map(row_count, samples))} rows of {file} and {len(made)} synthetic samples")
