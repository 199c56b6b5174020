"""What one distillation is asked for, as one value: the command line, Python and distillation.json are made from its fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import InputError, did_you_mean

# Each is a function of losses.py, named there with its paper.
LOSSES = (
    *("cosine", "similarity", "logits", "tokens", "embedding", "hidden", "attention", "relations"),
    *("margin", "masked-lm", "labels"),
)
# What measures best where nothing is given, by what the teacher gives (benchmarks/README.md, "Distillation").
DEFAULT_LOSSES: Mapping[str, Mapping[str, float]] = {
    "sentence-embedding": {"cosine": 1.0},
    "token-embedding": {"tokens": 1.0},
    "features": {"tokens": 1.0},
    "sequence-classification": {"logits": 1.0},
    "token-classification": {"logits": 1.0},
    "question-answering": {"logits": 1.0},
    "masked-lm": {"logits": 1.0, "masked-lm": 1.0, "tokens": 1.0},
}
MOST_WEIGHT = 1e6  # beyond, gradients overflow and nothing is learned
OUTPUT_LOSSES = ("cosine", "similarity", "margin")
PRECISIONS, MAPPINGS = ("auto", "bf16", "fp32"), ("even", "first", "last", "search")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a student is cut and taught. None is a default that depends on the teacher."""

    layers: int | None = None  # None: as many as the teacher (self-distillation)
    width: int | None = None
    ffn: int | None = None
    layer_map: str = "even"  # or first, last, search, or the teacher's layers by number: 1,3,5
    losses: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teacher_weights: tuple[float, ...] = ()
    temperature: float = 2.0
    epochs: float = 1.0
    steps: int | None = None
    batch: int = 32
    max_length: int | None = None  # tokens; None: 128, or the teacher's own limit where that is less
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    dropout: bool = False
    mask_share: float = 0.15
    held_out: float = 0.05
    evaluations: int = 10
    patience: int = 4
    checkpoint_seconds: float = 60.0
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "losses": dict(self.losses), "teacher_weights": list(self.teacher_weights)}


def check(settings: Settings) -> None:
    """Refuse impossible values before any work is done."""
    for name, weight in settings.losses.items():
        if name not in LOSSES:
            raise InputError(f"no loss is called {name!r}{did_you_mean(name, LOSSES)}")
        if not 0 <= weight <= MOST_WEIGHT:
            raise InputError(f"the weight of loss {name!r} is {weight}; it is a number of 0 or more, up to {MOST_WEIGHT:g}")
    if settings.losses and not any(settings.losses.values()):
        raise InputError("every loss has the weight 0: nothing would be learned; give one of them more")
    if any(not 1 / MOST_WEIGHT <= each <= MOST_WEIGHT for each in settings.teacher_weights):
        raise InputError(
            f"the weights of the teachers are {list(settings.teacher_weights)}; each is a number above 0, {1 / MOST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}"
        )
    _check_ranges(settings)
    if settings.precision not in PRECISIONS:
        raise InputError(f"precision is {settings.precision!r}{did_you_mean(settings.precision, PRECISIONS)}")
    layer_numbers(settings.layer_map)


def _check_ranges(settings: Settings) -> None:
    """Each with the least value that makes sense, and the value beyond which it has none."""
    ranges: dict[str, tuple[float, float]] = {
        **dict.fromkeys(("layers", "width", "ffn", "steps", "batch", "evaluations", "patience"), (1, 10**9)),
        "max_length": (3, 10**6),
        "temperature": (1e-3, 1e3),
        "epochs": (1e-9, 10**6),
        "learning_rate": (1e-12, 1.0),
        "weight_decay": (0, 1),
        "warmup": (0, 0.9),
        "clip": (1e-6, 1e6),
        "mask_share": (0.01, 0.9),
        "held_out": (1e-6, 0.9),
        "checkpoint_seconds": (0, 1e9),
        "seed": (0, 2**63 - 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            raise InputError(f"{name.replace('_', '-')} is {value}; it is {low:g} to {high:g}")


def layer_numbers(text: str) -> tuple[int, ...] | None:
    """`1,3,5` as numbers, None for the name of a rule. InputError for anything else."""
    if text in MAPPINGS:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise InputError(
            f"the layer map is {text!r}; it is {', '.join(MAPPINGS)}, or the teacher's layers by number from 0, as in 1,3,5"
        )
    numbers = tuple(map(int, words))
    if list(numbers) != sorted(set(numbers)):
        raise InputError(f"the layer map {text!r} is not in rising order, each layer once")
    return numbers


def losses_of(settings: Settings, task: str, *, labelled: bool, reranker: bool) -> dict[str, float]:
    """The weights of the losses that count: those that were given, else what measures best for the task.

    Raises InputError for a loss that the teacher, or the data, gives nothing for.
    """
    given = {name: weight for name, weight in settings.losses.items() if weight}
    chosen = given or dict(DEFAULT_LOSSES[task])
    if labelled and "labels" not in settings.losses:
        chosen["labels"] = 1.0
    if reranker and "margin" not in settings.losses:
        chosen["margin"] = 1.0
    why = {
        **dict.fromkeys(("cosine", "similarity"), "sentence-embedding" if task != "sentence-embedding" else ""),
        "logits": "" if task.endswith(("classification", "answering")) or task == "masked-lm" else "one with logits",
        "masked-lm": "" if task == "masked-lm" else "masked-lm",
        "tokens": "" if task in ("features", "token-embedding", "masked-lm") else "features or masked-lm",
    }
    for name in chosen:
        if why.get(name):
            raise InputError(f"loss {name!r} needs a teacher of another task ({why[name]}); this one is {task}")
    if "labels" in chosen and not labelled:
        raise InputError("loss 'labels' needs labelled rows: --labels FILE")
    if "margin" in chosen and not reranker:
        raise InputError("loss 'margin' needs a reranker among the teachers, and pairs (text, text_pair) in --data")
    return chosen


def shares(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """The share of each teacher, all the same where nothing is given; they sum to 1."""
    if weights and len(weights) != count:
        raise InputError(f"{len(weights)} weights of teachers for {count} teachers; give one each, or none")
    found = tuple(weights) or (1.0,) * count
    return tuple(each / sum(found) for each in found)
