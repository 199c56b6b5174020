"""Why an artifact is as far from its source as it is: drift layer by layer, and the nodes that are to blame."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...artifact import Artifact, goldens
from ...artifact import manifest as artifact
from ...core import Progress, counted, naming
from ...data import Sample, preprocess
from ...graph import Graph
from ...runtime import emulate_rounding
from ...source import GivenSource, check_same_source, open_reference, options_for, source_wanted
from ...source import opening as source
from .. import verdict as verification
from ..budgets import budget_for
from . import bisect as bisection
from . import drift
from . import unrounded_weights as unrounded
from .bisect import Bisection
from .drift import Drift

SAMPLES = 64  # of data that a search runs on; goldens are fewer
OWN_GRAPH = "its own graph in float32"


def measure_artifact_drift(
    path: Path, *, data_path: Path | None = None, against: GivenSource | None = None, progress: Progress | None = None
) -> Drift:
    """Drift of one artifact after every layer, on its goldens' inputs or on a file of data.

    Compared with the graph of `against`; without it, with the artifact's own graph in float32, and the result says so.
    Raises what opening the artifact, the data and `against` raises, and DataError for a float32 artifact without `against`.
    """
    log = progress or Progress()
    found = artifact.open_artifact(path)
    samples, notes = _samples(found, data_path)
    graph = found.graph(mapped=True)
    with log.stage("open the source"):
        plain, name, more = _float32_graph(found, graph, against)
    with log.stage(f"drift of {path.name}") as advance, naming(path):
        return drift.measure_drift(plain, graph, samples, name, advance, (*notes, *more))


def _samples(found: Artifact, data_path: Path | None) -> tuple[Sequence[Sample], tuple[str, ...]]:
    if data_path is None:
        return goldens.load_goldens(found.goldens)[0], ()
    read = preprocess.read_data(data_path, found.inputs, found.dims, found.assets, found.profiles, bounds=found.index_bounds)
    return read.samples, read.notes


def _float32_graph(found: Artifact, graph: Graph, against: GivenSource | None) -> tuple[Graph, str, tuple[str, ...]]:
    """(the float32 graph to compare with, what to call it, notes)."""
    if against is not None:
        sha256, plain = source.open_graph(against.reference, options_for(found, against))
        check_same_source(found, against, sha256)
        return plain, f"the graph of {against}", ()
    if found.precision == "fp32":
        raise source_wanted(found, "drift of a float32 artifact, which has nothing else to compare with,")
    return (
        emulate_rounding(graph, rounded=False),
        OWN_GRAPH,
        (
            f"no --against SOURCE: compared with {OWN_GRAPH}, with its stored weights; errors of fusions and of rounded weights "
            "do not show",
        ),
    )


def bisect_artifact(
    path: Path,
    *,
    data_path: Path | None = None,
    against: GivenSource | None = None,
    budget: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Bisection:
    """The nodes of one artifact's graph that restore its budget when they are in float32.

    Judged is the graph with its rounding emulated, on the goldens, or on data that the source answers; limits on decisions are
    not (they need all of the data). Raises what `verification.verify` raises.
    """
    log = progress or Progress()
    found = artifact.open_artifact(path)
    truth = verification.find_truth(found, data_path, against, open_reference).of_packed(found.manifest)
    if truth.outputs is None:
        raise source_wanted(found, f"--bisect on {data_path}")
    pairs = [(s, outputs) for s, outputs in itertools.islice(truth.pairs(), SAMPLES) if outputs is not None]
    graph = found.graph(mapped=True)
    with log.stage("open the source"):
        weights, note = unrounded.find_unrounded_weights(found, graph, against)
    notes = [note] if note else []
    notes += [f"used: {len(pairs)} of {counted(len(truth.samples), 'sample')}"] if len(pairs) < len(truth.samples) else []
    allowed = budget_for(found.precision, verification.recorded_limits(found.manifest), budget)
    with log.stage(f"bisect {path.name}") as advance, naming(path):
        return bisection.bisect_graph(path, graph, found.task, allowed, pairs, weights, advance, tuple(notes))
