"""Recipe: everything one build is asked for, from a TOML file, the command line or Python.

The fields of the dataclass are the keys of the file; an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from . import precision as precisions
from . import targets
from .core import RecipeError, did_you_mean
from .source import SourceOptions


def _option(help_text: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with the help text that the command line and the documentation show."""
    metadata = {"help": help_text}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One build. `precision` applies to every target that does not name its own (`tensorrt-rtx:sm89=fp16`)."""

    source: str = _option("the checkpoint directory, hub id, package.module:factory or .onnx file, in place of the recipe's")
    task: str | None = _option("what the model is for; read from its config where it says so", None)
    revision: str | None = _option("branch, tag or commit of a hub id", None)
    allow_pickle: bool = _option("read pytorch_model.bin, which can run any code while it is read", False)
    trust_remote_code: bool = _option("run Python code that comes with the checkpoint", False)
    ids: str = _option("integer type of token ids and masks at the graph's boundary: int64 or int32", "int64")
    opset: int = _option("ONNX opset of the export, 20 or newer", 20)
    precision: str | None = _option("precision of targets that name none of their own", None)
    targets: tuple[str, ...] = _option("NAME[:SM,SM...][=PRECISION], as in tensorrt-rtx:sm86,sm89=fp16; repeatable", ())
    profiles: tuple[str, ...] = _option(
        "optimisation profile, as in batch=1:8:32,length=16:128:512 (min:opt:max); repeatable", ()
    )
    goldens: str = _option(
        "what goes into goldens.npz: synthetic feeds, or the --data (token ids are your users' text)", "synthetic"
    )
    data: str | None = _option(
        "texts, pairs, audio or arrays like what the model will see: for int8 and fp8, and for --goldens data", None
    )
    seed: int = _option("seed of the synthetic feeds", 0)
    budget: Mapping[str, float] = _option("a limit of the verification, as in cosine=0.9999; repeatable", {})
    fuse: bool = _option("fuse the graph for targets that gain from it, each match proven equal before it is kept", True)
    prove: bool = _option("replay each match against what takes its place before it is kept", True)
    expect: str | None = _option("exit 1 unless all that this family promises was found: FAMILY[:LAYERS], as in bert", None)
    verify: bool = _option("verify each artifact before it is written", True)

    @property
    def source_options(self) -> SourceOptions:
        return SourceOptions(self.task, self.revision, self.allow_pickle, self.trust_remote_code, self.ids, self.opset)

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
        raise RecipeError("goldens from data need the data: --data FILE")
    if recipe.precision is not None:
        precisions.get(recipe.precision)
    asked = {recipe.precision, *(targets.parse_spec(text).precision for text in recipe.targets)} & precisions.CALIBRATED
    if asked and not recipe.data:
        raise RecipeError(
            f"{', '.join(sorted(map(str, asked)))} needs data that is like what the model will see: --data texts.txt"
        )


def read(path: Path) -> Recipe:
    """A recipe file. RecipeError for a missing or broken file, an unknown key or a value of the wrong type."""
    recipe = from_mapping(read_toml(path, "recipe"), str(path))
    # A path written relative to the recipe means the recipe's folder, wherever the command is run.
    source = path.parent / recipe.source
    recipe = dataclasses.replace(recipe, source=str(source)) if source.exists() else recipe
    samples = path.parent / recipe.data if recipe.data else None
    return dataclasses.replace(recipe, data=str(samples)) if samples and samples.exists() else recipe


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a file; RecipeError, naming `what` it should be, where it cannot be read."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the {what} {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"the {what} {path} is not TOML: {error}") from error


def from_mapping(data: Mapping[str, Any], where: str) -> Recipe:
    """Check keys and types against the dataclass."""
    fields = {f.name: f for f in dataclasses.fields(Recipe)}
    for key, value in data.items():
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}{did_you_mean(key, fields)}")
        wanted = str(fields[key].type)
        if not _fits(value, wanted):
            raise RecipeError(f"{where}: {key} is {value!r}, wants {_said(wanted)}")
    if "source" not in data:
        raise RecipeError(f"{where}: no source; name a checkpoint directory, a hub id, a factory or an .onnx file")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    recipe = Recipe(**values)
    check(recipe)
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


def _said(wanted: str) -> str:
    """The type of a field in words: nobody who writes TOML knows Mapping[str, float]."""
    words = {"tuple": "a list of strings", "Mapping": "a table of numbers", "bool": "true or false", "int": "a whole number"}
    return next((said for kind, said in words.items() if wanted.startswith(kind)), "a string")


def names() -> dict[str, Path]:
    """The recipes that ship with bertc, by name."""
    folder = Path(str(resources.files(f"{__package__}.recipes")))
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def resolve(reference: str) -> tuple[Recipe, str]:
    """What a SOURCE argument means, and a sentence that says so: an existing path, else a recipe's name, else a hub id."""
    path = Path(reference)
    if path.suffix == ".toml" and path.is_file():
        return read(path), f"{reference}: recipe file"
    if path.exists():
        return Recipe(reference), f"{reference}: path"
    known = names()
    if reference in known:
        return read(known[reference]), f"{reference}: recipe of that name, source {read(known[reference]).source}"
    if path.suffix == ".toml":
        raise RecipeError(f"no recipe file {reference}{did_you_mean(path.stem, known)}")
    if ":" in reference:
        return Recipe(reference), f"{reference}: Python factory"
    return Recipe(reference), f"{reference}: hub id (no path and no recipe of that name{did_you_mean(reference, known)})"


def choose_targets(recipe: Recipe) -> tuple[Recipe, str | None]:
    """Fill in the target when none was asked for: TensorRT where it can build, else TensorRT-RTX, else ONNX Runtime for fp32.

    Returns the recipe and the sentence that says what was chosen and why (None when the recipe named its targets).
    """
    if recipe.targets:
        return recipe, None
    if recipe.precision == "int8-dynamic":
        return dataclasses.replace(recipe, targets=("onnxruntime",)), "target onnxruntime: dynamic int8 is its own"
    tensorrt, rtx = targets.get("tensorrt").available(), targets.get("tensorrt-rtx").available()
    if tensorrt.build:
        return dataclasses.replace(recipe, targets=("tensorrt",)), "target tensorrt: this machine can build it"
    if rtx.build:
        why = f"target tensorrt-rtx: it builds here, tensorrt does not ({tensorrt.reason})"
        return dataclasses.replace(recipe, targets=("tensorrt-rtx",)), why
    if recipe.precision in (None, "fp32"):
        why = f"target onnxruntime: no TensorRT here (tensorrt: {tensorrt.reason}; tensorrt-rtx: {rtx.reason})"
        return dataclasses.replace(recipe, targets=("onnxruntime",), precision="fp32"), why
    from .core import Missing

    raise Missing(
        f"{recipe.precision} needs a TensorRT compiler and this machine has none: {rtx.install} (builds without a GPU). "
        f"tensorrt: {tensorrt.reason}; tensorrt-rtx: {rtx.reason}"
    )
