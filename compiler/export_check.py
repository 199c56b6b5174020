"""Is the exported graph the model? Run both at shapes and masks the exporter never saw, and keep the outputs as goldens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import data, goldens, metrics
from .data import Sample
from .errors import BertcError, DataError, ExportFailed, RecipeError
from .metrics import Budget, Comparison
from .profiles import Profile
from .progress import Advance
from .recipe import Recipe
from .reference import ReferenceRunner
from .runner import Feeds, Outputs, Runner
from .source import Source

# float32 on both sides, in another order of summation: 1e-5 is ten times what is seen on BERT, and far below any real fault.
BUDGET = Budget(rel=1e-5)
GOLDEN_BYTES = 64 * 2**20  # outputs kept in an artifact; a masked-LM head at length 512 alone makes 62 MB a text


@dataclasses.dataclass(frozen=True)
class Proof:
    """The samples that were run, what the source answered, and how close the graph came."""

    samples: tuple[Sample, ...]
    outputs: tuple[Outputs, ...]
    comparison: Comparison
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        worst = max(output.relative for output in self.comparison.result().outputs)
        return f"export: {len(self.samples)} shapes and masks never seen by the exporter, relative error at most {worst:.1e}"


def prove(source: Source, recipe: Recipe, profiles: Sequence[Profile], advance: Advance) -> Proof:
    """Compare the graph with its source. Raises ExportFailed naming output, sample and the dimension that breaks it."""
    samples, known, read = _samples(source, recipe, profiles)
    runner = ReferenceRunner(source.graph)
    comparison = Comparison(source.task)
    kept: list[tuple[Sample, Outputs]] = []
    wrong: dict[int, str] = {}
    size = 0
    for index, sample in enumerate(samples):
        expected = known[index] if known else _truth(source, sample)
        wrong |= {index: why} if (why := _difference(runner, sample, expected, comparison)) else {}
        size += sum(array.nbytes for array in expected.values())
        if size <= GOLDEN_BYTES or not kept:
            kept.append((sample, expected))
        advance(index + 1, len(samples))
    if wrong:
        raise ExportFailed(_blame(samples, wrong))
    dropped = len(samples) - len(kept)
    if dropped:
        read = (*read, f"goldens keep {len(kept)} of {len(samples)} samples: their outputs pass {GOLDEN_BYTES >> 20} MiB")
    return Proof(tuple(s for s, _ in kept), tuple(o for _, o in kept), comparison, read)


def _samples(
    source: Source, recipe: Recipe, profiles: Sequence[Profile]
) -> tuple[tuple[Sample, ...], tuple[Outputs, ...], tuple[str, ...]]:
    """(samples, their known outputs, notes): an artifact brings its goldens; anything else is run at synthetic feeds."""
    if source.run is None:
        if recipe.goldens == "data":
            raise RecipeError(f"--goldens data: {source.reference} is an export and cannot answer new data; build from its source")
        return *goldens.load_goldens(Path(source.reference) / "goldens.npz"), ()
    made = data.synthetic(source.graph, source.dims, recipe.seed)
    if recipe.goldens == "data":
        from .verification import read_data

        read = read_data(Path(str(recipe.data)), source.graph.inputs, source.dims, source.assets, profiles)
        return (*made, *read.samples), (), read.notes
    return made, (), ()


def _truth(source: Source, sample: Sample) -> Outputs:
    assert source.run is not None
    outputs = source.run(sample.feeds)
    for name, array in outputs.items():
        if not np.isfinite(array).all():
            raise ExportFailed(f"the source itself gives NaN or Inf in {name!r} at {sample.label}; bertc cannot verify against it")
    return outputs


def _difference(runner: Runner, sample: Sample, expected: Outputs, comparison: Comparison) -> str | None:
    """What is wrong with the graph at this sample, or None."""
    try:
        got = runner.run(sample.feeds)
    except DataError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return f"ONNX Runtime cannot run it: {str(error).strip().splitlines()[0]}"
    one = Comparison(comparison.task)
    try:
        one.add(expected, got, sample)
        comparison.add(expected, got, sample)
    except BertcError as error:
        return str(error)
    violations = metrics.judge(one.result(), BUDGET)
    return str(violations[0]) if violations else None


def _blame(samples: Sequence[Sample], wrong: Mapping[int, str]) -> str:
    """Name the dimension: the one whose sizes in the failing samples never occur in the passing ones."""
    first = next(iter(wrong))
    text = f"the exported graph is not the model at {len(wrong)} of {len(samples)} samples; first {samples[first].label}: {wrong[first]}"
    for axis_name in _sizes(samples[0].feeds):
        failing = {_sizes(samples[i].feeds)[axis_name] for i in wrong}
        passing = {_sizes(s.feeds)[axis_name] for i, s in enumerate(samples) if i not in wrong}
        if passing and not failing & passing:  # where nothing passes, no dimension can be told from another
            name, axis = axis_name
            sizes = ", ".join(map(str, sorted(failing)))
            text += f". It fails whenever axis {axis} of {name!r} is {sizes}: the exporter baked in one size of that dimension"
            break
    return text + ". Rewrite the Python that depends on this size (a branch, an int() of a shape, a fixed arange)"


def _sizes(feeds: Feeds) -> dict[tuple[str, int], int]:
    return {(name, axis): size for name, array in feeds.items() for axis, size in enumerate(array.shape)}
