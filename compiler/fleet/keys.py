"""What decides the result of a stage, and its key: the hash of all that. Nothing else may decide it.

The inputs of a stage are a plain document, kept beside its result, so that two of them can be compared in words: which file
changed, which tool has another version. A stage takes what came before it by the hash of its contents: an export that comes out
the same after a change leaves everything behind it as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import precision as precisions
from .. import targets
from ..core import hash_file, machine
from ..recipe import Recipe
from ..source import files_read, hub, is_factory
from ..source import opening as source
from ..targets import TargetSpec
from . import code
from . import content_digest as contents
from .travelled import shown

STAGES = ("export", "fuse", "calibrate", "quantise", "build")
HASH = 64  # characters of a hash; what is shorter is a version
FORMAT = 1  # raised when what a stage writes means something else
# Fields of a recipe by the first stage that reads them; what is in neither is the last stage's.
EXPORT_FIELDS = ("source", "task", "revision", "allow_pickle", "trust_remote_code", "ids", "opset", "goldens", "seed")
PATHS = ("source", "data", "adapter")  # fields of which the files count, not where they are
FUSE_FIELDS = ("fuse", "prove", "expect")
TOOLS = ("python", "numpy", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "onnxruntime-gpu")
EXPORT_TOOLS = ("torch", "transformers")
# Where each stage's code begins. Modules that are found by name at run time are named here.
STAGES_CODE = ("fleet/stages", "artifact/goldens")
PACKING = ("packing/check",)
OPERATORS = ("ops/bodies/*", "targets/_tensorrt/lower_*", "targets/_onnxruntime/lower")
ROOTS = {
    "export": (
        *STAGES_CODE,
        "source/opening",
        "source/contrib/*",
        "verification/export_check",
        "artifact/manifest",
        "targets/null",
        "precision/fp32",
    ),
    "fuse": (*STAGES_CODE, "fusions/engine", "verification/export_check", "fusions/rules/*", *OPERATORS),
    "calibrate": (*STAGES_CODE, "quant/forms", *OPERATORS, *PACKING),
    "quantise": (*STAGES_CODE, "quant/forms", *OPERATORS, *PACKING),
    "build": (*STAGES_CODE, *PACKING, "verification/verdict", "verification/on_data", "artifact/manifest", "ops/bodies/*"),
}
# Code that words, shows or orders things, and the stages before: what those made comes in by its hash.
NOT_READ = ("recipe", "report/*", "report/page/*", "core/progress", "cli/*", "fleet/__init__", "fleet/keys")
BEFORE = ("pipeline", "fusions/engine", "source/opening", "verification/export_check")
FORMS = ("quant/__init__", "quant/timed_choice", "quant/dynamic", "quant/weights", "quant/fp8", "quant/saturation")
DECIDING = (*FORMS, "quant/fit", "quant/search", "quant/gated", "quant/insert", "quant/engine_choice")
EXCLUDED_CODE = {
    "export": (*NOT_READ, "pipeline", "verification/verdict", "fusions/engine"),
    "fuse": (*NOT_READ, "pipeline", "verification/verdict", "source/opening", "data/synthetic"),
    "calibrate": (*NOT_READ, *BEFORE, *DECIDING),
    "quantise": (*NOT_READ, *BEFORE, *(f"targets/_tensorrt/{name}" for name in ("kernel_log", "weight_check", "worker"))),
    "build": (*NOT_READ, *BEFORE, *FORMS, "quant/calibration/command", "quant/static", "quant/calibration/observe"),
}
PIPELINE = ("pipeline",)  # the order of the stages and the manifest: read by all of them, and followed by none


def inputs(
    stage: str,
    recipe: Recipe,
    spec: TargetSpec,
    upstream: Mapping[str, str],
    *,
    host: str | None,
    hashed: Callable[[Path], str],
    part: str | None = None,
) -> dict[str, Any]:
    """All that decides a stage's result, as a document.

    `upstream`: digests of the stages before, by their names. `host`: the GPU model that a TensorRT engine is for. `part`: which
    part of its data a stage does, as in 1/4. `hashed` gives a file's sha256.

    Raises what opening the source raises (SourceError, Missing), and DataError for data that is not there.
    """
    chosen = {name: hashed(Path(value)) if _is_path(value) else value for name, value in options(stage, recipe, spec).items()}
    found: dict[str, Any] = {"format": FORMAT, "stage": stage, "after": dict(upstream), "options": chosen}
    if stage == "export":
        found["source"] = source_files(recipe, hashed)
    if part is not None:
        found["part"] = part
    if recipe.data and _reads_data(stage, recipe):
        found["data"] = {path.name: hashed(path) for path in _data_files(Path(recipe.data))}
    if host is not None:
        found["gpu"] = host
    return found | environment(stage, spec, recipe.precision)


def _is_path(value: Any) -> bool:
    """A field that names a file stands for what is in it."""
    return isinstance(value, str) and ("/" in value or "." in value) and Path(value).is_file()


def key_of(document: Mapping[str, Any]) -> str:
    """The hash of a stage's inputs: the name of its result in the store."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def environment(stage: str, spec: TargetSpec, precision: str | None) -> dict[str, Any]:
    """The part of the inputs that is this machine's: bertc's files that the stage is made of, and the tools it uses."""
    own, tools = ROOTS[stage], (*TOOLS, *(EXPORT_TOOLS if stage == "export" else ()))
    if stage == "build":
        module = spec.name.replace("-", "_")
        own = (*own, f"targets/{module}", f"precision/{str(precision).replace('-', '_')}")
        if precision in precisions.QUANTISED:  # which may end as another form, or as the target's base
            own = (*own, "quant/engine_choice", "quant/forms", "precision/int8*", "precision/fp16", "precision/fp32")
        tools = (*tools, module)
    if stage == "build" and spec.name.startswith("tensorrt"):
        own = (*own, "targets/_tensorrt/worker")
    left_out = EXCLUDED_CODE[stage] if precision in precisions.QUANTISED else (*EXCLUDED_CODE[stage], "quant/*")
    versions = machine.versions()
    return {"code": dict(_code_hashes(own, left_out)), "tools": {name: versions[name] for name in tools if name in versions}}


@functools.cache
def _code_hashes(roots: tuple[str, ...], left_out: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    stop = frozenset(path for name in left_out for path in _modules(name))
    files = code.closure((p for name in roots for p in _modules(name)), code.PACKAGE, stop)
    files += [path for name in PIPELINE for path in _modules(name)]
    return tuple((path.relative_to(code.PACKAGE).as_posix(), hash_file(path)) for path in sorted(files))


def _modules(name: str) -> Iterator[Path]:
    if "*" in name:
        yield from sorted(code.PACKAGE.glob(f"{name}.py"))
        return
    path = code.PACKAGE / name
    yield path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def options(stage: str, recipe: Recipe, spec: TargetSpec) -> dict[str, Any]:
    """The fields that the stage reads, without the paths of the source and the data: the same files elsewhere are the same."""
    plain = {*PATHS, "targets"}
    every = {name: value for name, value in json.loads(json.dumps(dataclasses.asdict(recipe))).items() if name not in plain}
    if stage == "export":
        wanted = {n: v for n, v in every.items() if n in EXPORT_FIELDS}
        return wanted | ({"profiles": every["profiles"]} if recipe.goldens == "data" else {})
    if stage == "fuse":
        return {n: v for n, v in every.items() if n in (*FUSE_FIELDS, "seed")}
    if stage == "calibrate":
        kind = "fp8" if recipe.precision == "fp8" else "int8"
        return {"kind": kind, "profiles": every["profiles"], **lowering(recipe, spec)}
    if stage == "quantise":
        return {"precision": recipe.precision, "profiles": every["profiles"], **quantising(recipe, spec)}
    left = {n: v for n, v in every.items() if n not in (*EXPORT_FIELDS, *FUSE_FIELDS)}
    return left | {"seed": recipe.seed, "goldens": recipe.goldens, "target": spec.name, "sms": list(spec.sms)}


def lowering(recipe: Recipe, spec: TargetSpec) -> dict[str, Any]:
    """The form of a graph that a target quantises, and the limit, which decides how many rows judge and do not calibrate: targets
    of which this is the same share what was observed."""
    from .. import quant

    target = targets.get(spec.name)
    bodies = targets.lowerings(spec, quantised=True) if target.FUSES else {}
    forms = {op: f"{body.__module__.rpartition('.')[2]}.{body.__qualname__}" for op, body in sorted(bodies.items())}
    attention = target.INT8_ATTENTION and {"longest": target.INT8_ATTENTION.longest, "sizes": list(target.INT8_ATTENTION.sizes)}
    packed = {"packed": True} if recipe.packed else {}  # another graph: its activations have no padding
    return {"forms": forms, "attention": attention, "max_drop": quant.drop_limit(recipe.budget), **packed}


def quantising(recipe: Recipe, spec: TargetSpec) -> dict[str, Any]:
    """What a target has to do with the way a graph is quantised: targets of which this is the same share one quantised graph.

    `timed`: which form it takes is measured on the machine that quantises.
    """
    from .. import quant

    return {
        **lowering(recipe, spec),
        "base": targets.get(spec.name).INT8_BASE,
        "weight_bits": quant.weight_bits(spec.name),
        "timed": quant.times_forms(str(recipe.precision), spec.name),
    }


def source_files(recipe: Recipe, hashed: Callable[[Path], str]) -> dict[str, str]:
    """What a source is made of: {name of a file: its hash, name of a package: its version}."""
    paths, facts = source_paths(recipe)
    return {name: hashed(path) for name, path in paths.items()} | facts


def source_paths(recipe: Recipe) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of a source by name and what else decides it, without exporting it and, for a factory, without importing it.

    A factory is its source files, those it imports from beside itself, and the versions of other packages it imports: data that
    it reads elsewhere is not seen, so a factory reads its weights from a package or from a file whose name changes with them.
    Raises what opening the source raises where it is not there: SourceError, Missing.
    """
    reference, options = recipe.source, recipe.source_options
    if is_factory(reference) and not Path(reference).exists() and code.is_function(reference):
        files, versions = code.factory_files(reference)
        return {path.name: path for path in files}, versions
    place = source.resolve_reference(reference, options)
    if place.kind == "artifact":
        return {}, {"artifact": contents.digest(place.path)}
    if place.kind == "onnx":
        return files_read(place.path), {}
    below = {path.relative_to(place.path).as_posix(): path for path in _files_below(place.path)}
    if options.adapter:
        folder = Path(options.adapter).expanduser()
        below |= {f"adapter/{path.relative_to(folder).as_posix()}": path for path in _files_below(folder)}
    return below, ({"revision": place.revision} if place.revision else {})


def _files_below(folder: Path) -> list[Path]:
    """All files but hidden ones and weights in forms that are never read."""
    every = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    shown = [p for p in every if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return [p for p in shown if p.suffix not in UNREAD]


UNREAD = frozenset({".h5", ".msgpack", ".ot", ".md", ".onnx"} - set(hub.WANTED))


def _reads_data(stage: str, recipe: Recipe) -> bool:
    """The stages that read data: goldens from data, calibration, and the verification of an artifact on it."""
    if stage == "export":
        return recipe.goldens == "data"
    return stage in ("calibrate", "quantise") or (
        stage == "build" and (recipe.goldens != "data" or recipe.precision in precisions.QUANTISED)
    )


def _data_files(path: Path) -> list[Path]:
    from ..data import unpadded as rows

    rows.check_exists(path)
    return _files_below(path) if path.is_dir() else [path]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Why two keys differ, in words: `fusions/attention.py changed`, `tensorrt_rtx 1.6 -> 1.7`, `calibration data changed`."""
    reasons: list[str] = []
    for part, word in (("source", "the source's {0}"), ("code", "{0}")):
        for name, kind in _differences(before.get(part, {}), now.get(part, {})):
            reasons.append(f"{word.format(name)} {kind}" if "->" not in kind else f"{name} {kind}")
    reasons += [f"{name} {kind}" for name, kind in _differences(before.get("tools", {}), now.get("tools", {}), values=True)]
    if before.get("data") != now.get("data"):
        reasons.append("calibration data changed")
    reasons += [f"{name} {kind}" for name, kind in _differences(before.get("options", {}), now.get("options", {}), values=True)]
    reasons += [f"the output of {name} changed" for name, _ in _differences(before.get("after", {}), now.get("after", {}))]
    for part in ("gpu", "format"):
        if before.get(part) != now.get(part):
            reasons.append(f"{part} {before.get(part)} -> {now.get(part)}")
    return [shown(reason) for reason in reasons]  # `before` may be what another's store or lock says


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], *, values: bool = False) -> list[tuple[str, str]]:
    """(name, what became of it) of everything that differs; with `values`, or where they are short, the values themselves."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if values or (isinstance(old, str) and isinstance(new, str) and len(old) < HASH):
            found.append((name, f"{_as_text(old)} -> {_as_text(new)}"))
        else:
            found.append((name, "was removed" if new is None else "was added" if old is None else "changed"))
    return found


def _as_text(value: Any) -> str:
    return "none" if value in (None, [], {}) else value if isinstance(value, str) else json.dumps(value)
