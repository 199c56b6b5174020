"""Why an artifact is as far from its source as it is: drift layer by layer, and the nodes that are to blame."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...artifact import goldens
from ...artifact import manifest as artifact
from ...artifact.manifest import Artifact
from ...core.errors import BertcError, DataError
from ...core.progress import Progress
from ...data.synthetic import Sample
from ...graph.model import Graph
from ...report.plots import Plot, Series
from ...source import opening as source
from ...source.opening import SourceOptions, open_reference
from .. import verdict as verification
from . import bisect as bisection
from . import drift
from . import source_weights as originals
from .bisect import Found
from .drift import Drift

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 20  # rows
SAMPLES = 64  # of data that a search runs on; goldens are fewer
OWN = "its own graph in float32"


def layers(path: Path, *, data_path: Path | None = None, against: str | None = None, progress: Progress | None = None) -> Drift:
    """Drift of one artifact after every layer, on its goldens' inputs or on a file of data.

    Compared with the graph of `against`, else of the artifact's source; where that is not at hand, with the artifact's own graph
    in float32, and the result says so. Raises what opening the artifact, the data and `against` raises.
    """
    log = progress or Progress()
    found = artifact.open_artifact(path)
    samples, notes = _samples(found, data_path)
    graph = found.graph(mapped=True)
    with log.stage("open the source"):
        plain, name, more = _plain(found, graph, against)
    with log.stage(f"drift of {path.name}") as advance:
        return drift.measure(plain, graph, samples, name, advance, (*notes, *more))


def _samples(found: Artifact, data_path: Path | None) -> tuple[Sequence[Sample], tuple[str, ...]]:
    if data_path is None:
        return goldens.load_goldens(found.path / artifact.GOLDENS)[0], ()
    read = verification.read_data(data_path, found.inputs, found.dims, found.assets, found.profiles)
    return read.samples, read.notes


def _plain(found: Artifact, graph: Graph, against: str | None) -> tuple[Graph, str, tuple[str, ...]]:
    """(the float32 graph to compare with, what to call it, notes)."""
    facts = found.manifest["source"]
    options = SourceOptions(**facts["options"])
    if against is not None:
        return source.open_graph(against, options)[1], against, ()
    try:
        sha256, plain = source.open_graph(str(facts["reference"]), options)
    except BertcError as error:
        why = f"the source is not at hand: {error}"
    else:
        if sha256 == facts["sha256"]:
            return plain, f"the graph of {facts['reference']}", ()
        why = f"the source {facts['reference']} is not what the artifact was built from: its sha256 differs"
    if found.precision == "fp32":
        raise DataError(f"{why}; say --against SOURCE: an artifact in float32 has nothing else to be compared with")
    return drift.floats_of(graph), OWN, (f"{why}. Compared with {OWN}, weights as they are stored: fusions do not show",)


def bisect(
    path: Path,
    *,
    data_path: Path | None = None,
    against: str | None = None,
    budget: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Found:
    """The nodes of one artifact's graph that restore its budget when they are put back to float32.

    Judged is the graph with its rounding emulated, on the goldens, or on data that the source answers; limits on decisions are
    not (they need all of the data). Raises what `verification.verify` raises.
    """
    log = progress or Progress()
    found = artifact.open_artifact(path)
    truth = verification.find_truth(found, data_path, against, open_reference)
    if truth.outputs is None:
        raise DataError(f"the source cannot answer the data: {'; '.join(truth.notes)}")
    pairs = [(s, outputs) for s, outputs in itertools.islice(truth.pairs(), SAMPLES) if outputs is not None]
    limits = {**verification.recorded(found), **(budget or {})}
    graph = found.graph(mapped=True)
    with log.stage("open the source"):
        weights, note = originals.of(found, graph)
    notes = [note] if note else []
    notes += [f"{len(pairs)} of {len(truth.samples)} samples were used"] if len(pairs) < len(truth.samples) else []
    allowed = verification.budget_for(found.precision, limits)
    with log.stage(f"bisect {path.name}") as advance:
        return bisection.bisect(path, graph, found.task, allowed, pairs, weights, advance, tuple(notes))


# ---- what a person reads ---------------------------------------------------------------------------------------------


def drift_table(found: Drift) -> Table:
    """One row a boundary."""
    from ...report.document import add, table

    rows = table("module", "node", "line", "drift", "growth", "max abs", "cosine (min)", "not finite")
    for layer in found.layers:
        line = next(iter(layer.origin.places), "").rpartition("/")[2]
        numbers = (
            f"{layer.relative:.2e}",
            f"{layer.growth:.2f}" if layer.growth == layer.growth else "-",
            f"{layer.max_abs:.2e}",
        )
        add(rows, layer.module, layer.op, line, *numbers, f"{layer.cosine_min:.7f}", str(layer.nonfinite or "-"))
    return rows


def drift_plot(found: Drift) -> Plot:
    """Drift over the boundaries in order; those that are not finite are left out."""
    points = [(at, layer.relative) for at, layer in enumerate(found.layers) if 0 < layer.relative < float("inf")]
    series = Series("drift", [at for at, _ in points], [drift for _, drift in points])
    return Plot("Drift after every module", "module, in the order of the graph", "rms error / rms", [series], log=True)


def guilty_table(found: Found) -> Table:
    """One row a node, `SHOWN` at most."""
    from ...report.document import add, table

    rows = table("node", "operator", "module", "line", "largest", "type's largest")
    for node in found.nodes[:SHOWN]:
        lines = ", ".join(place.rpartition("/")[2] for place in node.origin.places[:3]) or "-"
        limit = "-" if node.limit is None else f"{node.limit:g}"
        largest = f"{node.largest:.6g}" + (" OVERFLOWS" if node.overflows else "")
        add(rows, node.node, node.op, str(node.origin.module) or "-", lines, largest, limit)
    if len(found.nodes) > SHOWN:
        add(rows, f"and {len(found.nodes) - SHOWN} more (--json)", *[""] * 5)
    return rows
