"""Calibration: one pass over data that fills a histogram for each tensor that int8 may quantise, in memory that does not grow.

The graph runs in float32 on ONNX Runtime with those tensors as its outputs, a sample at a time; what they hold is counted and
forgotten. The counts are exact whole numbers, so that parts calibrated apart merge into what one run gives, and a run that was
interrupted goes on from its last checkpoint (`OUT.partial`) to the same file as one that was not.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ... import targets
from ...core import VERSION, Advance, ArtifactError, DataError, NotFused, Progress, SourceError, check_writable, counted, machine
from ...data import UnpaddedSamples, index_bounds, preprocess
from ...data import unpadded as rows
from ...fusions import engine as fuse
from ...graph import GEMM_OPS, OPSET, Graph, normalize
from ...source import Source, SourceOptions, open_source
from . import ranges_file as ranges
from . import statistics as tensor_stats
from .meter import Arrays, Meter
from .ranges_file import Ranges
from .statistics import MeasuredTensor, Settings, Statistics
from .tensors import tensors_to_measure, untyped_tensors

PARTIAL = ".partial"
LEFT_OUT = {"masked": "masked values", "nan": "NaN", "infinite": "infinite values", "skipped": "tensors whose padding is unknown"}


@dataclasses.dataclass(frozen=True)
class CalibrationRequest:
    """What to measure. `target` names the target whose lowered graph is meant (NAME[:SM...]); None is the source's own, cleaned.

    `part` is `INDEX/COUNT`; `also` and `by_channel` are patterns, see `places.places`; `checkpoint` is in seconds.
    """

    data: Path
    settings: Settings = dataclasses.field(default_factory=Settings)
    target: str | None = None
    part: str = "1/1"
    also: tuple[str, ...] = ()
    by_channel: tuple[str, ...] = ()
    checkpoint: float = 30.0


def request_from_options(data: Path, *, method: str, percentile: float, outlier: float, **options: Any) -> CalibrationRequest:
    """A Request of the command line's options."""
    return CalibrationRequest(data, Settings(method, percentile, outlier), **options)


def calibrate(
    source: str,
    request: CalibrationRequest,
    out: Path,
    *,
    options: SourceOptions | None = None,
    force: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
) -> Ranges:
    """Calibrate a source and write `out`. A run that left a checkpoint is gone on with, unless `restart`.

    Raises a BertcError: DataError for unfit data or a checkpoint of another run, ArtifactError where `out` is there already.
    After an interruption `out` is as it was, and the checkpoint holds what was done.
    """
    log = progress or Progress()
    part = _check(request, out, force)
    with log.stage("export"):
        opened = open_source(source, options)
    with log.stage("graph"):
        graph, form = graph_to_measure(opened, request.target)
        found = tensors_to_measure(graph, request.also, request.by_channel)
    with log.stage("read data"):
        limits, encoder, audio = preprocess.preprocessors(
            graph.inputs, opened.dims, opened.assets, bounds=index_bounds(opened.graph)
        )
        samples = rows.open_unpadded(request.data, graph.inputs, limits, encoder, audio)
    for note in (*opened.notes, *_unseen(graph, found), *samples.notes):
        log.note(note)
    if not samples.size(*part):
        raise DataError(f"part {request.part} of {samples.name} is empty: it has {counted(samples.count, 'sample')}")
    run = CalibrationRun(Meter(graph, found), samples, part, out.with_name(out.name + PARTIAL), request.checkpoint)
    made, done = run.begin(empty_ranges(opened, graph, form, found, samples, request), restart, log)
    with log.stage("calibrate") as advance:
        run.go(made, done, advance)
    _check_measured(made)
    ranges.write(made, out)
    ranges.remove(run.checkpoint)
    return made


def _check(request: CalibrationRequest, out: Path, force: bool) -> tuple[int, int]:
    """Check options before any work; returns the part (INDEX, COUNT)."""
    tensor_stats.check_settings(request.settings)
    rows.check_path(request.data)
    if request.target is not None:
        targets.get(targets.parse_spec(request.target).name)
    _check_out(out, force)
    return ranges.parse_part(request.part)


def _check_out(out: Path, force: bool) -> None:
    check_writable(out, "-o")
    if out.exists() and not force:
        raise ArtifactError(f"the output {out} exists; --force replaces it, or choose another -o")


def graph_to_measure(source: Source, target: str | None) -> tuple[Graph, str]:
    """The float32 graph to measure and what to call it: cleaned, or fused (each match proven) and lowered for a target."""
    if target is not None:
        spec = targets.parse_spec(target)
        found = targets.get(spec.name)
        if not found.FUSES:
            return found.lower(source.graph, spec.sms), f"lowered for {spec.name}"
        try:
            fused = fuse.fuse(source.graph, source.dims, lowerings={str(spec): targets.lowerings(spec)}).graph
        except NotFused as why:  # as `bertc build` does
            return found.lower(source.graph, spec.sms), f"lowered for {spec.name}, not fused: {why}"
        return found.lower(fused, spec.sms), f"lowered for {spec.name}"
    if source.graph.opset < OPSET:
        return source.graph, f"as it is (opset {source.graph.opset})"
    return normalize(source.graph), "cleaned"


def empty_ranges(
    source: Source,
    graph: Graph,
    form: str,
    found: Sequence[MeasuredTensor],
    samples: UnpaddedSamples,
    request: CalibrationRequest,
) -> Ranges:
    """Ranges of nothing yet, with the head of the file."""
    facts = {
        "bertc": VERSION,
        "tools": dict(machine.versions()),
        "source": {"reference": source.reference, "sha256": source.sha256, "task": source.task},
        "graph": {"form": form, "sha256": structure_sha256(graph)},
        "data": [{"name": samples.name, "sha256": samples.sha256, "parts": [request.part]}],
    }
    return Ranges(facts, request.settings, {place.name: Statistics(place) for place in found})


def structure_sha256(graph: Graph) -> str:
    """A hash of nodes, names and attributes, not of weights: whether a tensor's name means the same in two graphs."""
    digest = hashlib.sha256()
    for node in graph.model.graph:
        named = [[None if v is None else v.name for v in values] for values in (node.inputs, node.outputs)]
        attributes = sorted((name, _attribute(each)) for name, each in node.attributes.items())
        digest.update(repr((node.domain, node.op_type, named, attributes)).encode())
    return digest.hexdigest()


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        return hashlib.sha256(attribute.as_tensor().tobytes()).hexdigest()
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return "a subgraph"
    return repr(attribute.value)


def _unseen(graph: Graph, found: Sequence[MeasuredTensor]) -> Iterator[str]:
    if not found:
        raise SourceError("the graph has no MatMul, convolution, softmax or normalisation over activations: nothing to calibrate")
    unknown = untyped_tensors(graph)
    if unknown:
        yield f"{counted(len(unknown), 'tensor')} not measured, of unknown type: {', '.join(unknown[:3])}"
    top = {id(node) for node in graph.model.graph}
    hidden = [node for node in graph.model.graph.all_nodes() if id(node) not in top]
    hidden += [node for function in graph.model.functions.values() for node in function]
    inside = sum(node.op_type in GEMM_OPS for node in hidden)
    if inside:
        yield f"{inside} GEMMs inside local functions or branches not measured"


@dataclasses.dataclass(frozen=True)
class CalibrationRun:
    """One pass over one part of the data, with its checkpoint."""

    meter: Meter
    samples: UnpaddedSamples
    part: tuple[int, int]
    checkpoint: Path
    seconds: float

    def begin(self, fresh: Ranges, restart: bool, log: Progress) -> tuple[Ranges, int]:
        """Where to begin: (what was counted so far, samples done). DataError for a checkpoint of another run."""
        if restart or not self.checkpoint.exists():
            ranges.remove(self.checkpoint)
            return fresh, 0
        try:
            data = ranges.read_json(self.checkpoint)
            found, done = ranges.parse(data, self.checkpoint), data.get("done")
        except DataError as error:
            raise DataError(f"{error}; --restart drops it and starts over") from error
        changed = _changes(fresh, found)
        size = self.samples.size(*self.part)
        if changed or not isinstance(done, int) or not 0 <= done <= size:
            why = "; ".join(changed) or f"its 'done' is {str(done)[:40]}, not a number of samples up to {size}"
            raise DataError(f"the checkpoint {self.checkpoint} is of another run: {why}. --restart drops it and starts over")
        log.note(f"resuming after {done} of {size} samples from {self.checkpoint}")
        # In the order of the graph, which is not that of the file.
        return dataclasses.replace(found, tensors={name: found.tensors[name] for name in fresh.tensors}), done

    def go(self, made: Ranges, done: int, advance: Advance) -> None:
        """Count sample by sample, with a checkpoint now and then, and one when interrupted.

        Raises KeyboardInterrupt with a sentence that says what was kept.
        """
        size, written, whole = self.samples.size(*self.part), time.monotonic(), True
        try:
            for some in self.meter.ahead(self.samples.part(*self.part, done)):
                whole = False  # from here on some tensors have counted the samples and others have not
                self._count(some, made)
                done += len(some)
                whole = True
                advance(done, size)
                if time.monotonic() - written >= self.seconds:
                    ranges.write_checkpoint(made, self.checkpoint, done)
                    written = time.monotonic()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._kept(made, done, whole)) from None

    def _kept(self, made: Ranges, done: int, whole: bool) -> str:
        """What is left of a run that was interrupted."""
        if whole and done:
            ranges.write_checkpoint(made, self.checkpoint, done)
        if not self.checkpoint.exists():
            return "nothing was written"
        return f"{self.checkpoint} keeps what was counted; the same command resumes there"

    def _count(self, some: Sequence[tuple[rows.UnpaddedSample, Arrays]], made: Ranges) -> None:
        live = [each for each in some if not each[0].dead]
        self.meter.count(live, made.tensors)
        made.totals["dead"] += len(some) - len(live)
        made.totals["samples"] += len(live)
        made.totals["tokens"] += sum(row.tokens for row, _ in live)
        made.totals["truncated"] += sum(row.truncated for row, _ in live)


def _changes(fresh: Ranges, found: Ranges) -> list[str]:
    """What differs between this run and the one that left a checkpoint."""
    parts = {"source": "the model", "graph": "the graph", "data": "the data or the shard", "tools": "a tool's version"}
    changed = [f"{what} changed" for key, what in parts.items() if fresh.facts[key] != found.facts[key]]
    changed += ["the settings changed"] if fresh.settings != found.settings else []
    ours, theirs = ({name: each.place for name, each in one.tensors.items()} for one in (fresh, found))
    return changed + (["the tensors to measure changed"] if ours != theirs else [])


def _check_measured(made: Ranges) -> None:
    if all(each.status == "unmeasured" for each in made.tensors.values()):
        reason = "every sample is padding only" if not made.totals["samples"] else "padding could not be told from the rest"
        raise DataError(f"nothing was measured: {reason}; give data that is padded at its end, or not at all")


def merge(paths: Sequence[Path], out: Path, *, force: bool = False) -> Ranges:
    """Merge files of ranges into one, equal to one run over all their data. Raises DataError as `ranges.merge`, ArtifactError."""
    _check_out(out, force)
    made = ranges.merge([ranges.read(path) for path in paths], [str(path) for path in paths])
    ranges.write(made, out)
    return made


def summary(found: Ranges) -> str:
    """One line: what has a range, what has none and why, what was left out."""
    states = collections.Counter(each.status for each in found.tensors.values())
    samples, tokens = (counted(found.totals[name], name[:-1]) for name in ("samples", "tokens"))
    parts = [f"{counted(len(found.tensors), 'tensor')} over {samples} ({tokens})"]
    parts.append(f"{states['ok']} have a range by {found.settings.method}")
    parts += [f"{count} not to be quantised: {status}" for status, count in sorted(states.items()) if status != "ok"]
    times = f"{found.settings.outlier:g}"
    outliers = sum(bool(each.outliers(found.settings.outlier)) for each in found.tensors.values())
    parts.append(f"{outliers} have channels above {times} times the median channel")
    parts += [f"{found.totals['truncated']} samples truncated"] if found.totals["truncated"] else []
    parts += [f"{found.totals['dead']} samples are all padding, left out"] if found.totals["dead"] else []
    left = {name: sum(getattr(each, name) for each in found.tensors.values()) for name in LEFT_OUT}
    parts += [f"left out: {left[name]} {what}" for name, what in LEFT_OUT.items() if left[name]]
    return "; ".join(parts)


def overview(found: Ranges) -> dict[str, Any]:
    """The file without its histograms and channels, for --json."""
    document = found.document()
    bulky = ("histogram", "channel_histograms", "channel_max", "channel_ranges")
    tensors = {name: {k: v for k, v in each.items() if k not in bulky} for name, each in document["tensors"].items()}
    return document | {"tensors": tensors, "summary": summary(found)}
