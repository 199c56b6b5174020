"""Is the exported graph the model? Run both at shapes and masks the exporter never saw, and keep the outputs as goldens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import goldens
from ..core import (
    Advance,
    BertcError,
    ExportFailed,
    Feeds,
    Outputs,
    Profile,
    RecipeError,
    RunFailed,
    first_line,
    raise_unless_of_run,
    stop_if_exhausted,
)
from ..data import Layout, Sample, dead_rows_of, live_rows, special_ids
from ..data import synthetic as data
from ..runtime import ReferenceRunner, Runner
from ..source import Source, runner_of
from . import budgets
from .blind import SpreadMeter, describe_blind
from .budgets import Budget
from .choices import Ties
from .comparison import Comparison
from .given_check import check_given

if TYPE_CHECKING:
    from ..fusions import Fused
    from ..graph import Graph

# float32 on both sides, in another order of summation: 1e-5 is ten times what is seen on BERT, and far below any real fault.
EXPORT_BUDGET = Budget(rel=1e-5)
GOLDEN_BYTES = 64 * 2**20  # outputs kept in an artifact; a masked-LM head at length 512 alone makes 62 MB a text


@dataclasses.dataclass(frozen=True)
class ExportCheck:
    """The samples that were run, what the source answered, and how close the graph came."""

    samples: tuple[Sample, ...]
    outputs: tuple[Outputs, ...]
    comparison: Comparison
    notes: tuple[str, ...] = ()
    measured: Mapping[str, Any] | None = None  # of a check that was read back: what was measured when it was made
    what: str = "export check: {} unseen shapes and masks"

    def to_json(self) -> dict[str, Any]:
        """How close the graph came, as `ComparisonResult.to_json`."""
        return dict(self.measured) if self.measured is not None else self.comparison.result().to_json()

    def summary(self) -> str:
        result = self.comparison.result()
        worst = max(output.relative for output in result.outputs)
        return f"{self.what.format(result.samples)}, max relative error {worst:.1e}"


def check_export(
    source: Source,
    profiles: Sequence[Profile],
    advance: Advance,
    *,
    seed: int = 0,
    golden_data: Path | None = None,
    has_data: bool = False,
) -> ExportCheck:
    """Compare the graph with its source at seeded synthetic feeds. With `golden_data` the goldens are samples of that file.

    Raises ExportFailed naming output, sample and the dimension that breaks it; and for goldens that see nothing (all outputs are
    the same for all of them) unless the build `has_data` to verify on beside them."""
    requested = _select_samples(source, profiles, seed, golden_data)
    samples, notes = requested.samples, requested.notes
    unanswered: list[str] = []
    runner = runner_of(source.graph)
    comparison, meter = (
        _comparison(source, source.graph),
        SpreadMeter(source.graph.outputs, Layout.of(source.graph.inputs, source.graph.outputs)),
    )
    kept: list[tuple[Sample, Outputs]] = []
    wrong: dict[int, str | Comparison] = {}
    size = 0
    for index, sample in enumerate(samples):
        expected = requested.known[index] if requested.known else _run_source(source, sample)
        advance(index + 1, len(samples))
        if silent := _unanswered(source, sample, expected):
            unanswered.append(silent)
            continue
        wrong |= {index: why} if (why := _what_differs(runner, sample, expected, comparison)) else {}
        if index >= requested.first_golden:
            size += sum(array.nbytes for array in expected.values())
            kept += [(sample, expected)] if size <= GOLDEN_BYTES or not kept else []
            meter.add(sample, expected)
    if said := _still_wrong(wrong, comparison):
        raise ExportFailed(_explain(samples, said, source))
    if not wrong and not comparison.result(part=True).outputs:
        raise ExportFailed(f"nothing was compared with the source: no row of {len(samples)} samples is without a mask")
    notes = (*notes, *unanswered)
    wanted = len(samples) - requested.first_golden - len(unanswered)
    if len(kept) < wanted:
        notes = (*notes, f"goldens: {len(kept)} of {wanted} samples kept, outputs are limited to {GOLDEN_BYTES >> 20} MiB")
    notes = (*notes, *_nan_notes(kept), *_blind_notes(meter.blind(), source, wanted, has_data))
    notes = (*notes, *check_given(source, [s for s, _ in kept], [o for _, o in kept]))
    return ExportCheck(tuple(s for s, _ in kept), tuple(o for _, o in kept), comparison, notes, None, _what(source))


def _blind_notes(blind: Sequence[str], source: Source, count: int, has_data: bool) -> tuple[str, ...]:
    """What goldens do not show. Raises ExportFailed where they show nothing at all, and nothing else will."""
    if not blind:
        return ()
    everything = len(blind) == len(source.graph.outputs)
    said = f"goldens: {describe_blind(blind, count, everything)}"
    if everything and not has_data:
        raise ExportFailed(said)
    return (said,)


def _what(source: Source) -> str:
    """What is checked, in words, with {} for the number of samples. An .onnx source has no exporter."""
    if source.run is None:
        return "graph check: {} goldens of the artifact"
    return "graph check: {} shapes and masks" if source.kind == "onnx" else ExportCheck.what


def _comparison(source: Source, graph: Graph) -> Comparison:
    layout = Layout.of(source.graph.inputs, source.graph.outputs)
    return Comparison(source.task, layout=layout, ties=Ties(graph, budgets.choice_tolerance(EXPORT_BUDGET)))


def check_fused(fused: Fused, source: Source, check: ExportCheck) -> None:
    """The whole fused graph against the source on the same feeds; ExportFailed naming the output and the sample."""
    from ..ops import expand

    expanded = expand(fused.graph)
    runner = ReferenceRunner(expanded)
    comparison = _comparison(source, expanded)
    for sample, expected in zip(check.samples, check.outputs, strict=True):
        comparison.add(expected, runner.run(sample.feeds), sample)
    violations = budgets.find_violations(comparison.result(), EXPORT_BUDGET)
    if violations:
        raise ExportFailed(
            f"the fused graph differs from the source: {violations[0]}. Build with --no-fuse, and please report this"
        )


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Samples to run, their outputs where they are known, and the first that becomes a golden."""

    samples: tuple[Sample, ...]
    known: tuple[Outputs, ...] = ()
    notes: tuple[str, ...] = ()
    first_golden: int = 0


def _select_samples(source: Source, profiles: Sequence[Profile], seed: int, golden_data: Path | None) -> _Samples:
    """An artifact brings its goldens; anything else is run at synthetic feeds, and at the user's data where goldens are to be."""
    if source.run is None:
        if golden_data is not None:
            raise RecipeError(f"--goldens data: {source.reference} is an artifact and cannot run the data; build from its source")
        assert source.goldens is not None, "a source without a computation is an artifact, which has goldens"
        return _Samples(*goldens.load_goldens(source.goldens))
    special = special_ids(source.assets)
    synthetic = data.synthetic_samples(source.graph, source.dims, seed, _most_elements(source), special=special)
    synthetic = (*synthetic, *(_typed(sample, source) for sample in source.samples))
    if golden_data is not None:
        from ..data import read_data

        bounds = data.index_bounds(source.graph)
        read = read_data(golden_data, source.graph.inputs, source.dims, source.assets, profiles, bounds=bounds)
        # Goldens from data hold the data alone, so that their decisions are decisions about data.
        return _Samples((*synthetic, *read.samples), (), read.notes, len(synthetic))
    return _Samples(synthetic)


def _typed(sample: Sample, source: Source) -> Sample:
    """A sample that came with the source, in the types of the graph's inputs."""
    feeds = {spec.name: sample.feeds[spec.name].astype(spec.dtype) for spec in source.graph.inputs}
    return dataclasses.replace(sample, feeds=feeds, dead_rows=dead_rows_of(source.graph, feeds))


def _most_elements(source: Source) -> int:
    """Tokens in a sample, so that no output passes the limit of all goldens: a vocabulary of logits is 120 kB a token."""
    widest = max(math.prod(d for d in spec.dims if isinstance(d, int)) for spec in source.graph.outputs)
    return min(data.MAX_ELEMENTS, max(1, GOLDEN_BYTES // (4 * widest)))


def _run_source(source: Source, sample: Sample) -> Outputs:
    assert source.run is not None
    try:
        outputs = source.run(sample.feeds)
    except Exception as error:  # PyTorch's exceptions share no public base class
        raise_unless_of_run(error)
        why = first_line(error)
        raise ExportFailed(
            f"the source fails at {sample.label}: {why}. It must take every size of its dynamic dimensions: "
            "fix the dimension that it needs fixed, or make the model take any size"
        ) from error
    if not sample.made_up and (name := _not_finite(source, sample, outputs)):
        what = f"the source gives NaN or Inf in output {name!r} at {sample.label}"
        raise ExportFailed(f"{what}: nothing can be verified against it")
    return outputs


def _not_finite(source: Source, sample: Sample, outputs: Outputs) -> str:
    """An output with a number that is none, in a row that has a token; "" where there is none."""
    layout = Layout.of(source.graph.inputs, source.graph.outputs)
    living = ((name, live_rows(array, sample, layout.outputs.get(name, 0))) for name, array in outputs.items())
    return next((name for name, array in living if not np.isfinite(array).all()), "")


def _unanswered(source: Source, sample: Sample, outputs: Outputs) -> str:
    """Why nothing is compared at a mask that bertc made up, and that a user's texts need not have: the source has no answer."""
    name = _not_finite(source, sample, outputs) if sample.made_up else ""
    if not name:
        return ""
    spread = " in rows that have tokens" if sample.dead_rows else ""
    return f"not checked: {sample.label}: the source gives NaN or Inf in output {name!r}{spread}. Send it no such batch"


def _nan_notes(kept: Sequence[tuple[Sample, Outputs]]) -> tuple[str, ...]:
    """A source that gives NaN for a text without a token is no failure of the export, but its users want to know."""
    for sample, outputs in kept:
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                return (f"the source gives NaN or Inf in output {name!r} for a row whose mask is all zero ({sample.label})",)
    return ()


def _what_differs(runner: Runner, sample: Sample, expected: Outputs, comparison: Comparison) -> str | Comparison | None:
    """What is wrong with the graph at this sample; its comparison where it is too far away, judged alone; or None."""
    try:
        got = runner.run(sample.feeds)
    except RunFailed as error:
        stop_if_exhausted(error)
        return str(error)
    one = Comparison(comparison.task, layout=comparison.layout, ties=comparison.ties)
    try:
        one.add(expected, got, sample)
        comparison.add(expected, got, sample)
    except BertcError as error:
        return str(error)
    found = one.result(part=True)
    if not found.outputs and not found.decisions:
        return None  # every row of it is masked; whether anything was compared at all is asked of the whole
    return one if budgets.find_violations(found, EXPORT_BUDGET) else None


def _still_wrong(wrong: Mapping[int, str | Comparison], comparison: Comparison) -> dict[int, str]:
    """What is wrong at which sample, now that the scale of every output is known: that of one sample may be near zero."""
    scales, found = comparison.least_scales(), {}
    for index, why in wrong.items():
        if isinstance(why, str):
            found[index] = why
        elif violations := budgets.find_violations(why.result(scales, part=True), EXPORT_BUDGET):
            found[index] = str(violations[0])
    return found


def _explain(samples: Sequence[Sample], wrong: Mapping[int, str], source: Source) -> str:
    """Name the dimension: the one whose sizes in the failing samples never occur in the passing ones."""
    first = next(iter(wrong))
    graph, expected = "the exported graph", "the source"
    if source.run is None:
        graph, expected = "the artifact's graph", "its goldens"
    elif source.kind == "onnx":
        graph, expected = "the graph read from the file", "ONNX Runtime on the file itself"
    text = f"{graph} differs from {expected} at {len(wrong)} of {len(samples)} samples"
    text += f"; first {samples[first].label}: {wrong[first]}"
    exported = source.run is not None and source.kind != "onnx"
    if source.run is not None and (name := _wavers(source, samples[first])):
        return (
            f"{text}. The source itself does not repeat output {name!r} at equal inputs: it draws random numbers (a dropout that "
            "is on in evaluation mode, noise), or keeps a state between calls; take that out of its forward"
        )
    for axis_name in _sizes(samples[0].feeds):
        failing = {_sizes(samples[i].feeds)[axis_name] for i in wrong}
        passing = {_sizes(s.feeds)[axis_name] for i, s in enumerate(samples) if i not in wrong}
        if passing and not failing & passing:  # where nothing passes, no dimension can be named
            name, axis = axis_name
            sizes, holding = (", ".join(map(str, sorted(each))) for each in (failing, passing))
            text += f". It fails whenever axis {axis} of {name!r} is {sizes}, and holds at {holding}"
            cause = ": the exporter baked in one size of that dimension, or one way of a branch. Rewrite the Python that depends "
            return text + cause + "on it (a fixed arange, an int() of a shape)" if exported else text
    return text + (". No dimension explains it: the exporter got an operator or an input wrong" if exported else "")


def _wavers(source: Source, sample: Sample) -> str:
    """An output that the source answers otherwise when it is asked again, "" where there is none. Threads alone change no digit
    that counts here."""
    once, again = _run_source(source, sample), _run_source(source, sample)
    closeness = ((name, array, again[name]) for name, array in once.items())
    return next((name for name, a, b in closeness if not np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)), "")


def _sizes(feeds: Feeds) -> dict[tuple[str, int], int]:
    return {(name, axis): size for name, array in feeds.items() for axis, size in enumerate(array.shape)}
