"""Which dimensions of the inputs the outputs have, found by running the source.

An exporter leaves the dims of outputs unnamed, or calls them by names of their own, and shape inference does not follow every
size that is computed on the way. Without the name of the batch nothing tells the rows of an output apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..core import derived
from .dim_names import rename_dims
from .size_trial import Sizes, Trial

Shapes = dict[str, tuple[int, ...]]


def unnamed(trial: Trial) -> dict[str, tuple[str, int]]:
    """{dim: (output, axis)} of the dims of outputs that are none of the inputs' and not computed from these by name."""
    return {
        dim: (spec.name, axis)
        for spec in trial.graph.outputs
        for axis, dim in enumerate(spec.dims)
        if isinstance(dim, str) and dim not in trial.dims and derived(dim) is None
    }


def name_outputs(trial: Trial, base: Sizes) -> Iterator[str]:
    """Call a dim of an output by the dimension that it follows, in place. `base`: sizes that the source runs at."""
    graph, own = trial.graph, unnamed(trial)
    if not own:
        return
    moved = {name: sizes for name in trial.dims if derived(name) is None and (sizes := _moved(trial, base, name)) is not None}
    shapes = {"": trial.shapes(base), **{name: trial.shapes(sizes) for name, sizes in moved.items()}}
    runs = [({**base}, shapes[""]), *((sizes, shapes[name]) for name, sizes in moved.items())]
    found: dict[str, str | int] = {}
    for dim, (output, axis) in own.items():
        followed = [name for name in moved if all(shape[output][axis] == sizes[name] for sizes, shape in runs)]
        if len(followed) == 1:
            found[dim] = followed[0]
    rename_dims(graph.model, found)
    if found:
        yield "dimensions of outputs, as they are when it runs: " + ", ".join(f"{dim} = {name}" for dim, name in found.items())


def _moved(trial: Trial, base: Sizes, name: str) -> dict[str, int] | None:
    """The base with another size of one dimension, that the source runs at, too."""
    for size in _beside(base[name]):
        sizes = {**base, name: size}
        if not trial.refused(sizes):
            return sizes
    return None


def _beside(size: int) -> Sequence[int]:
    return [each for each in (size + 1, size + 2, size - 1, size * 2, size // 2) if each > 0 and each != size]
