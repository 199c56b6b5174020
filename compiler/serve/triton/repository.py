"""The folder that `bertc package --triton` writes: repository/ for tritonserver, goldens/ and verify.py for who wants proof."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ...artifact import MANIFEST, Artifact, manifest, open_artifact
from ...core import VERSION, ArtifactError, InputError, Missing, read_json, write_json
from ...graph import external_files
from ..config import ModelConfig, ServingConfig, check_name
from . import ragged

if TYPE_CHECKING:
    from .front import Front

PLAN, MODEL = "engine.plan", "model.onnx"
PYTHON_MODEL = """\"\"\"The artifact beside this file, by the package bertc.\"\"\"

from bertc.serve.triton.artifact_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
NUMPY = "a server whose Python backend was built for numpy 1 (24.10 is) needs 'numpy<2' there"
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Named:
    """An artifact under the name of a model; `capability` ("8.9") tells plans of one model apart."""

    name: str
    artifact: Path
    capability: str = ""


@dataclasses.dataclass(frozen=True)
class Package:
    """What was written: the models of the repository, and what is to be known of each."""

    path: Path
    models: tuple[str, ...]
    notes: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class _Model:
    """One model: its artifacts by compute capability, "" for the only one."""

    name: str
    artifacts: Mapping[str, Artifact]

    @property
    def first(self) -> Artifact:
        return next(iter(self.artifacts.values()))


def package(
    named: Sequence[Named], out: Path, config: ServingConfig | None = None, *, backend: str = "auto", tokenizer: bool = True,
    force: bool = False,
) -> Package:  # fmt: skip
    """Write `out`. `backend`: "auto" (the engine's own) or "python" (bertc.load). `tokenizer`: also ensembles that take texts.

    Raises InputError for artifacts that cannot be one model or that no backend runs, Missing without the package tritonclient.
    """
    try:
        from tritonclient.grpc import model_config_pb2  # noqa: F401
    except ImportError as error:
        raise Missing(f"--triton needs the package tritonclient ({error}): pip install 'bertc[triton]'") from error
    models = [_Model(name, group) for name, group in _groups(named).items()]
    notes: dict[str, list[str]] = {}
    with manifest.staging(out, force) as stage:
        (stage / "repository").mkdir()
        (stage / "goldens").mkdir()
        described: dict[str, Any] = {}
        for model in models:
            found = config or ServingConfig()
            entry = found.models.get(model.name, ModelConfig(""))
            notes[model.name] = _write_model(stage, model, found, entry, backend, tokenizer, described)
        write_json(stage / "goldens" / "models.json", described)
        shutil.copyfile(HERE / "verify.py", stage / "verify.py")
        made = sorted(path.name for path in (stage / "repository").iterdir())
        artifacts = {
            m.name: {capability or "any": str(a.manifest["source"]["sha256"]) for capability, a in m.artifacts.items()}
            for m in models
        }
        write_json(stage / MANIFEST, {"format": 1, "bertc": VERSION, "triton": made, "sources": artifacts, "notes": notes})
    return Package(out, tuple(made), notes)


def _groups(named: Sequence[Named]) -> dict[str, dict[str, Artifact]]:
    """The artifacts of each model, opened and checked."""
    groups: dict[str, dict[str, Artifact]] = {}
    for each in named:
        check_name(each.name, "the command line")
        found = open_artifact(each.artifact)
        sms = found.manifest["target"].get("sms") or []
        capability = each.capability or (_capability(sms[0]) if len(sms) == 1 and found.target == "tensorrt" else "")
        if capability and not re.fullmatch(r"\d+\.\d", capability):
            raise InputError(f"{each.name}@{capability}: a compute capability is written as in 8.9")
        if capability and found.target != "tensorrt":
            raise InputError(
                f"{each.name}@{capability}: {found.path} is built for {found.target}; only TensorRT plans are of one capability"
            )
        group = groups.setdefault(each.name, {})
        if group:
            _check_alike(each.name, group, found, capability)
        group[capability] = found
    return groups


def _capability(sm: str) -> str:
    """sm89 -> 8.9, sm120 -> 12.0."""
    number = re.sub(r"\D", "", sm)
    return f"{number[:-1]}.{number[-1]}"


def _check_alike(name: str, group: Mapping[str, Artifact], found: Artifact, capability: str) -> None:
    other = next(iter(group.values()))
    if not capability or "" in group:
        raise InputError(
            f"{other.path} and {found.path} are both called {name!r}. Plans of one model say their compute capability, as in "
            f"{name}@8.9={found.path}; other artifacts need other names, as in other={found.path}"
        )
    if capability in group:
        raise InputError(f"{name}@{capability} is given twice: {group[capability].path} and {found.path}")
    for what in ("inputs", "outputs", "profiles"):
        if other.manifest[what] != found.manifest[what]:
            raise InputError(f"{found.path} and {other.path} have different {what}: they cannot be one model {name!r}")


def _write_model(
    stage: Path, model: _Model, config: ServingConfig, entry: ModelConfig, wanted: str, tokenizer: bool, described: dict[str, Any]
) -> list[str]:  # fmt: skip
    """The folders of a model; returns what is to be said of it."""
    from . import config_file, front, samples

    found = model.first
    backend = config_file.backend_of(found, wanted)
    settings = config_file.Settings(config, entry)
    plans = {c: f"model_sm{c.replace('.', '')}.plan" for c in model.artifacts if c} if backend == "tensorrt" else {}
    made = config_file.engine_config(model.name, found, backend, settings, plans)
    folder = stage / "repository" / model.name
    version = folder / "1"
    version.mkdir(parents=True)
    _copy_engines(version, model, backend, plans)
    taken = samples.golden_samples(found, made.message.max_batch_size)
    samples.add_warmup(made.message, folder, taken)
    samples.write(stage / "goldens", model.name, taken, samples.limits_of(found), described)
    _write_config(folder, made.message)
    notes = [*made.notes, *_versions(model, backend)]
    if not tokenizer:
        return notes
    return notes + _write_front(stage, model, front.front_of(found), made.message, described)


def _copy_engines(version: Path, model: _Model, backend: str, plans: Mapping[str, str]) -> None:
    if backend == "python":
        shutil.copytree(model.first.path, version / "artifact")
        (version / "model.py").write_text(PYTHON_MODEL, "utf-8")
        return
    if backend == "tensorrt":
        for capability, found in model.artifacts.items():
            shutil.copyfile(found.path / PLAN, version / plans.get(capability, "model.plan"))
        return
    source = model.first.path / MODEL
    if not ragged.why_not(model.first):
        ragged.write(source, version / MODEL, model.first)
        return
    shutil.copyfile(source, version / MODEL)
    for location in external_files(source):
        shutil.copyfile(source.parent / location, version / location)


def _versions(model: _Model, backend: str) -> list[str]:
    """What the server must bring for this engine."""
    found = model.first
    if backend == "python":
        needs = f"the Python of the server needs bertc {VERSION} and what runs {found.target}: pip install, or EXECUTION_ENV_PATH"
        return [needs, NUMPY]
    if backend == "tensorrt":
        built = {str(each.manifest["engine"].get("builder_version", "unknown")) for each in model.artifacts.values()}
        notes = [f"the plan needs a server with TensorRT {' and '.join(sorted(built))}"]
        if "" in model.artifacts:
            notes.append(
                f"no compute capability is given: write {model.name}@8.9=ARTIFACT, and Triton refuses other GPUs by name"
            )
        return notes
    version = found.manifest.get("tools", {}).get("onnxruntime", "(version unknown)")
    opset = found.manifest["graph"]["opset"]
    notes = [f"verified with onnxruntime {version}: an older one in the server may refuse opset {opset}, or fuse otherwise"]
    level = found.manifest["engine"].get("session", {}).get("graph_optimization_level", "ORT_ENABLE_ALL")
    if level != "ORT_ENABLE_ALL":
        notes.append(f"session option graph_optimization_level {level} is not carried over: set optimization.graph.level")
    return notes


def _write_front(stage: Path, model: _Model, made: Front, engine: Any, described: dict[str, Any]) -> list[str]:
    """The tokenizer and the ensembles. Returns why there are none, or what is to be known."""
    from . import front, samples

    if made.encoder is None:
        return [f"no tokenizer in front: {made.why}"]
    if not engine.max_batch_size:
        return ["no tokenizer in front: the model takes no batches, and texts come as rows"]
    name = f"{model.name}_tokenizer"
    folder = stage / "repository" / name
    (folder / "1").mkdir(parents=True)
    front.save_tokenizer(made.encoder, folder / "1" / "tokenizer.json")
    shutil.copyfile(HERE / "tokenizer_model.py", folder / "1" / "model.py")
    _write_config(folder, front.tokenizer_config(name, made.encoder, engine))
    pairs = model.first.task in front.PAIR_TASKS
    kinds = {"text": False} | ({"pairs": True} if pairs else {})
    for kind, two in kinds.items():
        ensemble = stage / "repository" / f"{model.name}_{kind}"
        (ensemble / "1").mkdir(parents=True)
        _write_config(ensemble, front.ensemble_config(ensemble.name, name, engine, two))
    why = samples.write_texts(stage / "goldens", model.first, made.encoder, engine, kinds, described)
    return [f"{name} needs tokenizers in the Python of the server; {NUMPY}", *made.encoder.notes, *why]


def _write_config(folder: Path, message: Any) -> None:
    from google.protobuf import text_format

    (folder / "config.pbtxt").write_text(text_format.MessageToString(message), "utf-8")


class Notes(TypedDict):
    notes: dict[str, list[str]]


def notes_of(path: Path) -> Mapping[str, Sequence[str]]:
    """What a package says of its models."""
    return dict(read_json(path / MANIFEST, Notes, advice="package the model again", error=ArtifactError)["notes"])
