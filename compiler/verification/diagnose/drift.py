"""How far the artifact's graph drifts from its source's, after every layer.

Compared are values that both graphs have (`boundaries`), at all positions but padding. Memory: one graph is open at a
time, and no more than `WINDOW_BYTES` of its values are held for the other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import Advance, DataError, counted
from ...data import Sample, mask_feeds
from ...graph import Graph, Origin
from ...graph import provenance as origin
from ...runtime import TapSession
from .boundaries import FLOATS, SWAPPED_AXES, Boundary, match_boundaries

WINDOW_BYTES = 64 * 2**20  # bytes of values held
MAX_TOKENS = 1024  # in the samples that are compared: layers drift alike on more
PADDING = ("none", "left out", "counted")


@dataclasses.dataclass(frozen=True)
class LayerDrift:
    """Drift at a boundary. `relative`: rms of the difference / rms of the source's values; `growth` over the boundary before.

    `nonfinite` counts values that are NaN or infinite where the source's are not.
    """

    module: str
    origin: Origin
    op: str
    node: str
    relative: float
    growth: float
    max_abs: float
    cosine_min: float
    nonfinite: int
    values: int
    padding: str  # `left out`, `none`, or `counted` where the axes do not tell which positions are padding

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"origin": self.origin.to_json()}
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


@dataclasses.dataclass(frozen=True)
class Drift:
    """Drift after every layer. `against` says what was compared with, `first` names the first node whose output is not finite."""

    layers: tuple[LayerDrift, ...]
    against: str
    unmatched: tuple[str, ...]
    samples: int
    windows: int
    first: str = ""
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        worst = max(self.layers, key=lambda layer: layer.relative if math.isfinite(layer.relative) else math.inf)
        text = f"{len(self.layers)} of {len(self.layers) + len(self.unmatched)} module boundaries compared with {self.against} "
        text += f"on {counted(self.samples, 'sample')}; largest drift {worst.relative:.2g} at {worst.module}"
        return f"{text}; first value that is not finite: {self.first}" if self.first else text

    def to_json(self) -> dict[str, Any]:
        return {
            "against": self.against,
            "samples": self.samples,
            "windows": self.windows,
            "layers": [layer.to_json() for layer in self.layers],
            "unmatched": list(self.unmatched),
            "first_nonfinite": self.first,
            "notes": list(self.notes),
        }


class _Sums:
    """Running sums of one boundary."""

    def __init__(self) -> None:
        self.noise = self.signal = self.max_abs = 0.0
        self.cosine_min, self.nonfinite, self.values, self.padding = math.inf, 0, 0, "none"
        self.sample: Sample | None = None  # the first with a value that is not finite

    def add(self, expected: np.ndarray, found: np.ndarray, padding: str, sample: Sample) -> None:
        if not expected.size:
            return
        a, b = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (expected, found))
        bad = ~np.isfinite(b) & np.isfinite(a)
        kept = np.isfinite(a) & np.isfinite(b)
        a, b = np.where(kept, a, 0), np.where(kept, b, 0)
        difference = np.abs(a - b)
        lengths = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
        cosines = (a * b).sum(1)[lengths > 0] / lengths[lengths > 0]
        self.noise += float(np.square(difference).sum())
        self.signal += float(np.square(a).sum())
        self.max_abs = max(self.max_abs, float(difference.max()))
        self.cosine_min = min(self.cosine_min, float(cosines.min(initial=math.inf)))
        self.nonfinite += int(bad.sum())
        self.values += expected.size
        self.padding = max(self.padding, padding, key=PADDING.index)
        self.sample = self.sample or (sample if bad.any() else None)

    @property
    def relative(self) -> float:
        if self.nonfinite:
            return math.inf
        return math.sqrt(self.noise / self.signal) if self.signal else (math.inf if self.noise else 0.0)


def measure_drift(
    source: Graph,
    artifact: Graph,
    samples: Sequence[Sample],
    against: str,
    advance: Advance | None = None,
    notes: tuple[str, ...] = (),
) -> Drift:
    """Compare the source's float32 graph with an artifact's typed graph, whose half precision is emulated.

    Raises DataError where no boundary is found in both, or a graph does not run.
    """
    found, missing = match_boundaries(source, artifact, samples)
    if not found:
        raise DataError("no module output is in both graphs: nothing to compare (was it built by an older bertc?)")
    chosen = _up_to_token_limit(samples)
    if len(chosen) < len(samples):
        notes = (*notes, f"{len(chosen)} of {counted(len(samples), 'sample')} compared, up to {MAX_TOKENS} tokens")
    sums = {boundary: _Sums() for boundary in found}
    windows = list(_windows(found, chosen))
    for index, window in enumerate(windows):
        _compare(source, artifact, window, chosen, sums)
        if advance:
            advance(index + 1, len(windows))
    layers = tuple(_layers(sums))
    first = next((s for s in sums.items() if s[1].sample is not None), None)
    named = _first_nonfinite(artifact, found, first[0], first[1].sample) if first and first[1].sample else ""
    return Drift(layers, against, missing, len(chosen), len(windows), named, notes)


def _up_to_token_limit(samples: Sequence[Sample]) -> list[Sample]:
    """The first samples up to `MAX_TOKENS`, at least one; the largest do not count if others are there."""
    chosen, tokens = list[Sample](), 0
    for sample in samples:
        size = max((array.size for array in sample.feeds.values()), default=0)
        if tokens + size <= MAX_TOKENS:
            chosen.append(sample)
            tokens += size
    return chosen or [min(samples, key=lambda s: max(array.size for array in s.feeds.values()))]


def _windows(found: Sequence[Boundary], samples: Sequence[Sample]) -> Iterator[list[Boundary]]:
    """Boundaries in order, in groups whose values on all samples fit into `WINDOW_BYTES`."""
    window: list[Boundary] = []
    size = 0
    for boundary in found:
        own = sum(_bytes_held(boundary, sample) for sample in samples)
        if window and size + own > WINDOW_BYTES:
            yield window
            window, size = [], 0
        window.append(boundary)
        size += own
    yield window


def _bytes_held(boundary: Boundary, sample: Sample) -> int:
    """An upper bound: a dimension with a name is no larger than the largest of the feeds."""
    largest = max((max(array.shape, default=1) for array in sample.feeds.values()), default=1)
    batch = min((array.shape[0] for array in sample.feeds.values() if array.ndim), default=1)
    names = [dim for dim in boundary.dims if isinstance(dim, str)]
    numbers = math.prod(dim for dim in boundary.dims if isinstance(dim, int))
    return 4 * numbers * batch * largest ** max(0, len(names) - 1) if names else 4 * numbers


def _compare(
    source: Graph, artifact: Graph, window: Sequence[Boundary], samples: Sequence[Sample], sums: Mapping[Boundary, _Sums]
) -> None:
    with TapSession(source, [b.source for b in window]) as run:
        expected = [run.run(sample.feeds) for sample in samples]
    with TapSession(artifact, list(dict.fromkeys(b.artifact for b in window))) as run:
        for sample, truth in zip(samples, expected, strict=True):
            got = run.run(sample.feeds)
            for boundary in window:
                a, b = truth[boundary.source], got[boundary.artifact]
                b = np.swapaxes(b, *SWAPPED_AXES) if boundary.swapped else b
                *both, padding = drop_padding(source, boundary.dims, sample, a, b)
                sums[boundary].add(both[0], both[1], padding, sample)


def drop_padding(source: Graph, dims: Sequence[int | str], sample: Sample, *arrays: np.ndarray) -> tuple[Any, ...]:
    """The arrays at positions that are not padding, and whether that was `left out`, is `counted` or `none`."""
    mask = next(iter(mask_feeds(sample.feeds).values()), None)
    if mask is None or mask.ndim != 2 or mask.all():
        return (*arrays, "none")
    name = next(name for name in mask_feeds(sample.feeds))
    spec = next(spec for spec in source.inputs if spec.name == name)
    rows, positions = (dims.index(dim) if dim in dims else None for dim in spec.dims)
    chosen = np.asarray(mask) != 0
    if rows is not None and positions is not None:
        return (*(np.moveaxis(array, (rows, positions), (0, 1))[chosen] for array in arrays), "left out")
    other = [dim for dim in dims if isinstance(dim, str) and dim not in spec.dims]
    if other or (rows is None and positions is None):
        return (*arrays, "counted")
    axis, kept = (rows, chosen.any(1)) if rows is not None else (positions, chosen.any(0))
    return (*(array.compress(kept, axis) for array in arrays), "left out")


def _layers(sums: Mapping[Boundary, _Sums]) -> Iterator[LayerDrift]:
    before = 0.0
    for b, s in sums.items():
        growth = s.relative / before if before else math.nan
        before = s.relative
        yield LayerDrift(
            b.module, b.origin, b.op, b.artifact, s.relative, growth, s.max_abs, s.cosine_min, s.nonfinite, s.values, s.padding
        )


def _first_nonfinite(artifact: Graph, found: Sequence[Boundary], boundary: Boundary, sample: Sample) -> str:
    """The first node whose output is not finite although all that it reads is, looked for up to a boundary."""
    nodes = [n for n in artifact.model.graph if n.outputs[0].dtype in FLOATS and n.outputs[0].name]
    end = next(i for i, n in enumerate(nodes) if n.outputs[0].name == boundary.artifact)
    finite: dict[ir.Value, bool] = {}
    for at in range(0, end + 1, 16):
        some = nodes[at : min(at + 16, end + 1)]
        with TapSession(artifact, [str(n.outputs[0].name) for n in some]) as run:
            values = run.run(sample.feeds)
        for node in some:
            finite[node.outputs[0]] = bool(np.isfinite(values[str(node.outputs[0].name)]).all())
        bad = next((n for n in some if not finite[n.outputs[0]] and all(finite.get(v, True) for v in n.inputs if v)), None)
        if bad is not None:
            return f"{bad.op_type} {bad.name!r} in {origin.origin_of(bad)}, on {sample.label}"
    return f"before {boundary.module}, on {sample.label}"
