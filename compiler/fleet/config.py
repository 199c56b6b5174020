"""fleet.toml: which models for which GPUs in which precisions, and where the artifacts go.

    out = "engines"                       # where artifacts go: <out>/<model>/<plan or GPU>-<precision>/
    store = ".bertc-store"                # finished stages; a folder that many machines may share
    gpus = ["l4", "rtx-4090", "t4", "h100", "l4/tensorrt"]    # NAME, or NAME/TARGET
    targets = ["onnxruntime=fp32"]        # what needs no GPU model: TARGET[:SM,...][=PRECISION]
    precisions = ["fp16"]
    shards = 1                            # calibration is split in so many tasks; they merge into the same scales, bit for bit
    per_sm = false                        # true: a TensorRT-RTX plan for each SM, not one for sm86, 89, 120 and 121

    [models.minilm]
    recipe = "minilm"                     # a recipe's name or file, or any source; other keys are fields of a recipe
    [[exclude]]                           # leaves out what has all of these
    gpu = "t4"
    precision = "fp32"
    [[include]]                           # adds; every model unless one is named
    gpu = "b200"
    precision = "bf16"
    [[override]]                          # for what has these: model, gpu, target, precision
    precision = "int8"
    budget = { max_drop = 0.005 }         # and other fields of a recipe that the last stage reads
    memory = "8 GB"                       # what a build needs, and the cores it gets (1)
    cores = 2
    [runners]                             # labels of CI runners: by GPU model, and `any`
    h100 = ["self-hosted", "h100"]

`models = ["minilm", "path/to/checkpoint"]` is the short form. Paths are relative to the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import precision as precisions
from .. import recipe as recipes
from .. import targets
from ..core import BertcError, RecipeError, did_you_mean, gpu_models
from ..recipe import Recipe
from ..targets import TargetSpec
from ..verification import budgets
from . import travelled
from .keys import EXPORT_FIELDS, FUSE_FIELDS

MATCH = ("model", "gpu", "target", "precision")
KEYS = tuple("models gpus targets precisions per_sm shards out store exclude include override runners".split())
MOST_SHARDS = 16  # calibration takes up to 1,000 rows in blocks of 64
# Names of models are folders, words of command lines and names of CI jobs; in labels a CI service puts values in place of $NAME
# and ${{ }}.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .:/=+,@-]{0,255}")
SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(i?)B", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One artifact of the fleet. `host` is the GPU model of the only machines that can build it; None: any machine can.

    `gpus` are the models that run these bytes, () where the target is for no GPU. `memory` in bytes, None: as estimated.
    """

    model: str
    recipe: Recipe
    spec: TargetSpec
    precision: str
    gpus: tuple[str, ...] = ()
    host: str | None = None
    memory: int | None = None
    cores: int = 1

    @property
    def name(self) -> str:
        """`minilm/tensorrt-rtx-fp16`, `minilm/h100-fp16`: also the folder below `out`."""
        return f"{self.model}/{self.host}-{self.precision}" if self.host else f"{self.model}/{self.plan}"

    @property
    def plan(self) -> str:
        return self.spec.directory_name(self.precision)


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A fleet file, every name in it checked. `every`: the entries that it has, where `entries` are some of them."""

    path: Path
    out: Path
    store: Path
    models: Mapping[str, Recipe]
    entries: tuple[Entry, ...]
    runners: Mapping[str, tuple[str, ...]]
    shards: int = 1
    every: tuple[Entry, ...] = ()

    def place_of(self, name: str) -> Path:
        """Where an entry's artifact goes. ArtifactError where a link below `out` leads elsewhere."""
        return travelled.below(self.out, *name.split("/"))

    @property
    def lock(self) -> Path:
        return self.path.with_suffix(".lock.json")


@dataclasses.dataclass(frozen=True)
class _Cell:
    """One cell of the matrix, before cells that share bytes are put together."""

    model: str
    gpu: str | None
    spec: TargetSpec
    precision: str

    def has(self, wanted: Mapping[str, Any]) -> bool:
        found = {"model": self.model, "gpu": self.gpu, "target": self.spec.name, "precision": self.precision}
        return all(found[key] == value for key, value in wanted.items())


def read(path: Path) -> Fleet:
    """Read fleet.toml. RecipeError for a broken file, an unknown key, GPU, target or precision, or a cell that cannot be."""
    data = recipes.read_toml(path, "fleet")
    _known(data, KEYS, str(path))
    models = _models(data.get("models"), path)
    with _named(path):
        cells = _cells(data, models, str(path))
        entries = _entries(cells, models, _tables(data, "override", str(path)), str(path))
    if not entries:
        raise RecipeError(f"{path} describes nothing to build: it needs models, precisions, and gpus or targets")
    runners = _runners(data.get("runners", {}), str(path))
    out, store = (_folder(data, name, default, path) for name, default in (("out", "out"), ("store", ".bertc-store")))
    return Fleet(path, out, store, models, entries, runners, _shards(data.get("shards", 1), str(path)))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """What rooms below say of a GPU, target or precision: they do not know whose it is."""
    try:
        yield
    except BertcError as error:
        if str(path) in str(error):
            raise
        raise RecipeError(f"{path}: {error}") from error


def _runners(given: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: runners is {given!r}, expected a table: [runners], then h100 = ['self-hosted', 'h100']")
    found = {}
    for name, labels in given.items():
        if name != "any" and name not in gpu_models.names():
            known = ("any", *gpu_models.names())
            raise RecipeError(f"{where}: [runners] has the unknown GPU model {name!r}{did_you_mean(name, known)}")
        listed = [labels] if isinstance(labels, str) else labels
        if not isinstance(listed, list) or not listed:
            raise RecipeError(f"{where}: runners.{name} is {labels!r}, expected a label or a list of labels")
        for label in listed:
            if not isinstance(label, str) or not LABEL.fullmatch(label):
                raise RecipeError(
                    f"{where}: runners.{name} has the label {label!r}; a label is up to 256 of the letters A-Z and a-z, digits, "
                    "spaces and . _ : / = + , @ -, and begins with a letter, a digit or _"
                )
        found[name] = tuple(listed)
    return found


def _folder(data: Mapping[str, Any], key: str, default: str, path: Path) -> Path:
    """Anywhere: several machines share a store, and a disk for artifacts may lie elsewhere."""
    given = data.get(key, default)
    if not isinstance(given, str) or not given or not given.isprintable():
        raise RecipeError(f"{path}: {key} is {given!r}, expected the path of a folder, in printable characters")
    return path.resolve().parent / given


def _shards(given: Any, where: str) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= MOST_SHARDS:
        raise RecipeError(f"{where}: shards is {given!r}, expected a whole number from 1 to {MOST_SHARDS}")
    return given


def _known(table: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in table:
        if key not in keys:
            raise RecipeError(f"{where}: unknown key {key!r}{did_you_mean(key, keys)}")


def _tables(data: Mapping[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise RecipeError(f"{where}: {key} is written [[{key}]], one table a rule")
    for name, value in ((name, rule[name]) for rule in found for name in MATCH if name in rule):
        if not isinstance(value, str):
            raise RecipeError(f"{where}: [[{key}]] has {name} = {value!r}, expected a string")
    return found


def _strings(data: Mapping[str, Any], key: str, where: str) -> list[str]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise RecipeError(f"{where}: {key} is {found!r}, expected a list of strings")
    return found


def _models(given: Any, path: Path) -> dict[str, Recipe]:
    if isinstance(given, list) and all(isinstance(each, str) for each in given):
        given = {_model_name(each): {"recipe": each} for each in given}
    if not isinstance(given, dict) or not given or not all(isinstance(each, dict) for each in given.values()):
        raise RecipeError(f"{path}: no models; write [models.NAME] with recipe = ..., or models = [...]")
    for name in given:
        if not NAME.fullmatch(name):
            raise RecipeError(
                f"{path}: the model name {name!r} becomes a folder and the name of a CI job; use up to 100 of the letters A-Z "
                "and a-z, digits, and . - _ behind the first: [models.NAME] with source = ..."
            )
    return {name: _model(name, table, path) for name, table in given.items()}


def _model_name(reference: str) -> str:
    """`minilm.toml`, `org/minilm`, `folder/minilm/`, `package.minilm:make` -> minilm."""
    last = Path(reference.partition(":")[0]).name
    return last.removesuffix(".toml").removesuffix(".onnx").rpartition(".")[2] if ":" in reference else Path(last).stem


def _model(name: str, table: Mapping[str, Any], path: Path) -> Recipe:
    given = {key: value for key, value in table.items() if key != "recipe"}
    for key in ("targets", "precision"):
        if key in given:
            raise RecipeError(f"{path}: models.{name} has {key}; set them in the fleet's gpus, targets and precisions")
    base: dict[str, Any] = {}
    if "recipe" in table:
        reference = table["recipe"]
        if not isinstance(reference, str):
            raise RecipeError(f"{path}: models.{name} has recipe = {reference!r}, expected a recipe's name or file, or a source")
        beside = path.parent / reference
        found, _ = recipes.resolve(str(beside) if beside.exists() else reference)
        base = found.to_json()
    for key in ("source", "data", "adapter"):
        if key in given and (path.parent / str(given[key])).exists():
            given[key] = str(path.parent / str(given[key]))
    recipe = recipes.from_mapping(base | given, f"{path}: models.{name}")
    return dataclasses.replace(recipe, targets=(), precision=None)


def _cells(data: Mapping[str, Any], models: Mapping[str, Recipe], where: str) -> list[_Cell]:
    wanted, per_sm = _strings(data, "precisions", where), data.get("per_sm", False)
    if not isinstance(per_sm, bool):
        raise RecipeError(f"{where}: per_sm is {per_sm!r}, expected true or false")
    excluded = _tables(data, "exclude", where)
    for rule in excluded:
        _known(rule, MATCH, f"{where}: [[exclude]]")
    cells = _matrix(models, _strings(data, "gpus", where), _strings(data, "targets", where), wanted, per_sm)
    for rule in excluded:
        if not any(cell.has(rule) for cell in cells):
            raise RecipeError(f"{where}: [[exclude]] {rule} matches no entry")
    kept = [cell for cell in cells if not any(cell.has(rule) for rule in excluded)]
    for rule in _tables(data, "include", where):
        _known(rule, MATCH, f"{where}: [[include]]")
        named = [rule["model"]] if "model" in rule else list(models)
        if named[0] not in models:
            raise RecipeError(f"{where}: [[include]] names an unknown model {named[0]!r}{did_you_mean(named[0], models)}")
        of_gpu = [rule["gpu"]] if "gpu" in rule else []
        of_target = [rule["target"]] if "target" in rule else []
        kept += _matrix(named, of_gpu, of_target, [rule["precision"]] if "precision" in rule else wanted, per_sm)
    for cell in kept:
        _check_possible(cell, where)
    return list(dict.fromkeys(kept))


def _matrix(models: Any, named: Sequence[str], specs: Sequence[str], wanted: Sequence[str], per_sm: bool) -> list[_Cell]:
    """Every model with every GPU and every target, in every precision that the target does not fix itself."""
    columns: list[tuple[str | None, TargetSpec]] = []
    for text in named:
        name, _, target = text.partition("/")
        columns.append((name, targets.target_for(gpu_models.get(name), target or None, per_sm=per_sm)))
    for text in specs:
        spec = targets.parse_spec(text)
        if spec.name == "tensorrt":
            raise RecipeError("target tensorrt builds for one GPU model; name it in gpus, as in l4/tensorrt")
        columns.append((None, spec))
    cells = []
    for model in models:
        for gpu, spec in columns:
            for each in [spec.precision] if spec.precision else wanted:
                if each not in precisions.names():
                    precisions.get(each)  # says which there are
                cells.append(_Cell(model, gpu, dataclasses.replace(spec, precision=None), each))
    return cells


def _check_possible(cell: _Cell, where: str) -> None:
    target: Any = targets.get(cell.spec.name)
    if not hasattr(target, "require_possible"):
        return
    try:
        target.require_possible(cell.spec.sms, cell.precision)
    except Exception as error:
        gpu = f'gpu = "{cell.gpu}", ' if cell.gpu else ""
        raise RecipeError(
            f"{where}: {cell.model} for {cell.gpu or cell.spec}: {error}; leave it out with "
            f'[[exclude]] {gpu}precision = "{cell.precision}"{_other_ways(cell, target)}'
        ) from error


def _other_ways(cell: _Cell, target: Any) -> str:
    """How else a GPU model could have a precision that its shared plan cannot."""
    if not cell.gpu:
        return ""
    ways = [f'build "{cell.gpu}/tensorrt"']
    own = gpu_models.get(cell.gpu).sm
    if len(cell.spec.sms) > 1 and target.refusal((own,), cell.precision) is None:
        ways.insert(0, f"say per_sm = true, for a plan of {own} alone")
    return f", or {', or '.join(ways)}"


def _entries(
    cells: Sequence[_Cell], models: Mapping[str, Recipe], rules: Sequence[Mapping[str, Any]], where: str
) -> tuple[Entry, ...]:
    """Cells that share bytes become one entry: GPUs of one TensorRT-RTX plan."""
    grouped: dict[str, Entry] = {}
    for cell in cells:
        host = cell.gpu if cell.spec.name == "tensorrt" else None
        one = dataclasses.replace(models[cell.model], targets=(str(cell.spec),), precision=cell.precision)
        entry = Entry(cell.model, one, cell.spec, cell.precision, (cell.gpu,) if cell.gpu else (), host)
        entry = _overridden(entry, [rule for rule in rules if _applies(cell, rule, where)], where)
        before = grouped.get(entry.name)
        if before and dataclasses.replace(before, gpus=()) != dataclasses.replace(entry, gpus=()):
            raise RecipeError(
                f"{where}: {', '.join(before.gpus)} and {cell.gpu} share the plan {entry.name}; let one [[override]] match all"
            )
        both = (*before.gpus, *entry.gpus) if before else entry.gpus
        grouped[entry.name] = dataclasses.replace(entry, gpus=tuple(dict.fromkeys(both)))
    return tuple(grouped.values())


def _applies(cell: _Cell, rule: Mapping[str, Any], where: str) -> bool:
    fields = {f.name for f in dataclasses.fields(Recipe)} - set(EXPORT_FIELDS) - set(FUSE_FIELDS) - {"targets"}
    _known(rule, (*MATCH, "memory", "cores", *fields), f"{where}: [[override]]")
    return cell.has({key: value for key, value in rule.items() if key in MATCH})


def _overridden(entry: Entry, rules: Sequence[Mapping[str, Any]], where: str) -> Entry:
    for rule in rules:
        fields = {key: value for key, value in rule.items() if key not in (*MATCH, "memory", "cores")}
        if not isinstance(fields.get("budget", {}), dict):
            raise RecipeError(f"{where}: [[override]] has budget = {fields['budget']!r}, expected a table of numbers")
        if not isinstance(cores := rule.get("cores", 1), int) or isinstance(cores, bool) or cores < 1:
            raise RecipeError(f"{where}: [[override]] has cores = {cores!r}, expected a whole number from 1")
        merged = entry.recipe.to_json() | fields
        if "budget" in fields:
            merged["budget"] = {**entry.recipe.budget, **fields["budget"]}
        entry = dataclasses.replace(entry, recipe=recipes.from_mapping(merged, f"{where}: [[override]]"))
        entry = dataclasses.replace(entry, cores=rule.get("cores", entry.cores))
        entry = dataclasses.replace(entry, memory=parse_bytes(rule["memory"]) if "memory" in rule else entry.memory)
    for name in entry.recipe.budget:
        if name not in budgets.LIMITS:
            raise RecipeError(f"{where}: unknown budget {name!r}{did_you_mean(name, budgets.LIMITS)}")
    return entry


def parse_bytes(text: str) -> int:
    """`8 GB`, `512MiB`: bytes. RecipeError for anything else."""
    found = SIZE.fullmatch(str(text).strip())
    if not found:
        raise RecipeError(f"{text!r} is not an amount of memory; write 8 GB or 512 MiB")
    base = 1024 if found[3] else 1000
    return int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))


def select(fleet: Fleet, names: Sequence[str]) -> Fleet:
    """The fleet with only the named entries (or models); all of it for no names. RecipeError lists the nearest."""
    known = [entry.name for entry in fleet.entries]
    for name in names:
        if name not in known and name not in fleet.models:
            raise RecipeError(f"{fleet.path} has no entry {name!r}{did_you_mean(name, [*known, *fleet.models])}")
    if not names:
        return fleet
    chosen = tuple(entry for entry in fleet.entries if entry.name in names or entry.model in names)
    return dataclasses.replace(fleet, entries=chosen, every=fleet.entries)
