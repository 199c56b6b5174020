"""Does a written file run, and does it answer as the file it was made of? Asked of every fused file, proofs or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ...core import BertcError, CheckFailed, DataError, Dim, Feeds, Outputs, SourceError
from ...data import synthetic as data
from ...graph import Graph, Refused, short_reason
from .prover import distance

# Another order of float32 sums: as the export check.
TOLERANCE = 1e-5
# A source in half precision rounds every step to 11 bits (float16) or 8 (bfloat16), its fused form fewer of them.
HALF_TOLERANCE = 2e-2
SAMPLE_ELEMENTS = 4096  # rows x length


def check_written(
    written: Path, graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs], *, half: bool = False, seed: int = 0
) -> str:
    """Load the file `written` in ONNX Runtime and compare it with `run`, the original, on synthetic feeds of `graph`'s inputs.

    `half`: the original rounds to half precision, and the written file does not. Returns a note. Raises CheckFailed where the
    file does not load, does not run where the original does, or answers otherwise.
    """
    from ...source import FileRunner

    fused = FileRunner(written)
    try:
        fused.open()
    except SourceError as error:
        raise CheckFailed(f"nothing was written: {short_reason(error)}") from error
    try:
        samples = data.synthetic_samples(graph, dims, seed, SAMPLE_ELEMENTS)
    except DataError as why:
        return f"the fused file loads in ONNX Runtime; it was not run: {why}"
    worst, count, failed = 0.0, 0, ""
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    for sample in samples:
        try:
            wanted = run(sample.feeds)
        except BertcError:
            raise
        except Exception as error:  # noqa: BLE001 - a table shorter than the sample; onnxruntime has no public base class
            failed = f"{sample.label}: {short_reason(error)}"
            continue
        try:
            got = fused(sample.feeds)
        except Exception as error:
            raise CheckFailed(f"nothing was written: the fused graph does not run at {sample.label}: {error}") from error
        for name, array in wanted.items():
            worst = max(worst, _difference(got, name, array, sample.label, sample.dead_rows, tolerance))
        count += 1
    if not count:
        return f"the fused file loads in ONNX Runtime; it was not run, because the source itself fails ({failed})"
    return f"the fused file was run: {count} shapes and masks, max relative error {worst:.1e}"


def _difference(got: Outputs, name: str, wanted: np.ndarray, label: str, dead: tuple[int, ...], tolerance: float) -> float:
    if name not in got:
        raise CheckFailed(f"nothing was written: the fused graph has no output {name!r}")
    mine = got[name]
    if dead and mine.ndim and mine.shape == wanted.shape:  # a row without a token may change (graph/normalization.py)
        mine, wanted = (np.delete(array, dead, axis=0) for array in (mine, wanted))
    try:
        found = distance(mine, wanted, "the fused graph")
    except Refused as why:
        raise CheckFailed(f"nothing was written: output {name!r} at {label}: {why}") from why
    if not found <= tolerance:
        raise CheckFailed(
            f"nothing was written: the fused graph changes output {name!r} at {label}: relative error {found:.1e}, "
            f"more than {tolerance:.0e}; please report this"
        )
    return found
