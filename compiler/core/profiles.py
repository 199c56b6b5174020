"""Named dynamic dimensions and optimisation profiles (min:opt:max per dimension)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import RecipeError, did_you_mean
from .sizes import derived

if TYPE_CHECKING:
    from .tensors import TensorSpec

DEFAULT_MAX_BATCH = 32
DEFAULT_OPT_BATCH = 8
DEFAULT_OPT_LENGTH = 128
UNBOUNDED_LENGTH = 512
LARGEST = 2**31 - 1  # of a dimension; TensorRT takes no larger one
AUDIO_DIM = "samples"
DEFAULT_OPT_SAMPLES, DEFAULT_MAX_SAMPLES = 64000, 320000  # 4 s and 20 s at 16 kHz


@dataclasses.dataclass(frozen=True)
class Dim:
    """A named dynamic dimension: the smallest size that makes sense and the largest the model can take (None: no limit).

    It takes multiples of `multiple` alone. `rows`: it counts rows, as a batch does (queries and candidates of a ranker).
    """

    name: str
    min: int = 1
    max: int | None = None
    multiple: int = 1
    rows: bool = False

    def fit(self, size: int) -> int:
        """The largest size up to `size` that the model takes, the smallest one where there is none."""
        low = -(-self.min // self.multiple) * self.multiple
        size = size if self.max is None else min(size, self.max)
        return max(size - size % self.multiple, low)

    def to_json(self) -> dict[str, int | None]:
        """As a manifest keeps it."""
        more = {"multiple": self.multiple} if self.multiple > 1 else {}
        return {"min": self.min, "max": self.max, **more, **({"rows": True} if self.rows else {})}

    @staticmethod
    def from_json(name: str, data: Mapping[str, Any]) -> Dim:
        return Dim(name, data["min"], data["max"], data.get("multiple", 1), data.get("rows", False))


@dataclasses.dataclass(frozen=True)
class Range:
    """One dimension of an optimisation profile: valid from min to max, kernels tuned for opt."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


Profile = Mapping[str, Range]


def parse_profile(text: str, dims: Mapping[str, Dim]) -> Profile:
    """`batch=1:8:32,length=16:128:512` as a profile; raises RecipeError naming the part that is wrong.

    A dimension that is not named takes its default range.
    """
    return complete_profile(read_ranges(text), dims)


def read_ranges(text: str) -> dict[str, Range]:
    """The ranges that a profile names, whatever the model; raises RecipeError naming the part that is wrong."""
    given: dict[str, Range] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, sizes = part.partition("=")
        numbers = sizes.split(":")
        if len(numbers) != 3 or not all(n.strip().isdecimal() for n in numbers) or not name.strip():
            raise RecipeError(f"profile {part!r} is not NAME=MIN:OPT:MAX with three whole numbers, as in batch=1:8:32")
        if name.strip() in given:
            raise RecipeError(f"profile {text!r} names {name.strip()!r} twice; say --profile twice for two profiles")
        given[name.strip()] = _ordered(name.strip(), Range(*(int(n) for n in numbers)))
    return given


def _ordered(name: str, sizes: Range) -> Range:
    if not sizes.min <= sizes.opt <= sizes.max:
        raise RecipeError(f"profile {name}={sizes}: needs MIN <= OPT <= MAX")
    if sizes.max > LARGEST:
        raise RecipeError(f"profile {name}={sizes}: {sizes.max} is more than a dimension can be (2^31 - 1)")
    return sizes


def complete_profile(given: Mapping[str, Range], dims: Mapping[str, Dim]) -> Profile:
    """Check the given ranges against the model's dimensions and fill in the rest with defaults."""
    for name, sizes in given.items():
        if name not in dims:
            raise RecipeError(f"profile names dimension {name!r}, which this model does not have{did_you_mean(name, dims)}")
        _check(name, sizes, dims[name])
    return {name: given.get(name) or default_range(dim) for name, dim in dims.items()}


def _check(name: str, sizes: Range, dim: Dim) -> None:
    _ordered(name, sizes)
    if sizes.min < dim.min:
        raise RecipeError(f"profile {name}={sizes}: the smallest {name} this model takes is {dim.min}")
    if dim.max is not None and sizes.max > dim.max:
        raise RecipeError(f"profile {name}={sizes}: the largest {name} this model takes is {dim.max}")
    off = [size for size in (sizes.min, sizes.opt, sizes.max) if size % dim.multiple]
    if off:
        raise RecipeError(f"profile {name}={sizes}: this model takes multiples of {dim.multiple} as {name}, {off[0]} is none")


def default_range(dim: Dim) -> Range:
    """batch, and what counts rows, 1:8:32, samples of audio up to 4 s:20 s; any other dimension from its minimum to the model's
    limit (512 where it has none), opt at most 128."""
    opt, top = DEFAULT_OPT_LENGTH, dim.max or max(UNBOUNDED_LENGTH, dim.min * 64)
    if dim.name == "batch" or dim.rows:
        opt, top = DEFAULT_OPT_BATCH, max(dim.min, min(DEFAULT_MAX_BATCH, dim.max or DEFAULT_MAX_BATCH))
    if dim.name == AUDIO_DIM:
        opt, top = DEFAULT_OPT_SAMPLES, max(dim.min, min(DEFAULT_MAX_SAMPLES, dim.max or DEFAULT_MAX_SAMPLES))
    return Range(dim.fit(dim.min), max(dim.fit(dim.min), dim.fit(min(opt, top))), dim.fit(top))


def with_computed(dims: Mapping[str, Dim], axes: Iterable[int | str]) -> dict[str, Dim]:
    """The dimensions with minimums from which on nothing among `axes` that is computed from them is empty: 3 for `length - 2`."""
    found = dict(dims)
    for computed in filter(None, map(derived, axes)):
        least = computed.at({name: found[name].min for name in computed.names})
        if least < 1:
            name, factor = computed.factors[0]
            found[name] = dataclasses.replace(found[name], min=found[name].min - (least - 1) // factor)
    return found


def profile_shapes(spec: TensorSpec, profile: Profile) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(min, opt, max) shapes of one input under a profile."""

    def pick(which: str) -> tuple[int, ...]:
        return spec.shape_at({name: getattr(sizes, which) for name, sizes in profile.items()})

    return pick("min"), pick("opt"), pick("max")


def profiles_to_json(profiles: Sequence[Profile]) -> list[dict[str, str]]:
    return [{name: str(sizes) for name, sizes in profile.items()} for profile in profiles]


def profiles_from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Profile, ...]:
    return tuple({name: Range(*map(int, text.split(":"))) for name, text in profile.items()} for profile in data)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the named dims. `weight`: how many requests of the traffic have this shape; 0 where there is no traffic."""

    sizes: tuple[tuple[str, int], ...]
    weight: int = 0

    def __str__(self) -> str:
        return "x".join(str(size) for _, size in self.sizes) or "fixed"

    @property
    def tokens(self) -> int:
        """The product of all sizes: batch times length."""
        return math.prod(size for _, size in self.sizes)

    @property
    def rows(self) -> int:
        """The size of the dimension called batch, or of the first one."""
        return dict(self.sizes).get("batch", self.sizes[0][1] if self.sizes else 1)
