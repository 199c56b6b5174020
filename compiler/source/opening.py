"""Source: what a user points at, opened as one graph, with the computation that is the truth about it.

`open_source` resolves a reference in a fixed order: an existing path, then a Python factory, then a hub id.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import Dim, Missing, SourceError, did_you_mean, hash_file, machine
from ..data import TextSettings, audio_settings, read_settings, settings_files
from ..data import tokenizer as text
from ..graph import Graph, with_int32_ids
from . import assets, checkpoint, factory, hub, inputs_truth, onnx_file
from .from_artifact import open_export
from .gc_pause import paused_gc
from .size_limits import measure_limits
from .types import FORMS, IDS, TASKS, Location, Reference, Source, SourceOptions


@paused_gc()
def open_source(reference: str, options: SourceOptions | None = None) -> Source:
    """Open what a user points at: an existing path, else a Python factory, else a Hugging Face hub id.

    `task` is one of TASKS, or "custom" for a factory or an .onnx file whose task was not given.
    Raises SourceError for a source that cannot be used as asked, Missing when this machine lacks something it needs
    (torch, ONNX Runtime, a network).
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    if place.kind == "artifact":
        return open_export(place.path, options)
    opener = {"huggingface": _open_checkpoint, "factory": _open_factory, "onnx": _open_onnx}[place.kind]
    source = dataclasses.replace(opener(reference, place, options), options=options)
    return dataclasses.replace(source, graph=with_int32_ids(source.graph)) if options.ids == "int32" else source


def open_reference(reference: str, options: SourceOptions | None = None) -> Reference:
    """The computation alone, for comparing with: nothing is exported. `run` takes and gives what `Source.run` does.

    Raises what open_source raises, and SourceError for an artifact, which has goldens but no computation of its own.
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    if place.kind == "artifact":
        raise SourceError(f"{place.path} is an artifact; give the source it was built from")
    if place.kind == "onnx":
        graph, _, _ = onnx_file.read_onnx_file(place.path)
        return Reference(_onnx_sha256(place.path, graph), onnx_file.reference_runner(place.path))
    made, sha256 = _module(reference, place, options)
    torch_export = _torch_export()
    return Reference(sha256, torch_export.module_runner(made, torch_export.output_names(made)))


def open_module(reference: str, options: SourceOptions | None = None) -> factory.FactoryModel | None:
    """The PyTorch module of a source with its examples, in evaluation mode; None for an .onnx file or an artifact.

    Raises what open_source raises.
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    return None if place.kind in ("artifact", "onnx") else _module(reference, place, options)[0]


def _module(reference: str, place: Location, options: SourceOptions) -> tuple[factory.FactoryModel, str]:
    """The module of a checkpoint or a factory, and the hash of what decides its numbers."""
    torch_export = _torch_export()
    if place.kind == "factory":
        made, _ = _call_factory(reference)
        return made, torch_export.state_sha256(made.module)
    found, task = _read_checkpoint(place.path, options)
    made, _, _ = torch_export.load_module(found, task, options.trust_remote_code)
    return made, found.sha256()


def open_graph(reference: str, options: SourceOptions | None = None) -> tuple[str, Graph]:
    """(sha256, graph) of a source, for comparing with. The weights of an .onnx file stay in it, and are not checked again.

    Raises what open_source raises.
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    if place.kind != "onnx":
        source = open_source(reference, options)
        return source.sha256, source.graph
    graph, _, _ = onnx_file.read_onnx_file(place.path, known=True)
    return _onnx_sha256(place.path, graph), with_int32_ids(graph) if options.ids == "int32" else graph


def resolve_reference(reference: str, options: SourceOptions) -> Location:
    if options.task is not None and options.task not in TASKS:
        raise SourceError(f"unknown task {options.task!r}{did_you_mean(options.task, TASKS)}")
    if options.ids not in IDS:
        raise SourceError(f"unknown integer type {options.ids!r} for ids{did_you_mean(options.ids, IDS)}")
    path = Path(reference).expanduser()
    if path.is_dir():
        return _locate_directory(path)
    if path.is_file():
        return Location("onnx", path)
    if factory.is_factory(reference):
        folder = factory.named_folder(reference)
        return _locate_directory(folder) if folder is not None else Location("factory", path)
    if not _is_path(reference) and hub.is_hub_id(reference):
        try:
            folder, commit = hub.fetch_model(reference, options.revision, options.allow_pickle, options.trust_remote_code)
        except (Missing, SourceError) as error:
            raise type(error)(f"{error}{_neighbours(reference)}") from error
        return Location("huggingface", folder, commit)
    raise SourceError(f"no source at {reference!r}{_neighbours(reference)}; a source is {FORMS}")


def _is_path(reference: str) -> bool:
    return reference.startswith(("/", "./", "../", "~")) or reference.endswith(".onnx") or reference.count("/") > 1


def _neighbours(reference: str) -> str:
    """What lies beside a path that does not exist, for a reference that may be one."""
    path = Path(reference).expanduser()
    parent = path.parent
    if "/" not in reference and not _is_path(reference):
        return ""
    if not parent.is_dir():
        return f" (there is no folder {str(parent)!r})" if _is_path(reference) else ""
    visible = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    return f" (in {str(parent)!r}{did_you_mean(path.name, visible)})"


def _locate_directory(path: Path) -> Location:
    if (path / "manifest.json").is_file():
        return Location("artifact", path)
    if checkpoint.is_checkpoint(path):
        return Location("huggingface", path)
    models = sorted(path.glob("*.onnx"))
    if len(models) == 1:
        return Location("onnx", models[0])
    found = sorted(entry.name for entry in path.iterdir())
    raise SourceError(
        f"{path} is not a source: no config.json, modules.json or manifest.json, and {len(models)} .onnx files (one is needed); "
        f"it holds {', '.join(found[:12]) or 'nothing'}"
    )


def _read_checkpoint(path: Path, options: SourceOptions) -> tuple[checkpoint.Checkpoint, str]:
    found = checkpoint.read_checkpoint(path, options.allow_pickle, options.trust_remote_code)
    task = options.task or checkpoint.task_of(found, TASKS)
    checkpoint.check_task(found, task)
    if task == "sentence-embedding":
        checkpoint.embedding_chain(found)
    if (found.root / "modules.json").is_file():
        read_settings(settings_files(found.root, found.folder))
    return found, task


def _open_checkpoint(reference: str, place: Location, options: SourceOptions) -> Source:
    found, task = _read_checkpoint(place.path, options)
    torch_export = _torch_export()
    made, dims, notes = torch_export.load_module(found, task, options.trust_remote_code)
    graph, outputs = torch_export.export_module(made, options.opset)
    files, asset_notes = assets.collect_assets(found.folder, found.root, model=True)
    settings = _settings(files)
    return Source(
        reference=reference,
        kind="huggingface",
        sha256=found.sha256(),
        task=task,
        graph=graph,
        dims=dims,
        run=torch_export.module_runner(made, outputs),
        assets=files,
        revision=place.revision,
        notes=(*found.notes, *notes, *_input_notes(found, settings, dims, files), *text.override_notes(files), *asset_notes),
        versions=_versions("torch", "transformers", "onnx-ir", "onnxscript"),
        inputs_truth=lambda: inputs_truth.of_checkpoint(found, task, settings, made, options.trust_remote_code),
    )


def _settings(files: Sequence[Path]) -> TextSettings:
    return read_settings({path.name: path for path in files})


def _input_notes(
    found: checkpoint.Checkpoint, settings: TextSettings, dims: Mapping[str, Dim], files: Sequence[Path]
) -> tuple[str, ...]:
    """What a user may not expect of how texts and recordings become inputs."""
    limit = dims["length"].max if "length" in dims else None
    notes = list(settings.notes)
    if settings.max_length is not None and settings.max_length != limit:
        notes.append(
            f"sentence-transformers truncates texts to {settings.max_length} tokens, and so do encode and --data; the graph "
            f"itself takes {limit or 'any number'}"
        )
    if settings.default_prompt_name is not None and settings.prompt():
        notes.append(f"encode and --data put the default prompt {settings.prompt()!r} before each text")
    if found.is_audio and audio_settings({path.name: path for path in files})[0] is None:
        notes.append("no preprocessor_config.json and no processor_config.json: recordings cannot be read, arrays (.npz) can")
    return tuple(notes)


def _call_factory(reference: str) -> tuple[factory.FactoryModel, tuple[str, ...]]:
    torch_export = _torch_export()
    made = factory.call_factory(reference, torch_export.nn.Module, torch_export.Tensor)
    notes = ("the factory's module was in training mode; it is used in evaluation mode",) if made.module.training else ()
    made.module.eval()
    torch_export.check_finite(made.module, f"factory {reference!r}")
    return made, notes


def _open_factory(reference: str, place: Location, options: SourceOptions) -> Source:
    torch_export = _torch_export()
    made, notes = _call_factory(reference)
    graph, outputs = torch_export.export_module(made, options.opset)
    files, asset_notes = assets.collect_assets(Path(made.assets), Path(made.assets)) if made.assets is not None else ((), [])
    return Source(
        reference=reference,
        kind="factory",
        sha256=torch_export.state_sha256(made.module),
        task=options.task or "custom",
        graph=graph,
        dims=factory.dims_of(made),
        run=torch_export.module_runner(made, outputs),
        assets=files,
        notes=(*notes, *_settings(files).notes, *text.override_notes(files), *asset_notes),
        versions=_versions("torch", "onnx-ir", "onnxscript"),
        inputs_truth=lambda: inputs_truth.of_folder(Path(str(made.assets)), _settings(files)),
    )


def _onnx_sha256(path: Path, graph: Graph) -> str:
    digest = hashlib.sha256()
    for file in onnx_file.data_files(path, graph):
        digest.update(f"{file.name}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def _open_onnx(reference: str, place: Location, options: SourceOptions) -> Source:
    path = place.path
    graph, dims, notes = onnx_file.read_onnx_file(path)
    run = onnx_file.reference_runner(path)
    dims, found = measure_limits(graph, dims, run)
    files, asset_notes = assets.collect_assets(path.parent, path.parent)
    return Source(
        reference=reference,
        kind="onnx",
        sha256=_onnx_sha256(path, graph),
        task=options.task or "custom",
        graph=graph,
        dims=dims,
        run=run,
        assets=files,
        notes=(*notes, *found, *_settings(files).notes, *asset_notes),
        versions=_versions("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
        inputs_truth=lambda: inputs_truth.of_folder(path.parent, _settings(files)),
    )


def _torch_export() -> Any:
    try:
        from . import torch_export
    except ImportError as error:
        raise Missing(f"reading a PyTorch model needs {error.name}; pip install 'bertc[export]'") from error
    return torch_export


def _versions(*packages: str) -> dict[str, str]:
    """Of the installed ones: the list says what took part."""
    return {package: version for package in packages if (version := machine.installed_version(package))}
