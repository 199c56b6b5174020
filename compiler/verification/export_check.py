"""Is the exported graph the model? Run both at shapes and masks the exporter never saw, and keep the outputs as goldens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import goldens
from ..core import Advance, BertcError, DataError, ExportFailed, Feeds, Outputs, Profile, RecipeError
from ..data import Sample
from ..data import synthetic as data
from ..runtime import ReferenceRunner, Runner
from ..source import Source
from . import budgets
from .budgets import Budget
from .comparison import Comparison

if TYPE_CHECKING:
    from ..fusions import Fused

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
    measured: Mapping[str, Any] | None = None  # of a proof that was read back: what was measured when it was made

    def to_json(self) -> dict[str, Any]:
        """How close the graph came, as metrics.Result says it."""
        return dict(self.measured) if self.measured is not None else self.comparison.result().to_json()

    def summary(self) -> str:
        worst = max(output.relative for output in self.comparison.result().outputs)
        return f"export: {len(self.samples)} shapes and masks never seen by the exporter, relative error at most {worst:.1e}"


def check_export(
    source: Source, profiles: Sequence[Profile], advance: Advance, *, seed: int = 0, golden_data: Path | None = None
) -> ExportCheck:
    """Compare the graph with its source at seeded synthetic feeds. With `golden_data` the goldens are samples of that file.

    Raises ExportFailed naming output, sample and the dimension that breaks it."""
    asked = _samples(source, profiles, seed, golden_data)
    samples, notes = asked.samples, asked.notes
    runner = ReferenceRunner(source.graph)
    comparison = Comparison(source.task)
    kept: list[tuple[Sample, Outputs]] = []
    wrong: dict[int, str] = {}
    size = 0
    for index, sample in enumerate(samples):
        expected = asked.known[index] if asked.known else _truth(source, sample)
        wrong |= {index: why} if (why := _difference(runner, sample, expected, comparison)) else {}
        if index >= asked.first_golden:
            size += sum(array.nbytes for array in expected.values())
            kept += [(sample, expected)] if size <= GOLDEN_BYTES or not kept else []
        advance(index + 1, len(samples))
    if wrong:
        raise ExportFailed(_blame(samples, wrong))
    wanted = len(samples) - asked.first_golden
    if len(kept) < wanted:
        notes = (*notes, f"goldens keep {len(kept)} of {wanted} samples: the outputs of all pass {GOLDEN_BYTES >> 20} MiB")
    notes = (*notes, *_dead_notes(kept))
    return ExportCheck(tuple(s for s, _ in kept), tuple(o for _, o in kept), comparison, notes)


def check_fused(fused: Fused, source: Source, proof: ExportCheck) -> None:
    """The whole fused graph against the source on the same feeds; ExportFailed naming the output and the sample."""
    from ..ops import expand

    runner = ReferenceRunner(expand(fused.graph))
    comparison = Comparison(source.task)
    for sample, expected in zip(proof.samples, proof.outputs, strict=True):
        comparison.add(expected, runner.run(sample.feeds), sample)
    violations = budgets.find_violations(comparison.result(), EXPORT_BUDGET)
    if violations:
        raise ExportFailed(
            f"the fused graph is not the model: {violations[0]}. --no-fuse builds without fusions; please report this"
        )


@dataclasses.dataclass(frozen=True)
class _Asked:
    """Samples to run, their outputs where they are known, and the first that becomes a golden."""

    samples: tuple[Sample, ...]
    known: tuple[Outputs, ...] = ()
    notes: tuple[str, ...] = ()
    first_golden: int = 0


def _samples(source: Source, profiles: Sequence[Profile], seed: int, golden_data: Path | None) -> _Asked:
    """An artifact brings its goldens; anything else is run at synthetic feeds, and at the user's data where goldens are to be."""
    if source.run is None:
        if golden_data is not None:
            raise RecipeError(f"--goldens data: {source.reference} is an export and cannot answer data; build from its source")
        assert source.goldens is not None, "a source without a computation is an artifact, which has goldens"
        return _Asked(*goldens.load_goldens(source.goldens))
    made = data.synthetic_samples(source.graph, source.dims, seed, _most_elements(source))
    if golden_data is not None:
        from ..data import read_data

        read = read_data(golden_data, source.graph.inputs, source.dims, source.assets, profiles)
        # Goldens from data hold the data alone, so that their decisions are decisions about data.
        return _Asked((*made, *read.samples), (), read.notes, len(made))
    return _Asked(made)


def _most_elements(source: Source) -> int:
    """Tokens in a sample, so that no output passes the limit of all goldens: a vocabulary of logits is 120 kB a token."""
    widest = max(math.prod(d for d in spec.dims if isinstance(d, int)) for spec in source.graph.outputs)
    return min(data.MAX_ELEMENTS, max(1, GOLDEN_BYTES // (4 * widest)))


def _truth(source: Source, sample: Sample) -> Outputs:
    assert source.run is not None
    try:
        outputs = source.run(sample.feeds)
    except (BertcError, OSError, MemoryError):
        raise
    except Exception as error:  # PyTorch's and onnxruntime's exceptions share no public base class
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportFailed(
            f"the source itself does not run at {sample.label}: {why}. It must take every size of its dynamic dimensions: "
            "fix the dimension it was made for, or make the model take any"
        ) from error
    for name, array in outputs.items():
        if not np.isfinite(_live(array, sample)).all():
            raise ExportFailed(f"the source itself gives NaN or Inf in {name!r} at {sample.label}; it cannot be verified against")
    return outputs


def _live(array: np.ndarray, sample: Sample) -> np.ndarray:
    return np.delete(array, sample.dead_rows, axis=0) if sample.dead_rows and array.ndim else array


def _dead_notes(kept: Sequence[tuple[Sample, Outputs]]) -> tuple[str, ...]:
    """A source that gives NaN for a text without a token is no failure of the export, but its users want to know."""
    for sample, outputs in kept:
        for name, array in outputs.items():
            if not np.isfinite(array).all():
                return (f"the source itself gives NaN or Inf in {name!r} for a row whose mask is all zero ({sample.label})",)
    return ()


def _difference(runner: Runner, sample: Sample, expected: Outputs, comparison: Comparison) -> str | None:
    """What is wrong with the graph at this sample, or None."""
    try:
        got = runner.run(sample.feeds)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no public base class
        return f"ONNX Runtime cannot run it: {str(error).strip().splitlines()[0]}"
    one = Comparison(comparison.task)
    try:
        one.add(expected, got, sample)
        comparison.add(expected, got, sample)
    except BertcError as error:
        return str(error)
    violations = budgets.find_violations(one.result(), EXPORT_BUDGET)
    return str(violations[0]) if violations else None


def _blame(samples: Sequence[Sample], wrong: Mapping[int, str]) -> str:
    """Name the dimension: the one whose sizes in the failing samples never occur in the passing ones."""
    first = next(iter(wrong))
    text = f"the exported graph is not the model at {len(wrong)} of {len(samples)} samples"
    text += f"; first {samples[first].label}: {wrong[first]}"
    for axis_name in _sizes(samples[0].feeds):
        failing = {_sizes(samples[i].feeds)[axis_name] for i in wrong}
        passing = {_sizes(s.feeds)[axis_name] for i, s in enumerate(samples) if i not in wrong}
        if passing and not failing & passing:  # where nothing passes, no dimension can be told from another
            name, axis = axis_name
            sizes, well = (", ".join(map(str, sorted(each))) for each in (failing, passing))
            return (
                f"{text}. It fails whenever axis {axis} of {name!r} is {sizes}, and holds at {well}: the exporter baked in "
                "one size of that dimension, or one way of a branch. Rewrite the Python that depends on it (a fixed arange, an "
                "int() of a shape)"
            )
    return text + ". No dimension tells the wrong samples from the right ones: the exporter got an operator or an input wrong"


def _sizes(feeds: Feeds) -> dict[tuple[str, int], int]:
    return {(name, axis): size for name, array in feeds.items() for axis, size in enumerate(array.shape)}
