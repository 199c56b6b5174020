"""Does the packed graph answer as the padded one? On rows of all lengths, either padding, holes, and an empty row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import CheckFailed, DataError, Dim, Feeds
from ..data import Sample, dead_rows
from ..data import synthetic as data
from ..graph import Graph
from ..ops import expand
from ..runtime import ReferenceRunner
from .padding import zero_padding
from .rewrite import Packing

TOLERANCE = 1e-5  # of the largest number of an output, in float32: another order of sums, as in the export check
ROWS, LONGEST = 12, 48


def check_packed(
    packing: Packing,
    lowered: Mapping[str, Graph],
    fused: Graph,
    dims: Mapping[str, Dim],
    samples: Sequence[Sample] = (),
    seed: int = 0,
) -> str:
    """Run the packed graph as each target gets it (`lowered`) and the padded one; returns what was found, in words.

    Raises CheckFailed naming the target, the output and the sample where they differ.
    """
    padded, packed = ReferenceRunner(expand(fused)), {target: ReferenceRunner(graph) for target, graph in lowered.items()}
    try:
        ragged, lengths = _ragged(fused, dims, str(packing.facts["mask"]), samples, seed), "rows of all lengths"
    except DataError as why:
        ragged, lengths = [], f"none with rows of all lengths ({why})"
    given = [*((sample.label, sample.feeds) for sample in samples), *ragged]
    worst = 0.0
    for label, feeds in given:
        wanted = zero_padding(padded.run(feeds), feeds, packing.facts)
        for target, runner in packed.items():
            got = runner.run(feeds)
            for name, array in wanted.items():
                error = _distance(*_live(feeds, array, got[name]))
                if not error <= TOLERANCE:
                    raise CheckFailed(
                        f"packed for {target}: output {name!r} differs by {error:.1e} (relative to its largest number) at "
                        f"{label}; the padded graph is right: build without --packed, and please report this"
                    )
                worst = max(worst, error)
    forms = f" for {' and '.join(packed)}" if len(packed) > 1 else ""
    return f"packed graph against padded graph{forms}: {len(given)} samples, {lengths}, max relative error {worst:.1e}"


def _live(feeds: Feeds, *arrays: np.ndarray) -> list[np.ndarray]:
    """Without rows that hold no token: what a softmax over nothing but masks gives is a matter of rounding."""
    dead = dead_rows(feeds)
    return [np.delete(array, dead, axis=0) if dead and array.ndim and len(array) > max(dead) else array for array in arrays]


def _distance(wanted: np.ndarray, got: np.ndarray) -> float:
    if wanted.shape != got.shape:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(wanted, got) else float("inf")
    same = np.isnan(wanted) & np.isnan(got)
    differs = np.where(same, 0, np.abs(wanted.astype(np.float64) - got))
    largest = float(np.nanmax(np.abs(wanted), initial=0.0))
    return float(differs.max(initial=0.0)) / (largest or 1.0)


def _ragged(graph: Graph, dims: Mapping[str, Dim], mask: str, samples: Sequence[Sample], seed: int) -> list[tuple[str, Feeds]]:
    """Batches whose rows have as many tokens as can be, padded on either side or with holes, and one row of none.

    No longer than the samples, at which the padded graph is known to run. DataError where no such batch can be made.
    """
    spec = next((spec for spec in graph.inputs if spec.name == mask), None)
    seen = [sample.feeds[mask].shape[1] for sample in samples if mask in sample.feeds]
    if spec is None or not seen or not all(dim in dims for dim in spec.dims):
        raise DataError(f"the mask {mask!r} is no input with a batch and a length to choose")
    wanted = dict(zip(map(str, spec.dims), (ROWS, min(LONGEST, max(seen))), strict=True))
    names = [name for each in graph.inputs for name in each.dims if isinstance(name, str)]
    sizes = {name: dims[name].fit(wanted.get(name, dims[name].min)) for name in names}
    feeds = data.sample_at(graph, dims, sizes, seed).feeds
    rows, longest = (sizes[str(name)] for name in spec.dims)
    lengths, places = np.linspace(0, longest, rows).round().astype(int), np.arange(longest)
    patterns = {
        "rows of all lengths": places < lengths[:, None],
        "rows of all lengths, padded left": places >= longest - lengths[:, None],
        "rows of all lengths, with holes": (places < lengths[:, None]) & (places % 3 != 1),
    }
    return [(label, {**feeds, mask: pattern.astype(spec.dtype)}) for label, pattern in patterns.items()]
