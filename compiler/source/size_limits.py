"""Which sizes an .onnx file takes, where nothing in it says so: a table of positions has an end, a frame of speech takes some
samples, a window only its own length, a patch a multiple of four.

A checkpoint has a config that tells; of a graph it is measured: it is run at the smallest and at the largest size that are ever
tried, and where it refuses one, or answers with nothing, the first size that it takes is searched for. Batches are not: a batch
that a graph does not take is a fault to be told. What the user's profiles ask for is tried before anything else, and is an error
where the source refuses it.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence

from ..core import AUDIO_DIM, Dim, Feeds, Outputs, Range, RecipeError, default_range, names_of, read_ranges, with_computed
from ..data import samples
from ..data import synthetic as data
from ..graph import Graph
from .dim_names import BATCH, call_by_role, rename_dims
from .output_dims import name_outputs, unnamed
from .size_ties import alike, apart, computed, first_sizes, ties
from .size_trial import Trial

BETWEEN = (16, 17, 31, 33, 47, 48, 63, 64, 65, 96, 101, 128, 131, 160)  # where gaps show, of steps up to 64
SEVERAL = (1, 2, 3, 5)
MULTIPLES = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    14,
    16,
    20,
    24,
    28,
    32,
    40,
    48,
    64,
    80,
    96,
    100,
    128,
    160,
    192,
    256,
    320,
    400,
    512,
    640,
    1024,
)


def settle_sizes(
    graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs], profiles: Sequence[str] = ()
) -> tuple[dict[str, Dim], list[str]]:
    """The dimensions of `graph` with the limits that were found; those that must be equal become one, in place. Notes of both.

    `profiles` as the user wrote them are believed first. Raises RecipeError for one that asks for a size that the source does not
    take, with what the source said.
    """
    asked = [read_ranges(text) for text in profiles]
    known = dict(dims)
    notes: list[str] = []
    trial = Trial(graph, known, run)
    if not asked and not set(known) - {samples.batch_dim(graph.inputs, known)}:  # rows alone
        usual = trial.usual()
        return known, list(name_outputs(trial, usual)) if known and unnamed(trial) and not trial.refused(usual) else []
    sums = computed(trial)
    if sums:
        rename_dims(graph.model, sums)
        notes.append(
            "sizes that follow from others, because other sizes fail: " + ", ".join(f"{a} = {b}" for a, b in sums.items())
        )
        known, trial = _renamed(graph, run)
    found = alike(trial) if trial.refused(apart(trial)) else {}
    base = None if found else first_sizes(trial, _first_asked(trial, asked))
    if found or (base is not None and trial.refused(trial.usual())):
        found = found or ties(trial, dict(base or {}))
        if found:
            rename_dims(graph.model, found)
            notes.append("equal dimensions, because other sizes fail: " + ", ".join(f"{a} = {b}" for a, b in found.items()))
            notes += call_by_role(graph.model)
            known, trial = _renamed(graph, run)
            base = first_sizes(trial, _first_asked(trial, asked))
    if base is not None:
        notes += name_outputs(trial, base)
    trial.dims = count_rows(trial)
    found_dims, more = _limits(trial, base) if base is not None else (trial.dims, [])
    found_dims = _from_nothing(trial, base, asked, found_dims)
    for ranges in asked:
        _check_asked(trial, base or trial.usual(), ranges, found_dims)
    return found_dims, [*notes, *more]


def _renamed(graph: Graph, run: Callable[[Feeds], Outputs]) -> tuple[dict[str, Dim], Trial]:
    """The dimensions of a graph whose dims were renamed, and a trial of these."""
    axes = [dim for spec in graph.inputs for dim in spec.dims]
    known = with_computed({name: Dim(name) for name in names_of(axes)}, axes)
    return known, Trial(graph, known, run)


def measure_limits(graph: Graph, dims: Mapping[str, Dim], run: Callable[[Feeds], Outputs]) -> tuple[dict[str, Dim], list[str]]:
    """`dims` with the limits that were found, and a note of each. A graph that runs at no size is left to the export check."""
    trial = Trial(graph, dims, run)
    base = first_sizes(trial)
    return _limits(trial, base) if base is not None else (dict(dims), [])


def count_rows(trial: Trial) -> dict[str, Dim]:
    """The dimensions, with those known that count rows beside the batch: they stand where such dims do, and the source takes one
    to three of them, whatever the batch. A number of channels, or a width that comes in patches, it does not."""
    inputs, found = trial.graph.inputs, dict(trial.dims)
    batch, more = samples.batch_dim(inputs, found), samples.may_count_rows(inputs, found)
    for name in more:
        tried = ({str(batch): rows, **dict.fromkeys(more, 2), name: size} for rows, size in ((2, 1), (1, 2), (2, 3)))
        sizes = ({**trial.usual(), **{n: _within(found[n], size) for n, size in each.items()}} for each in tried)
        if not any(map(trial.refused, sizes)):
            found[name] = dataclasses.replace(found[name], rows=True)
    many = any(dim.rows for dim in found.values())
    if batch is not None and batch != BATCH and batch in found and (many or batch.startswith("batch_")):
        found[batch] = dataclasses.replace(found[batch], rows=True)
    return found


def _within(dim: Dim, size: int) -> int:
    return min(max(size, dim.min), dim.max or size)


def _from_nothing(
    trial: Trial, base: Mapping[str, int] | None, asked: Sequence[Mapping[str, Range]], dims: Mapping[str, Dim]
) -> dict[str, Dim]:
    """The dimensions of which a profile asks for none, from 0 on where the source runs so: a cache may be empty, no batch is."""
    batches, found = samples.batch_dims(trial.graph.inputs, trial.dims), dict(dims)
    wanted = {name for ranges in asked for name, each in ranges.items() if not each.min and name in found}
    for name in sorted(wanted - set(batches)):
        empty = {**found, name: dataclasses.replace(found[name], min=0)}
        if not Trial(trial.graph, empty, trial.run).refused({**(base or trial.usual()), name: 0}):
            found[name] = empty[name]
            trial.dims = {**trial.dims, name: dataclasses.replace(trial.dims[name], min=0)}
    return found


def _first_asked(trial: Trial, asked: Sequence[Mapping[str, Range]]) -> list[dict[str, int]]:
    """The sizes of each profile that are tried first: its best ones, one row."""
    batches = samples.batch_dims(trial.graph.inputs, trial.dims)
    return [
        {
            name: max(trial.dims[name].min, each.min if name in batches else each.opt)
            for name, each in ranges.items()
            if name in trial.dims
        }
        for ranges in asked
        if ranges
    ]


def _limits(trial: Trial, base: Mapping[str, int]) -> tuple[dict[str, Dim], list[str]]:
    batches = samples.batch_dims(trial.graph.inputs, trial.dims)
    used = {dim for spec in trial.graph.inputs for dim in spec.dims}
    found, notes = dict(trial.dims), []
    for name in (name for name, dim in trial.dims.items() if dim.max is None and name not in batches and name in used):
        found[name], more = _Search(trial, base, name).limits()
        notes += more
    return found, notes


@dataclasses.dataclass(frozen=True)
class _Search:
    """Along one dimension, the others at sizes that run."""

    trial: Trial
    base: Mapping[str, int]
    name: str

    def limits(self) -> tuple[Dim, list[str]]:
        dim, here = self.trial.dims[self.name], self.base[self.name]
        low_end, high_end = dim.min, max(here, data.sizes_tried(dim)[1])
        usual = dict(self.base) == self.trial.usual()
        if not usual and self._gap():
            return self._multiples()
        if not self.refused(low_end) and not self.refused(high_end):
            return dim, []
        step, why = self._step(here, high_end)
        if not step:
            text = f"dimension {self.name}: only {here} ({why})"
            return dataclasses.replace(dim, min=here, max=here), [text]
        notes = [f"dimension {self.name}: multiples of {step} ({why})"] if step > 1 else []
        low, why_low = self.until(low_end, step)
        if dim.name != AUDIO_DIM:  # whose profile goes to 20 s
            high_end = max(high_end, default_range(dataclasses.replace(dim, min=low)).max)
        high, why_high = self.until(high_end, step)
        if usual and why_low and not why_high and self._gap():  # the usual size and the largest ran by luck
            return self._multiples()
        if why_low:
            notes.append(f"dimension {self.name}: minimum {low} ({why_low})")
        if why_high:
            notes.append(f"dimension {self.name}: maximum {high} ({why_high})")
        low = low if why_low else max(dim.min, step if step > 1 else dim.min)
        return dataclasses.replace(dim, min=low, max=high if why_high else None, multiple=step), notes

    def _gap(self) -> str:
        """Why a size does not run that lies between two that do; "" where there is none among those tried.

        A map that is halved five times and doubled again to be added to itself takes 1, and 25 to 32, and 57 to 64.
        """
        ran = False
        for size in sorted({*BETWEEN, self.base[self.name]}):
            why = self.refused(size)
            if why and ran and any(not self.refused(each) for each in BETWEEN if each > size):
                return why
            ran = ran or not why
        return ""

    def _multiples(self) -> tuple[Dim, list[str]]:
        """What is left of a dimension with gaps: multiples of the first step of which several run, else the one size."""
        dim, why = self.trial.dims[self.name], self._gap()
        for step in MULTIPLES:
            if not any(self.refused(step * each) for each in SEVERAL):
                of_step = dataclasses.replace(self, base={**self.base, self.name: step * SEVERAL[-1]})
                high, why_high = of_step.until(max(step * SEVERAL[-1], default_range(dim).max, data.sizes_tried(dim)[1]), step)
                notes = [f"dimension {self.name}: multiples of {step} ({why})"]
                notes += [f"dimension {self.name}: maximum {high} ({why_high})"] if why_high else []
                return dataclasses.replace(dim, min=step, max=high if why_high else None, multiple=step), notes
        here = self.base[self.name]
        return dataclasses.replace(dim, min=here, max=here), [f"dimension {self.name}: only {here} ({why})"]

    def _step(self, here: int, end: int) -> tuple[int, str]:
        """(1, "") where a size beside runs, a larger step where only its multiples do, 0 where nothing beside does; and why."""
        beside = [size for size in (here + 1, here - 1) if size > 0]
        if any(not self.refused(size) for size in beside):
            return 1, ""
        why = self.refused(beside[0])
        for step in MULTIPLES:
            near = [size for size in (here + step, here - step) if 0 < size <= max(end, here + step)]
            if here % step == 0 and any(not self.refused(size) for size in near):
                return step, why
        return 0, why

    def until(self, end: int, step: int) -> tuple[int, str]:
        """(the last size from that of the base to `end` that runs, why the next does not): "" where all of them run."""
        here = self.base[self.name]
        sizes = range(here, end + 1, step) if end > here else range(here, end - 1, -step)
        if end == here or not sizes[1:] or not self.refused(sizes[-1]):
            return sizes[-1] if sizes else here, ""
        first = bisect.bisect_left(sizes, True, key=lambda size: bool(self.refused(size)))
        return sizes[first - 1], self.refused(sizes[first])

    def refused(self, size: int) -> str:
        why = self.trial.refused({**self.base, self.name: size})
        return f"{why} at {size}" if why else ""


def _check_asked(trial: Trial, base: Mapping[str, int], ranges: Mapping[str, Range], dims: Mapping[str, Dim]) -> None:
    """RecipeError for a size of a profile that the source does not run at: each alone, then the best ones together."""
    given = {name: each for name, each in ranges.items() if name in base}
    for name, each in given.items():
        for size in dict.fromkeys((each.opt, each.min, each.max)):
            why = trial.refused({**base, name: size}) if size or not dims[name].min else "there is nothing to run at"
            if why:
                found = f"the source does not take {name} {size}: {why}; {_takes(name, dims[name])}"
                found += _quoted(trial.said({**base, name: size}))
                raise RecipeError(f"profile {name}={each}: {found}")
    together = {name: each.opt for name, each in given.items()}
    if why := trial.refused({**base, **together}) if together else "":
        sizes = ", ".join(f"{name} {size}" for name, size in together.items())
        raise RecipeError(f"profile: the source does not take {sizes} together: {why}{_quoted(trial.said({**base, **together}))}")


def _takes(name: str, dim: Dim) -> str:
    if dim.min == dim.max:
        return f"it takes {name} {dim.min} alone"
    multiple = f", multiples of {dim.multiple}" if dim.multiple > 1 else ""
    top = f"the largest {name} this model takes is {dim.max}" if dim.max else "there is no largest"
    return f"the smallest {name} is {dim.min}, {top}{multiple}"


def _quoted(said: str) -> str:
    return f" (the source: {said})" if said else ""
