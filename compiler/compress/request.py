"""What one compression is asked for, as one value: the command line, Python and compression.json are made from its fields."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ..core import DataError, InputError, did_you_mean
from ..source import SourceOptions

SHARING = ("best", "mean", "one")
TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclasses.dataclass(frozen=True)
class Request:
    """What is compressed, by which steps (in the order of these fields), on which texts.

    `prune_ffn`, `prune_heads`: the share that goes. `low_rank`: the share of full rank that stays, or a rank. `recover`: steps of
    training, or seconds as in `120s`. Widths are multiples of `multiple`. `weighted` False is plain SVD, to compare with.
    """

    model: str
    data: Path | None = None
    held_out: Path | None = None
    pairs: Path | None = None
    drop_layers: int | None = None
    prune_ffn: float | None = None
    prune_heads: float | None = None
    low_rank: float | None = None
    share_layers: str | None = None
    recover: str | None = None
    multiple: int = 64
    weighted: bool = True
    seed: int = 0
    max_length: int | None = None
    samples: int = 512  # texts that importance is measured on
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the steps, in their order."""
        return tuple(name for name in STEPS if getattr(self, name) is not None)

    def to_json(self) -> dict[str, Any]:
        chosen = {name: getattr(self, name) for name in self.wanted}
        more = ("recover", "multiple", "weighted", "seed", "max_length", "samples")
        return {**chosen, **{name: getattr(self, name) for name in more}}


# Layers and width first: they are worth most, and what comes later is measured on what is left.
STEPS = ("drop_layers", "prune_ffn", "prune_heads", "low_rank", "share_layers")


def check(request: Request) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if not request.wanted:
        raise InputError(f"nothing to do: give one or more of {', '.join(map(option, STEPS))}")
    if request.data is None:
        raise DataError(
            "no texts: what a model can do without shows on data; give --data FILE, hundreds of texts like those it will see"
        )
    for name in ("prune_ffn", "prune_heads"):
        share = getattr(request, name)
        if share is not None and not 0 < share < 1:
            raise InputError(f"{option(name)} is {share:g}; it is the share that goes, between 0 and 1, as in 0.25")
    _check_rank(request.low_rank)
    if request.drop_layers is not None and request.drop_layers < 1:
        raise InputError(f"--drop-layers is {request.drop_layers}; it is how many layers go, 1 or more")
    if request.share_layers is not None and request.share_layers not in SHARING:
        raise InputError(f"--share-layers is {request.share_layers!r}{did_you_mean(request.share_layers, SHARING)}")
    if request.multiple < 1 or request.samples < 1:
        raise InputError(f"--multiple is {request.multiple}, samples {request.samples}; each is 1 or more")
    recovery(request.recover)


def option(name: str) -> str:
    """The name of a field on the command line."""
    return "--" + name.replace("_", "-")


def _check_rank(rank: float | None) -> None:
    if rank is None:
        return
    if not (0 < rank < 1 or (rank > 1 and float(rank).is_integer())):
        raise InputError(
            f"--low-rank is {rank:g}; it is the share of full rank that stays, between 0 and 1, as in 0.5, or a rank, as in 256"
        )


def recovery(text: str | None) -> tuple[int | None, float | None]:
    """(steps, seconds) of --recover, one of them; both None without it."""
    if text is None:
        return None, None
    if text.isdecimal() and int(text) > 0:
        return int(text), None
    found = TIME.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--recover is {text!r}; it is a number of steps, as in 300, or a time, as in 120s or 2m")
    return None, float(found[1]) * UNITS[found[2]]
