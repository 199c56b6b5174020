"""What one search is asked for, as one value: the command line, Python and search.json are made from its fields."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from ..core import DataError, InputError, did_you_mean
from ..source import SourceOptions
from .cost import Cost

QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-zµ]+)")
UNITS = {
    "latency": {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}
EXAMPLE = {"latency": "2ms", "size": "20MB"}
# What a target can be searched in: the first is the one that a latency is compared in. Others need calibration for each trial.
PRECISIONS = {"onnxruntime": ("fp32", "fp16", "int8-dynamic"), "tensorrt-rtx": ("fp16", "fp32")}
TARGETS = tuple(PRECISIONS)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is searched: in `trials` trials the best student of `model` within `latency` or `size`, for a `target`.

    `steps` train the network that all candidates are parts of, `finish` the best of the `finalists`. `uniform`: one FFN width and
    all heads, which a Hugging Face config can hold. `shape`: batch x length that costs hold for.
    """

    model: str
    data: Path | None = None
    held_out: Path | None = None
    pairs: Path | None = None
    latency: str | None = None
    size: str | None = None
    target: str = "onnxruntime"
    precisions: tuple[str, ...] = ()
    shape: str = "8x128"
    threads: int = 0
    trials: int = 100
    steps: int = 300
    finish: int = 600
    finalists: int = 4
    uniform: bool = False
    multiple: int = 64
    max_length: int | None = None
    seed: int = 0
    batch: int = 32
    learning_rate: float = 4e-4
    samples: int = 128  # texts that importance is measured on
    options: SourceOptions = dataclasses.field(default_factory=SourceOptions)

    @property
    def budget(self) -> Budget:
        """The limit that was asked for."""
        kind = "latency" if self.latency is not None else "size"
        text = str(getattr(self, kind))
        return Budget(kind, quantity(kind, text), text)

    @property
    def searched(self) -> tuple[str, ...]:
        """The precisions that trials choose from. fp16 is left out of a latency on this CPU, which computes it in float32."""
        slow = ("fp16",) if self.latency is not None and self.target == "onnxruntime" else ()
        return self.precisions or tuple(each for each in PRECISIONS[self.target] if each not in slow)

    def to_json(self) -> dict[str, Any]:
        apart = ("model", "data", "held_out", "pairs", "options")
        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in apart}
        return {**chosen, "precisions": list(self.searched)}


@dataclasses.dataclass(frozen=True)
class Budget:
    """A limit of latency in seconds, or of the bytes of an engine's weights."""

    kind: str
    limit: float
    text: str

    def of(self, cost: Cost) -> float:
        """What of a cost the limit is about."""
        return float(cost.seconds if self.kind == "latency" else cost.weight_bytes)

    def holds(self, cost: Cost) -> bool:
        return self.of(cost) <= self.limit

    def shown(self, value: float) -> str:
        """A value as words."""
        return f"{value * 1e3:.3g} ms" if self.kind == "latency" else f"{value / 1e6:.4g} MB"

    def option(self, value: float) -> str:
        """A value as the option that asks for it, rounded up: what is written so holds."""
        unit, name = (1e-3, "ms") if self.kind == "latency" else (1e6, "MB")
        digits = 3 if value / unit < 1 else 2
        return f"--{self.kind} {-(-value / unit * 10**digits // 1) / 10**digits:g}{name}"


def quantity(kind: str, text: str) -> float:
    """`2ms` in seconds, `20MB` in bytes. InputError for anything else."""
    found = QUANTITY.fullmatch(text.strip())
    units = UNITS[kind]
    if found is None or found[2] not in units or float(found[1]) <= 0:
        raise InputError(f"--{kind} is {text!r}; it is a number with a unit ({', '.join(units)}), as in {EXAMPLE[kind]}")
    return float(found[1]) * units[found[2]]


def check(request: Request) -> None:
    """Refuse what cannot be meant, before any work is done."""
    if (request.latency is None) == (request.size is None):
        given = "both are given" if request.size is not None else "neither is given"
        raise InputError(f"{given}: give one limit, --latency (as in 2ms) or --size (as in 20MB)")
    if request.target not in TARGETS:
        raise InputError(f"--target is {request.target!r}{did_you_mean(request.target, TARGETS)}")
    _ = request.budget
    if request.latency is not None and request.target == "tensorrt-rtx":
        raise InputError(
            "--latency with tensorrt-rtx: its engines run on a GPU, and bertc search times on the CPU alone: a table of kernels, "
            "bytes and FLOPs says no time. Give --size, or --target onnxruntime"
        )
    known = PRECISIONS[request.target]
    for each in request.precisions:
        if each not in known:
            why = "it is calibrated, once for every trial: search in another one, and build what is found in it"
            extra = f" ({why})" if each in ("int8", "int8-static", "fp8") else ""
            raise InputError(f"--precision {each} is not searched for {request.target}{extra}; known: {', '.join(known)}")
    if request.data is None:
        raise DataError("no texts: candidates learn, and are judged, on data; give --data FILE, thousands of texts of your users")
    least = {
        "trials": 1,
        "steps": 1,
        "finish": 0,
        "finalists": 1,
        "multiple": 1,
        "threads": 0,
        "seed": 0,
        "batch": 1,
        "samples": 1,
    }
    for name, low in least.items():
        if getattr(request, name) < low:
            raise InputError(f"--{name} is {getattr(request, name)}; it is {low} or more")
    if not 0 < request.learning_rate <= 1:
        raise InputError(f"--learning-rate is {request.learning_rate}; it is more than 0, 1 at most")
