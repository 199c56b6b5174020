"""Does a written file run, and does it answer as the file it was made of? Asked of every fused file, proofs or not.

Where it differs by more than the tolerance, the source is asked how much rounding makes of it: all scores of a query that may
attend to nothing stand beside -10000, say, where float32 keeps three digits, and another order of sums keeps others. So its graph
is run again with every weight at the next float32, and what that moves an output by is no error of a fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ...core import CheckFailed, DataError, Dim, Feeds, Outputs, SourceError, raise_unless_of_run, stop_if_exhausted
from ...data import Sample
from ...data import synthetic as data
from ...graph import Graph, Refused, short_reason
from ...runtime import ReferenceRunner
from .prover import distance

if TYPE_CHECKING:
    from ...source import FileRunner

# Another order of float32 sums: as the export check.
TOLERANCE = 1e-5
# A source in half precision rounds every step to 11 bits (float16) or 8 (bfloat16), its fused form fewer of them.
HALF_TOLERANCE = 2e-2
SAMPLE_ELEMENTS = 4096  # rows x length
# A fusion reorders more sums than weights have neighbours: what it may move is a few times what one nudge does.
TIMES_NUDGED = 4
DRAWS = 8


def check_written(
    written: Path, graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs], *, half: bool = False, seed: int = 0
) -> str:
    """Load the file `written` in ONNX Runtime and compare it with `run`, the original, on synthetic feeds of `graph`'s inputs.

    `half`: the original rounds to half precision, and the written file does not. Returns a note. Raises CheckFailed where the
    file does not load, does not run where the original does, or answers otherwise.
    """
    fused = _opened(written)
    try:
        samples = data.synthetic_samples(graph, dims, seed, SAMPLE_ELEMENTS)
    except DataError as why:
        return f"the fused file loads in ONNX Runtime; it was not run: {why}"
    worst, count, failed = 0.0, 0, ""
    nudges, told = Nudges(graph, samples, run), list[str]()
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    for sample in samples:
        try:
            wanted = run(sample.feeds)
        except Exception as error:  # noqa: BLE001 - a table shorter than the sample
            raise_unless_of_run(error)
            failed = f"{sample.label}: {short_reason(error)}"
            continue
        got = _answer(fused, sample)
        for name, array in wanted.items():
            found = _difference(got, name, array, sample.label, sample.dead_rows)
            worst = max(worst, found)
            if not found <= tolerance:
                told.append(_excused(found, tolerance, nudges, name, sample.label))
        count += 1
    if not count:
        return f"the fused file loads in ONNX Runtime; it was not run, because the source itself fails ({failed})"
    said = f"; {len(told)} beyond {tolerance:.0e} by rounding alone: {told[0]}" if told else ""
    return f"the fused file was run: {count} shapes and masks, max relative error {worst:.1e}{said}"


def _opened(written: Path) -> FileRunner:
    from ...source import FileRunner

    fused = FileRunner(written)
    try:
        fused.open()
    except SourceError as error:
        raise CheckFailed(f"nothing was written: {short_reason(error)}") from error
    return fused


def _answer(fused: FileRunner, sample: Sample) -> Outputs:
    try:
        return fused(sample.feeds)
    except Exception as error:
        raise CheckFailed(f"nothing was written: the fused graph does not run at {sample.label}: {error}") from error


class Nudges:
    """How far a graph's outputs move on some samples when its weights go to their neighbours, drawn by chance, several times.

    One draw may miss what another shows: few scores stand so close to a step of -10000 + score that the last bit takes them over.
    """

    def __init__(self, graph: Graph, samples: Sequence[Sample], wanted: Callable[[Feeds], Outputs]) -> None:
        self.moved: dict[str, float] = {}
        self._runs = self._run(graph, samples, wanted)

    def explain(self, found: float, name: str) -> bool:
        """Whether an error of an output is not many times what rounding moves it by; runs no further than it takes to tell."""
        while not found <= TIMES_NUDGED * self.moved.get(name, 0.0):
            if next(self._runs, None) is None:
                return False
        return True

    def _run(self, graph: Graph, samples: Sequence[Sample], wanted: Callable[[Feeds], Outputs]) -> Iterator[bool]:
        for draw in range(DRAWS):
            runner = ReferenceRunner(nudged(graph, draw))
            for sample in samples:
                try:
                    right, moved = wanted(sample.feeds), runner.run(sample.feeds)
                    each = {n: _difference(moved, n, array, sample.label, sample.dead_rows) for n, array in right.items()}
                except Exception as error:  # noqa: BLE001 - a table shorter than the sample
                    stop_if_exhausted(error)
                    continue  # the samples that run are told by the caller
                self.moved = {name: max(size, self.moved.get(name, 0.0)) for name, size in each.items()}
                yield True


def nudged(graph: Graph, draw: int) -> Graph:
    """A copy with each float32 weight (no scalar: those are lows, scales and epsilons) at the next number up or down."""
    copy = graph.copy()
    for number, value in enumerate(copy.model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or not tensor.shape.rank() or tensor.size < 2:
            continue

        def load(tensor: ir.TensorProtocol = tensor, number: int = number) -> ir.TensorProtocol:
            array = tensor.numpy()
            towards = np.where(np.random.default_rng((number, draw)).random(array.shape) < 0.5, -np.inf, np.inf).astype(
                np.float32
            )
            return ir.tensor(np.nextafter(array, towards))

        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.LazyTensor(load, dtype=tensor.dtype, shape=shape, name=str(value.name))
    return copy


def _excused(found: float, tolerance: float, nudges: Nudges, name: str, label: str) -> str:
    """Why an error over the tolerance is rounding. Raises CheckFailed where it is not."""
    explained, moved = nudges.explain(found, name), nudges.moved.get(name, 0.0)
    if not explained:
        raise CheckFailed(
            f"nothing was written: the fused graph changes output {name!r} at {label}: relative error {found:.1e}, "
            f"more than {tolerance:.0e}; the source itself moves by {moved:.1e} when each weight goes to the next float32; "
            "please report this"
        )
    return (
        f"output {name!r} at {label} is off by {found:.1e}, the source itself by {moved:.1e} with each weight at the next float32"
    )


def _difference(got: Outputs, name: str, wanted: np.ndarray, label: str, dead: tuple[int, ...]) -> float:
    if name not in got:
        raise CheckFailed(f"nothing was written: the fused graph has no output {name!r}")
    mine = got[name]
    if dead and mine.ndim and mine.shape == wanted.shape:  # a row without a token may change (graph/normalization.py)
        mine, wanted = (np.delete(array, dead, axis=0) for array in (mine, wanted))
    try:
        return distance(mine, wanted, "the fused graph")
    except Refused as why:
        raise CheckFailed(f"nothing was written: output {name!r} at {label}: {why}") from why
