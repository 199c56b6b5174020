"""One description of a kernel's launch, read by all who launch it: the interpreter, TensorRT's plugin, a GPU.

The arguments of the function stand in TensorRT's order: inputs, int32 scalars, outputs, and then the constants, which become part
of the code. An input or an output that is absent is given as None, for which Triton leaves the argument out of the code. Scalars
and the grid are arithmetic over dimensions, so that they take TensorRT's symbolic expressions as well as numbers. Floats can only
be constants: TensorRT passes no other scalar than an int32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# What TensorRT, torch and Triton call a type: Triton's word here.
FLOATS = ("fp16", "bf16", "fp32")
IDS = ("i32", "i64")
QUANTISED = ("i8", "fp8e4nv")
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "i32": 4, "i64": 8, "i8": 1, "fp8e4nv": 1}
LARGEST_GRID = (2**31 - 1, 65535, 65535)
Dims = Mapping[str, Any]  # name -> int, or an expression of TensorRT
Constants = Mapping[str, Any]


class Unsupported(ValueError):
    """A launch that a kernel cannot do, with the reason and what it can do."""


@dataclass(frozen=True)
class Tensor:
    """An argument in global memory. `type` is Triton's word, or the name of a choice in the launch's `types`."""

    name: str
    type: str
    shape: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Variant:
    """One way to cut the work: tile sizes (more constants), warps a program, stages of the pipeline.

    `registers` is the most that a thread may have. Without, ptxas may spill to fit more programs.
    """

    tiles: Mapping[str, int]
    warps: int = 4
    stages: int = 2
    registers: int | None = None
    fits: Callable[[Dims], bool] = lambda dims: True  # sizes that it is made for

    @property
    def options(self) -> dict[str, int]:
        """As Triton calls them."""
        made = {"num_warps": self.warps, "num_stages": self.stages}
        return made if self.registers is None else {**made, "maxnreg": self.registers}


@dataclass(frozen=True)
class Example:
    """A launch of a usual size, to compile and to measure: dimensions, what is absent, attributes."""

    dims: Mapping[str, int]
    absent: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """`constants` and `grid` get the dimensions, the constants so far and the names of what is present. `traffic` gives the bytes
    that the programs read and write, and the fewest that any kernel could, both from dimensions, constants and bytes by type."""

    name: str
    entry: Any  # what @triton.jit made
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    scalars: Mapping[str, Callable[[Dims], Any]]
    constants: Callable[[Dims, Mapping[str, Any], Variant], dict[str, Any]]
    grid: Callable[[Dims, Constants], tuple[Any, ...]]
    traffic: Callable[[Dims, Constants, Mapping[str, int]], tuple[int, int]]
    variants: tuple[Variant, ...]
    examples: Mapping[str, Example]  # the first without a name of its own: ""
    attributes: Mapping[str, Any] = field(default_factory=dict)  # name -> default
    types: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"x": FLOATS})
    derived: Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]] = lambda dims, attributes: {}

    def __post_init__(self) -> None:
        leading = [*self.argument_names()]
        found = list(self.entry.arg_names)
        if found[: len(leading)] != leading:
            raise Unsupported(f"{self.name}: the function takes {found}, the launch gives {leading} and then constants")

    def argument_names(self) -> tuple[str, ...]:
        """Inputs, scalars, outputs: what the function takes before its constants."""
        return (*(t.name for t in self.inputs), *self.scalars, *(t.name for t in self.outputs))

    def tensors(self) -> dict[str, Tensor]:
        return {t.name: t for t in (*self.inputs, *self.outputs)}

    def check_present(self, present: Sequence[str]) -> None:
        """Nothing that the kernel needs is absent, nothing is given that it does not know."""
        known = self.tensors()
        unknown = sorted(set(present) - set(known))
        missing = [t.name for t in known.values() if not t.optional and t.name not in present]
        if unknown or missing:
            raise Unsupported(f"{self.name}: unknown tensors {unknown}, missing {missing}; it knows {sorted(known)}")

    def attributes_with(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given attributes, and defaults for the others."""
        unknown = sorted(set(given) - set(self.attributes))
        if unknown:
            raise Unsupported(f"{self.name}: unknown attributes {unknown}; it knows {sorted(self.attributes)}")
        return {**self.attributes, **given}

    def dims(self, shapes: Mapping[str, Sequence[Any]], attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The dimensions by name, out of the shapes of what is given; two sizes of one name are an error."""
        found: dict[str, Any] = {}
        known = self.tensors()
        for name, shape in shapes.items():
            if len(shape) != len(known[name].shape):
                raise Unsupported(f"{self.name}: {name} has the shape {tuple(shape)}, wanted {known[name].shape}")
            for dim, size in zip(known[name].shape, shape, strict=True):
                before = found.setdefault(dim, size)
                if isinstance(before, int) and isinstance(size, int) and before != size:
                    raise Unsupported(f"{self.name}: {dim} is {before} in other tensors and {size} in {name} {tuple(shape)}")
        derived = self.derived(found, self.attributes_with(attributes))
        for dim, size in derived.items():
            if isinstance(size, int) and found.get(dim, size) != size:
                raise Unsupported(f"{self.name}: {dim} is {found[dim]} in what is given, and {size} by the other sizes")
        return {**found, **derived}

    def fitting(self, dims: Dims) -> tuple[int, ...]:
        """The variants made for these sizes; the first is the one to take unasked."""
        return tuple(at for at, variant in enumerate(self.variants) if variant.fits(dims))

    def constants_of(self, dims: Dims, attributes: Mapping[str, Any], variant: int) -> dict[str, Any]:
        """All constants of a variant, in the order of the function."""
        chosen = self.variants[variant]
        made = self.constants(dims, self.attributes_with(attributes), chosen)
        names = self.entry.arg_names[len(self.argument_names()) :]
        if set(names) != set(made):
            raise Unsupported(f"{self.name}: the function's constants are {names}, the launch makes {sorted(made)}")
        return {name: made[name] for name in names}

    def grid_of(self, dims: Dims, constants: Constants) -> tuple[Any, ...]:
        """Three sizes."""
        grid = (*self.grid(dims, constants), 1, 1)[:3]
        for size, most, axis in zip(grid, LARGEST_GRID, "xyz", strict=True):
            if isinstance(size, int) and size > most:
                raise Unsupported(f"{self.name}: {size} programs along {axis}, CUDA starts at most {most}; split the batch")
        return grid

    def type_of(self, tensor: Tensor, chosen: Mapping[str, str]) -> str:
        """Triton's word for a tensor's type, one of those that the launch takes."""
        if tensor.type not in self.types:
            return tensor.type
        asked = chosen.get(tensor.type, self.types[tensor.type][0])
        if asked not in self.types[tensor.type]:
            raise Unsupported(f"{self.name}: {tensor.name} as {asked}; it takes {', '.join(self.types[tensor.type])}")
        return asked

    def run(
        self,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        attributes: Mapping[str, Any] | None = None,
        variant: int | None = None,
    ) -> None:
        """Start the kernel on tensors of torch: on a GPU, or in Triton's interpreter. What is absent is not in the mapping."""
        given, attributes = {**inputs, **outputs}, attributes or {}
        self.check_present(tuple(given))
        for name, tensor in given.items():
            if not tensor.is_contiguous():
                raise Unsupported(f"{self.name}: {name} is not contiguous; call .contiguous() on it")
        dims = self.dims({name: tuple(map(int, t.shape)) for name, t in given.items()}, attributes)
        variant = self.fitting(dims)[0] if variant is None else variant
        constants = self.constants_of(dims, attributes, variant)
        grid = self.grid_of(dims, constants)
        if 0 in grid:
            return  # nothing to compute, and CUDA refuses an empty grid
        scalars = {name: self._scalar(name, make(dims)) for name, make in self.scalars.items()}
        leading = [{**given, **scalars}.get(name) for name in self.argument_names()]
        chosen = self.variants[variant]
        self.entry[grid](*leading, **constants, **chosen.options)

    def _scalar(self, name: str, value: int) -> int:
        if not 0 <= value < 2**31:
            raise Unsupported(f"{self.name}: {name} is {value}, and scalars are int32; split the batch")
        return value


def cdiv(a: Any, b: int) -> Any:
    """Division, rounded up; of TensorRT's expressions too, which know no minus sign."""
    return (a + (b - 1)) // b


def block(size: int, least: int = 16, most: int = 8192, what: str = "H") -> int:
    """The power of two that holds a whole row: one program keeps it in registers."""
    if size > most:
        raise Unsupported(f"{what} = {size}: one program holds a whole row, at most {most}")
    return max(least, 1 << (size - 1).bit_length())
