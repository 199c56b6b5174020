"""Recipe: everything one build is asked for, from a TOML file, the command line or Python.

The fields of the dataclass are the keys of the file; an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from . import data as samples
from . import fusions, targets, verification
from . import precision as precisions
from .core import BertcError, InputError, Missing, RecipeError, did_you_mean, expand, is_path, read_ranges, why_broken
from .core import read_toml as read_toml_file
from .targets import TargetSpec

if TYPE_CHECKING:
    from .source import GivenSource, SourceOptions


def _option(help_text: str, default: Any = dataclasses.MISSING, takes: str | None = None) -> Any:
    """A field with the help text that the command line and the documentation show, and what its option `takes`, as in FILE."""
    metadata = {"help": help_text, "takes": takes}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One build. `precision` applies to every target that does not name its own (`tensorrt-rtx:sm89=fp16`)."""

    source: str = _option("Checkpoint directory, hub id or .onnx file, in place of the recipe's own source.", takes="SOURCE")
    task: str | None = _option("What the model is for; default: what its config says.", None)
    revision: str | None = _option("Branch, tag or commit of a hub id.", None, "NAME")
    allow_pickle: bool = _option("Read pytorch_model.bin; reading it can run any code.", False)
    adapter: str | None = _option("Folder of a PEFT adapter (LoRA) to merge into the checkpoint.", None, "DIR")
    trust_remote_code: bool = _option("Run Python code that comes with the checkpoint.", False)
    ids: str = _option("Type of token ids and masks at the graph's inputs; default: int64.", "int64")
    opset: int = _option("ONNX opset of the export, 20 or newer; default: 20.", 20, "NUMBER")
    precision: str | None = _option("Precision of targets that name none of their own.", None, "MODE")
    targets: tuple[str, ...] = _option("As in tensorrt-rtx:sm86,l4=fp16 (bertc list targets, gpus); repeatable.", ())
    profiles: tuple[str, ...] = _option(
        "Optimisation profile, as in batch=1:8:32,length=16:128:512; repeatable.", (), "DIM=MIN:OPT:MAX,..."
    )
    goldens: str = _option("Samples kept in goldens.npz; data: your users' texts, from --data.", "synthetic")
    data: str | None = _option(
        "Texts, pairs, audio or arrays like what the model will see: to verify on, and to calibrate int8 and fp8.", None, "FILE"
    )
    seed: int = _option("Seed of the synthetic samples; default: 0.", 0, "NUMBER")
    budget: Mapping[str, float] = _option("Limit of the verification, as in cosine=0.9999; repeatable.", {}, "NAME=NUMBER")
    fuse: bool = _option("Fuse the graph for targets that gain from it; each match is proven equal. Default: on.", True)
    prove: bool = _option("Prove each match by replaying it before it is kept. Default: on.", True)
    packed: bool = _option(
        "Compute on the tokens of a batch without its padding (targets onnxruntime, onnxruntime-cuda, tensorrt).", False
    )
    plugins: tuple[str, ...] = _option(
        "Compute this operator by a kernel of ours inside the engine, as in skip_layernorm; repeatable (target tensorrt).",
        (),
        "KERNEL",
    )
    expect: str | None = _option("Exit 1 unless all fusions of this family are found, as in bert or bert:6.", None)
    verify: bool = _option("Verify each artifact before it is written. Default: on.", True)

    @property
    def source_options(self) -> SourceOptions:
        from .source import SourceOptions

        plain = (self.task, self.revision, self.allow_pickle, self.trust_remote_code, self.ids, self.opset)
        return SourceOptions(*plain, adapter=self.adapter)

    def to_json(self) -> dict[str, Any]:
        """The recipe as it was resolved, without what is still at its default."""
        plain = dataclasses.asdict(Recipe(self.source))
        return {k: v for k, v in dataclasses.asdict(self).items() if k == "source" or v != plain[k]}


def check(recipe: Recipe) -> None:
    """Refuse impossible values before any work is done."""
    if recipe.ids not in ("int64", "int32"):
        raise RecipeError(f"ids is {recipe.ids!r}; it is int64 or int32")
    if recipe.opset < 20:
        raise RecipeError(f"opset is {recipe.opset}; bertc exports opset 20 or newer")
    if recipe.goldens not in ("synthetic", "data"):
        raise RecipeError(f"goldens is {recipe.goldens!r}; it is synthetic or data")
    if recipe.goldens == "data" and not recipe.data:
        raise RecipeError("goldens = data needs samples: --data FILE")
    if recipe.seed < 0:
        raise RecipeError(f"seed is {recipe.seed}; it is 0 or more")
    if recipe.expect is not None:
        fusions.families.parse(recipe.expect)
        if not recipe.fuse:
            raise RecipeError(f"--expect {recipe.expect} asks for fusions, and --no-fuse makes none: leave one of them out")
    for text in recipe.profiles:
        if not read_ranges(text):
            raise RecipeError(f"profile {text!r} names no dimension; write NAME=MIN:OPT:MAX, as in batch=1:8:32")
    if recipe.precision is not None:
        precisions.get(recipe.precision)
    requested = {recipe.precision, *(targets.parse_spec(text).precision for text in recipe.targets)}
    from_data = sorted(str(mode) for mode in requested & precisions.CALIBRATED)
    if from_data and not recipe.data:
        raise RecipeError(f"{', '.join(from_data)} needs data like what the model will see: --data texts.txt")


def check_data(recipe: Recipe) -> None:
    """DataError for data that is not there, or of a kind that nobody reads."""
    if recipe.data:
        samples.unpadded.check_path(Path(recipe.data))


def read(path: Path) -> Recipe:
    """A recipe file. RecipeError for a missing or broken file, an unknown key or a value of the wrong type."""
    recipe = from_mapping(read_toml(path, "recipe"), str(path))
    # A path written relative to the recipe means the recipe's folder, wherever the command is run.
    source = path.parent / recipe.source
    recipe = dataclasses.replace(recipe, source=str(source)) if source.exists() else recipe
    data, adapter = (_beside(path, given) for given in (recipe.data, recipe.adapter))
    return dataclasses.replace(recipe, data=data, adapter=adapter)


def _beside(recipe: Path, given: str | None) -> str | None:
    return str(recipe.parent / given) if given and (recipe.parent / given).exists() else given


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file; RecipeError, naming `what` it should be, where it cannot be read."""
    return dict(read_toml_file(path, advice=f"it is the {what}", error=RecipeError))


def from_mapping(data: Mapping[str, Any], where: str) -> Recipe:
    """Check keys and types against the dataclass."""
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    for key, value in data.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
        wanted = str(fields[key].type)
        if not _fits(value, wanted):
            raise RecipeError(f"{where}: {key} is {value!r}, wants {_in_words(wanted)}")
    if "source" not in data:
        raise RecipeError(f"{where}: no source; name a checkpoint directory, a hub id, a factory or an .onnx file")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    recipe = Recipe(**values)
    try:
        check(recipe)
    except BertcError as error:  # it names the value
        raise type(error)(f"{where}: {error}") from error
    return recipe


def _fits(value: Any, wanted: str) -> bool:
    if wanted.startswith("tuple"):
        return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
    if wanted.startswith("Mapping"):
        return isinstance(value, Mapping) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value.values())
    if wanted.startswith("bool"):
        return isinstance(value, bool)
    if wanted.startswith("int"):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


def _in_words(wanted: str) -> str:
    """The type of a field in words: nobody who writes TOML knows Mapping[str, float]."""
    words = {"tuple": "a list of strings", "Mapping": "a table of numbers", "bool": "true or false", "int": "a whole number"}
    return next((word for kind, word in words.items() if wanted.startswith(kind)), "a string")


def file_keys() -> list[tuple[str, Any]]:
    """The keys of a recipe file with their types for msgspec, which hold the ranges that `check` does and the help texts."""
    # TOML has no null, and what a list holds may be no more than text.
    kinds = {"tuple": list[str], "Mapping": dict[str, float], "bool": bool, "int": int}
    narrower: dict[str, Any] = {
        "ids": Literal["int64", "int32"],
        "goldens": Literal["synthetic", "data"],
        "opset": Annotated[int, msgspec.Meta(ge=20)],
        "seed": Annotated[int, msgspec.Meta(ge=0)],
        "precision": Literal[precisions.names()],
    }
    found = []
    for field in dataclasses.fields(Recipe):
        kind = next((kind for name, kind in kinds.items() if str(field.type).startswith(name)), str)
        meta = msgspec.Meta(description=field.metadata["help"])
        found.append((field.name, Annotated[narrower.get(field.name, kind), meta]))
    return found


def file_type() -> Any:
    """A recipe file as a type of msgspec: `source` must be there, and no other key may be."""
    keys: list[Any] = [
        (name, kind) if name == "source" else (name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in file_keys()
    ]
    return msgspec.defstruct("Recipe", keys, kw_only=True, forbid_unknown_fields=True)


def names() -> dict[str, Path]:
    """The recipes that ship with bertc, by name."""
    folder = Path(str(resources.files(f"{__package__}.recipes")))
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def resolve(reference: str) -> tuple[Recipe, str]:
    """What a SOURCE argument means, and a sentence that says so: an existing path, else a recipe's name, else a hub id."""
    path = expand(reference)
    if path.suffix == ".toml" and path.is_file():
        return read(path), f"source: recipe file {reference}"
    if not reference.strip():
        raise RecipeError("SOURCE is empty; name a checkpoint directory, an .onnx file, a recipe, a factory or a hub id")
    if path.exists():
        return Recipe(reference), f"source: local {'directory' if path.is_dir() else 'file'} {reference}"
    known = names()
    if reference in known:
        found = read(known[reference])
        return found, f"recipe {reference}: source {found.source}"
    if path.suffix == ".toml":
        raise RecipeError(why_broken(path) or f"no recipe file {reference}{did_you_mean(path.stem, known)}")
    if is_path(reference) or why_broken(path):
        return Recipe(reference), f"source: path {reference} (not there)"
    if ":" in reference:
        return Recipe(reference), f"source: Python factory {reference}"
    return Recipe(reference), f"source: hub id {reference} (no such path; no such recipe{did_you_mean(reference, known)})"


def with_permissions(options: SourceOptions, found: Recipe) -> SourceOptions:
    """What the command line says of a source, and what the recipe that it was found by allows beside it."""
    return dataclasses.replace(
        options,
        allow_pickle=options.allow_pickle or found.allow_pickle,
        trust_remote_code=options.trust_remote_code or found.trust_remote_code,
        revision=options.revision or found.revision,
    )


def given_source(
    reference: str,
    *,
    revision: str | None = None,
    allow_pickle: bool | None = None,
    trust_remote_code: bool | None = None,
    adapter: str | None = None,
    changed: bool = False,
    teacher: bool = False,
) -> GivenSource:
    """A source to hold an artifact against; a recipe's name stands for its source and what it allows.

    `changed`: its sha256 need not be that of the artifact's source. `teacher`: it is what that source learned from.
    """
    from .source import GivenSource

    found, _ = resolve(reference)
    pickles, code = allow_pickle or found.allow_pickle, trust_remote_code or found.trust_remote_code
    return GivenSource(
        found.source, revision or found.revision, pickles, code, adapter or found.adapter, changed or teacher, teacher
    )


def choose_targets(recipe: Recipe) -> tuple[Recipe, str | None]:
    """Fill in the target when none was asked for: TensorRT where it can build, else TensorRT-RTX, else ONNX Runtime for fp32.

    Returns the recipe and the sentence that says what was chosen and why (None when the recipe named its targets).
    """
    if recipe.targets:
        return recipe, None
    if recipe.precision == "int8-dynamic":
        return dataclasses.replace(recipe, targets=("onnxruntime",)), "target onnxruntime: no other target builds int8-dynamic"
    if recipe.packed:
        return dataclasses.replace(
            recipe, targets=("onnxruntime",)
        ), "target onnxruntime: it runs without padding (as onnxruntime-cuda does)"
    tensorrt, rtx = targets.get("tensorrt").available(), targets.get("tensorrt-rtx").available()
    if tensorrt.build:
        return dataclasses.replace(recipe, targets=("tensorrt",)), "target tensorrt: it builds here"
    if rtx.build:
        why = f"target tensorrt-rtx: it builds here, tensorrt does not ({tensorrt.reason})"
        return dataclasses.replace(recipe, targets=("tensorrt-rtx",)), why
    if recipe.precision in (None, "fp32"):
        why = f"target onnxruntime: no TensorRT here (tensorrt: {tensorrt.reason}; tensorrt-rtx: {rtx.reason})"
        return dataclasses.replace(recipe, targets=("onnxruntime",), precision="fp32"), why
    raise Missing(
        f"{recipe.precision} needs TensorRT or TensorRT-RTX, and neither builds here. tensorrt: {tensorrt.reason}; "
        f"tensorrt-rtx: {rtx.reason}. {rtx.install} (builds without a GPU)"
    )


@dataclasses.dataclass(frozen=True)
class Build:
    """One artifact to make: a target, its SMs and a precision."""

    spec: TargetSpec
    precision: str
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)  # limits of the verification

    @property
    def name(self) -> str:
        return self.spec.directory_name(self.precision)

    @property
    def quantised(self) -> bool:
        return self.precision in precisions.QUANTISED

    @property
    def compared_with_base(self) -> bool:
        """Whether an engine of the base precision is compiled beside it, to keep the better one."""
        return self.precision == "int8" and hasattr(targets.get(self.spec.name), "list_kernels")


def plan_builds(recipe: Recipe) -> tuple[Build, ...]:
    """What will be built. Every name is checked, and every target asked whether it can, before any work is done.

    DataError for data that is not there, or of a kind that nobody reads.
    """
    if recipe.verify or recipe.goldens == "data":  # not the first stage of a fleet, which leaves the data to others
        check_data(recipe)
    builds: list[Build] = []
    for text in recipe.targets:
        spec = targets.parse_spec(text)
        build = Build(spec, spec.precision or recipe.precision or "fp32", recipe.budget)
        precisions.get(build.precision)
        if why := targets.refusal(spec, build.precision, packed=recipe.packed, plugins=recipe.plugins):
            raise InputError(why)  # before what this machine lacks: no machine could
        ready = targets.get(spec.name).available()
        if not ready.build:
            raise Missing(f"target {spec.name} cannot build here: {ready.reason}. {ready.install}")
        verification.budget_for(build.precision, recipe.budget)
        if build.name in [other.name for other in builds]:
            raise RecipeError(f"target {text!r} is given twice: {build.name}")
        builds.append(build)
    return tuple(builds)
