"""Samples that see nothing: an output that is the same for every input proves nothing about what makes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core import Outputs, TensorSpec
from ..data import Layout, Sample, live_rows

FLOOR = 1e-6  # of the largest value; what float32 rounding leaves of a value that depends on nothing is a tenth of it


class SpreadMeter:
    """Smallest and largest value of every output at each place of its fixed dimensions, over all rows of all samples."""

    def __init__(self, outputs: Sequence[TensorSpec], layout: Layout | None = None) -> None:
        self._layout = layout
        self._specs = {spec.name: spec for spec in outputs}
        self._ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._rows: dict[str, int] = {}

    def add(self, sample: Sample, outputs: Outputs) -> None:
        """One sample's outputs; rows that are all masked are left out."""
        for name, spec in self._specs.items():
            axis = self._layout.outputs.get(name, 0) if self._layout else 0
            rows = _rows(np.asarray(outputs[name]), spec, sample, axis)
            if not rows.size:
                continue
            low, high = rows.min(axis=0), rows.max(axis=0)
            before = self._ends.get(name)
            if before is not None and before[0].shape == low.shape:
                low, high = np.minimum(low, before[0]), np.maximum(high, before[1])
            self._ends[name] = (low, high)
            self._rows[name] = self._rows.get(name, 0) + len(rows)

    def blind(self) -> tuple[str, ...]:
        """Outputs that do not depend on the input, as far as two rows or more show."""
        return tuple(name for name, ends in self._ends.items() if self._rows[name] > 1 and _same(*ends))


def _rows(array: np.ndarray, spec: TensorSpec, sample: Sample, axis: int) -> np.ndarray:
    """[rows, values]: the dimensions that have a name in front, those of a fixed size behind."""
    array = live_rows(array, sample, axis)
    named = [axis for axis, dim in enumerate(spec.dims) if isinstance(dim, str)] if len(spec.dims) == array.ndim else []
    fixed = [axis for axis in range(array.ndim) if axis not in named]
    width = int(np.prod([array.shape[axis] for axis in fixed], dtype=np.int64))
    return np.transpose(array, (*named, *fixed)).reshape(-1, width) if width else np.empty((0, 0))


def _same(low: np.ndarray, high: np.ndarray) -> bool:
    if low.dtype.kind in "biu":
        return bool(np.array_equal(low, high))
    largest = max(float(np.abs(low).max()), float(np.abs(high).max()))
    spread = float((high.astype(np.float64) - low.astype(np.float64)).max())
    return bool(np.isfinite(spread) and spread <= FLOOR * largest)


def describe_blind(names: Sequence[str], count: int, all_outputs: bool) -> str:
    """What is wrong with the samples, and what helps."""
    listed = ", ".join(map(repr, names))
    these = "all outputs are" if all_outputs else f"output{'s' * (len(names) > 1)} {listed} {'are' if len(names) > 1 else 'is'}"
    return (
        f"{these} the same for all {count} samples: they prove nothing about what depends on the input. "
        "Give texts or arrays like what the model will see: --data FILE (and --goldens data to keep them in the artifact)"
    )
