"""Sizes that a source runs at, and dimensions that must be equal, found by running it.

The graph says most (`dim_names`); what it computes inside branches, reshapes or foreign operators only a run shows: sizes that
differ fail, and equal ones do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ..core import names_of, size_at
from ..data import samples
from .size_trial import Sizes, Trial

FEW = 40  # candidates that are tried with every choice of the dimensions that stay 1, before all are
SHIFTS = ("+ 1", "+ 2", "- 1", "- 2")
MOST_COMPUTED = 6  # dimensions beside the batch, above which no sums are tried
ROWS = (2, 3)  # more than one, for an axis of one is spread over any other
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 20, 32, 40, 64, 80, 128, 160, 256, 320, 512)


def first_sizes(trial: Trial, asked: Sequence[Sizes] = ()) -> dict[str, int] | None:
    """Sizes that the source runs at: those the user asks for, the usual ones, else what a search finds. None: at none."""
    usual = trial.usual()
    for sizes in (*({**usual, **each} for each in asked), usual):
        if not trial.refused(sizes):
            return dict(sizes)
    return next((sizes for sizes in _searched(trial) if not trial.refused(sizes)), None)


def _searched(trial: Trial) -> Iterator[dict[str, int]]:
    """One size for all dimensions but those that count rows; these may stand on any axis."""
    names, leading = list(trial.dims), trial.leading()
    others = [name for name in names if name not in leading]
    rows = [set(leading), *({*leading, name} for name in others if len(others) > 1)]
    sizes = list(trial.candidates())
    for part in (sizes[:FEW], sizes[FEW:]):
        for ones in rows:
            yield from ({name: 1 if name in ones else size for name in names} for size in part if size > 1)
    for size in (1, *ROWS, 4, 16):
        yield dict.fromkeys(names, size)


def ties(trial: Trial, base: dict[str, int]) -> dict[str, str]:
    """{dimension: the one that it equals}, of those that have one size in `base`. `base` may be moved to sizes that tell more."""
    found: dict[str, str] = {}
    for size in dict.fromkeys(base.values()):
        group = [name for name in base if base[name] == size]
        if len(group) > 1:
            found |= _ties_of(trial, base, group, size)
    return found


def apart(trial: Trial) -> dict[str, int]:
    """A size of its own for each dimension, those that stand first too: of one row, all batches are equal."""
    leading = [name for name in trial.leading() if trial.dims[name].max is None]
    return {**trial.usual(), **{name: 2 + at for at, name in enumerate(leading)}}


def alike(trial: Trial) -> dict[str, str]:
    """{dimension: the one that it equals}, of inputs of one rank whose axes are equal one by one: ids and their mask.

    What is taken for equal runs at two choices of sizes that tell the axes apart, and fails where it is not equal.
    """
    pairs: dict[str, str] = {}
    by_rank: dict[int, tuple[int | str, ...]] = {}
    for spec in trial.graph.inputs:
        first = by_rank.setdefault(len(spec.dims), spec.dims)
        both = [(name, mate) for name, mate in zip(spec.dims, first, strict=True) if name in trial.dims and mate in trial.dims]
        pairs |= {str(name): str(mate) for name, mate in both if name != mate and name not in pairs.values()}
    usual = apart(trial)
    for more in (0, 3):
        sizes = {name: size + more for name, size in usual.items()}
        sizes |= {name: sizes[mate] for name, mate in pairs.items()}
        if not pairs or trial.refused(sizes):
            return {}
    return {name: mate for name, mate in pairs.items() if trial.refused({**sizes, name: sizes[name] + 1})}


def _ties_of(trial: Trial, base: dict[str, int], group: list[str], size: int) -> dict[str, str]:
    if size == 1:
        moved = {**base, **dict.fromkeys(group, ROWS[0])}
        if trial.refused(moved):
            return {}
        base, size = moved, ROWS[0]
    other = next((each for each in _beside(size) if not trial.refused({**base, **dict.fromkeys(group, each)})), None)
    if other is None:
        return {}
    found: dict[str, str] = {}
    for name in group:
        if name in found:
            continue
        for mate in _together(trial, base, [each for each in group if each not in found], name, other):
            if mate != name:
                found[mate] = name
    return found


def computed(trial: Trial) -> dict[str, str]:
    """{dimension: the sum that it is}, of a source that no size of its own for each dimension suits: a mask of past + 1 under
    another name. It runs where the sum holds, at two sizes, and with more than that it does not."""
    usual = trial.usual()
    free = [name for name in usual if name not in samples.batch_dims(trial.graph.inputs, trial.dims)]
    if not trial.refused(usual) or len(free) > MOST_COMPUTED:
        return {}
    for name in free:
        others = [other for other in free if other != name]
        for text in _sums(others):
            if all(_follows(trial, usual, name, text, more) for more in (0, 4)):
                return {name: text}
    return {}


def _sums(names: Sequence[str]) -> Iterator[str]:
    yield from (f"{name} {shift}" for name in names if name.isidentifier() for shift in SHIFTS)
    yield from (f"2*{name}" for name in names if name.isidentifier())
    yield from (f"{a} + {b}" for a, b in itertools.combinations(names, 2) if a.isidentifier() and b.isidentifier())


def _follows(trial: Trial, usual: Sizes, name: str, text: str, more: int) -> bool:
    others = {each: size + more if each in names_of([text]) else size for each, size in usual.items()}
    size = size_at(text, others)
    if size < 1 or trial.refused({**others, name: size}):
        return False
    return all(trial.refused({**others, name: size + step}) for step in STEPS)  # else it takes multiples, or any size


def _beside(size: int) -> Iterator[int]:
    for step in STEPS:
        yield from (each for each in (size + step, size - step) if each > 1)


def _together(trial: Trial, base: Sizes, group: list[str], name: str, other: int) -> list[str]:
    """The fewest of a group, `name` among them, that can be of another size while the rest stays."""
    moving = list(group)
    for each in group:
        fewer = [mate for mate in moving if mate != each]
        if each != name and not trial.refused({**base, **dict.fromkeys(fewer, other)}):
            moving = fewer
    return moving
