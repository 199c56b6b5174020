"""What a search chooses from: which layers, the heads and FFN neurons of each, the precision."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..compress import parts
from ..distill import Net, choose
from .request import Request

SIZES = 6  # widths a layer can have: of more a table takes longer, and a trial knows less about each
NOT_SEARCHED = {
    "hidden width": "every LayerNorm is over all of it, so a part of it is another function: bertc distill --width trains one",
    "precision by layer": "bertc build --int8 with --budget max_drop chooses the layers left in float, on the finished student",
    "rank": "matrices of low rank share no weights with whole ones: bertc compress --low-rank",
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A student: layers of the model, and for each of them its heads and FFN neurons."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    precision: str

    def __str__(self) -> str:
        layers = f"layers {' '.join(map(str, self.layers))}"
        return f"{layers}; heads {_shortly(self.heads)}; FFN {_shortly(self.ffn)}; {self.precision}"

    def to_json(self) -> dict[str, Any]:
        return {name: list(each) if isinstance(each, tuple) else each for name, each in dataclasses.asdict(self).items()}


def _shortly(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else " ".join(map(str, values))


@dataclasses.dataclass(frozen=True)
class Space:
    """`heads` and `ffn` are the sizes that a layer can have, in rising order; the last one is the model's own."""

    depth: int
    heads: tuple[int, ...]
    ffn: tuple[int, ...]
    precisions: tuple[str, ...]
    uniform: bool
    not_searched: Mapping[str, str]

    def whole(self, layers: Sequence[int], precision: str) -> Candidate:
        """These layers with all that they have."""
        return self.made(layers, [self.heads[-1]] * self.depth, [self.ffn[-1]] * self.depth, precision)

    def made(self, layers: Sequence[int], heads: Sequence[int], ffn: Sequence[int], precision: str) -> Candidate:
        """A candidate of sizes by layer of the model; those of layers that it has not say nothing."""
        taken = tuple(layers) or (self.depth - 1,)
        return Candidate(taken, tuple(heads[at] for at in taken), tuple(ffn[at] for at in taken), precision)

    def largest(self) -> Candidate:
        return self.whole(range(self.depth), self.precisions[0])

    def smallest(self, precision: str) -> Candidate:
        """One layer, the last, as narrow as it gets."""
        return self.made((), [self.heads[0]] * self.depth, [self.ffn[0]] * self.depth, precision)

    def anchors(self) -> list[Candidate]:
        """Students that one would try by hand, whole layers evenly over the model, and all layers of one width."""
        found = []
        for precision in self.precisions:
            found += [self.whole(choose(self.depth, count, "even"), precision) for count in range(self.depth, 0, -1)]
            for width in reversed(self.ffn[:-1]):
                found.append(self.made(range(self.depth), [self.heads[-1]] * self.depth, [width] * self.depth, precision))
        return found

    def drawn(self, random: np.random.Generator) -> Candidate:
        """One at random: first how many layers, so that few are as likely as many."""
        count = int(random.integers(1, self.depth + 1))
        layers = sorted(random.permutation(self.depth)[:count].tolist())
        heads, ffn = ([int(each) for each in random.choice(sizes, self.depth)] for sizes in (self.heads, self.ffn))
        if self.uniform:
            ffn = [ffn[0]] * self.depth
        return self.made(layers, heads, ffn, self.precisions[0])

    def suggested(self, trial: Any) -> Candidate:
        """What an Optuna trial says. Sizes are asked for by their rank: a step means the same everywhere."""
        layers = [at for at in range(self.depth) if trial.suggest_int(f"layer_{at}", 0, 1)]
        ask = functools.partial(self._asked, trial)
        if self.uniform:
            heads, ffn = [self.heads[-1]] * self.depth, [ask("ffn", self.ffn)] * self.depth
        else:
            heads = [ask(f"heads_{at}", self.heads) for at in range(self.depth)]
            ffn = [ask(f"ffn_{at}", self.ffn) for at in range(self.depth)]
        precision = trial.suggest_categorical("precision", self.precisions) if len(self.precisions) > 1 else self.precisions[0]
        return self.made(layers, heads, ffn, precision)

    def _asked(self, trial: Any, name: str, sizes: Sequence[int]) -> int:
        return sizes[trial.suggest_int(name, 0, len(sizes) - 1)] if len(sizes) > 1 else sizes[0]

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """The parameters of a trial that would suggest a candidate."""
        found: dict[str, Any] = {f"layer_{at}": int(at in candidate.layers) for at in range(self.depth)}
        both = (("heads", self.heads, candidate.heads), ("ffn", self.ffn, candidate.ffn))
        for name, sizes, chosen in both:
            by_layer = dict(zip(candidate.layers, chosen, strict=True))
            if self.uniform and name == "ffn" and len(sizes) > 1:
                found["ffn"] = sizes.index(chosen[0])
            for at in range(self.depth) if not self.uniform and len(sizes) > 1 else ():
                found[f"{name}_{at}"] = sizes.index(by_layer.get(at, sizes[-1]))
        return {**found, "precision": candidate.precision} if len(self.precisions) > 1 else found

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "not_searched": dict(self.not_searched)}


def space_of(net: Net, request: Request) -> Space:
    """The space of a model; `not_searched` says what of it is fixed, and why."""
    first = parts.parts_of(net)[0]
    fixed = dict(NOT_SEARCHED)
    ffn = sizes_of(first.neurons, request.multiple)
    if len(ffn) == 1:
        fixed["FFN width"] = f"{first.neurons} neurons are no more than the multiple {request.multiple} (--multiple)"
    heads = sizes_of(first.heads, request.multiple // math.gcd(request.multiple, first.head_size))
    if request.uniform:
        fixed["heads"] = "a Hugging Face config cannot hold fewer of the same size (--uniform)"
    elif net.model.config.model_type == "mpnet":
        fixed["heads"] = "MPNet's layers share one bias of positions, a row for each head"
    elif len(heads) == 1:
        fixed["heads"] = (
            f"{first.heads} heads of {first.head_size} are no more than a multiple of {request.multiple} (--multiple)"
        )
    heads = heads[-1:] if "heads" in fixed else heads
    return Space(len(net.layers), heads, ffn, request.searched, request.uniform, fixed)


def sizes_of(whole: int, multiple: int) -> tuple[int, ...]:
    """Up to SIZES multiples, evenly spaced, and the whole."""
    if multiple >= whole:
        return (whole,)
    wanted = (whole * at / SIZES for at in range(1, SIZES))
    return tuple(sorted({*(max(multiple, round(each / multiple) * multiple) for each in wanted), whole} - {0}))
