"""Source: what a user points at, opened as one graph, with the computation that is the truth about it.

`open_source` resolves a reference in a fixed order: an existing path, then a Python factory, then a hub id.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import Dim, Missing, SourceError, did_you_mean, expand, is_path, machine, why_broken
from ..data import SENTENCE_FILES, Sample, TextSettings, audio_settings, read_settings, settings_files
from ..data import tokenizer as text
from ..graph import Graph, with_int32_ids
from . import adapter as adapters
from . import assets, chain, checkpoint, factory, hub, inputs_truth, inventory, onnx_file, onnx_folder
from .chain import EMBEDDINGS
from .from_artifact import open_export
from .gc_pause import paused_gc
from .given import find_given, given_in_half, lazy_runner, truth_of_file
from .size_limits import count_rows, measure_limits, settle_sizes
from .size_trial import Trial
from .types import FORMS, IDS, KINDS, TASKS, Location, Reference, Source, SourceOptions
from .widening import widen

FEW = 12  # files beside a path that an error lists
KNOWN_FILES = (*assets.FILES, *SENTENCE_FILES)  # of a checkpoint; a note says where some of them are not used


@paused_gc()
def open_source(reference: str, options: SourceOptions | None = None, profiles: Sequence[str] = ()) -> Source:
    """Open what a user points at: an existing path, else a Python factory, else a Hugging Face hub id.

    `profiles`, as the user wrote them, are the sizes that an .onnx file is tried at first.

    `task` is one of TASKS, or "custom" for a factory or an .onnx file whose task was not given.
    Raises SourceError for a source that cannot be used as asked, Missing when this machine lacks something it needs
    (torch, ONNX Runtime, a network).
    """
    options = options or SourceOptions()
    place = resolve_reference(reference, options)
    if place.kind == "artifact":
        return open_export(place.path, options)
    if place.kind == "onnx":
        source = _open_onnx(reference, place, options, profiles)
    else:
        source = {"huggingface": _open_checkpoint, "factory": _open_factory}[place.kind](reference, place, options)
    source = dataclasses.replace(source, options=options)
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
        return Reference(onnx_file.sha256(place.path), truth_of_file(place.path, graph, find_given(place.path))[0])
    made, sha256 = _module(reference, place, options)
    torch_export = _torch_export()
    from .half_modules import computes_half

    if place.kind == "factory" and computes_half(made):  # the truth is its graph in float32, as when it is built
        run = _open_factory(reference, place, options).run
        assert run is not None
        return Reference(sha256, run)
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
    return onnx_file.sha256(place.path), with_int32_ids(graph) if options.ids == "int32" else graph


def resolve_reference(reference: str, options: SourceOptions) -> Location:
    """Where a reference leads. SourceError for one that leads nowhere, or that has no use for an option."""
    place = _resolve(reference, options)
    if options.adapter and place.kind != "huggingface":
        raise SourceError(f"--adapter is for a checkpoint's folder or a hub id; {reference!r} is {KINDS[place.kind]}")
    if options.revision and place.revision is None:
        raise SourceError(f"--revision is for a hub id; {reference!r} is {KINDS[place.kind]}: leave --revision out")
    if options.opset != SourceOptions().opset and place.kind in ("onnx", "artifact"):
        raise SourceError(f"--opset is for an export from PyTorch; {reference!r} is {KINDS[place.kind]}: leave --opset out")
    return place


def _resolve(reference: str, options: SourceOptions) -> Location:
    if options.task is not None and options.task not in TASKS:
        raise SourceError(f"unknown task {options.task!r}{did_you_mean(options.task, TASKS)}")
    if options.ids not in IDS:
        raise SourceError(f"unknown integer type {options.ids!r} for ids{did_you_mean(options.ids, IDS)}")
    if not str(reference).strip():
        raise SourceError(f"no source: {reference!r} is empty; a source is {FORMS}")
    path = expand(reference)
    if why := why_broken(path):
        raise SourceError(f"no source at {reference!r}: {why}")
    if path.is_dir():
        return _locate_directory(path)
    if path.is_file():
        return Location("onnx", path)
    if factory.is_factory(reference):
        folder = factory.named_folder(reference)
        return _locate_directory(folder) if folder is not None else Location("factory", path)
    if not is_path(reference) and hub.is_hub_id(reference):
        try:
            return _fetch(reference, options)
        except (Missing, SourceError) as error:
            raise type(error)(f"{error}{_neighbours(reference)}") from error
    what = "file or folder" if is_path(reference) else "source"
    raise SourceError(f"no {what} at {reference!r}{_neighbours(reference)}; a source is {FORMS}")


def _fetch(reference: str, options: SourceOptions) -> Location:
    """A hub model in the cache: its weights for transformers, or the .onnx file of a repository that has nothing else."""
    folder, commit = hub.fetch_model(reference, options.revision, options.allow_pickle, options.trust_remote_code)
    if onnx_folder.has_weights(folder):
        return Location("huggingface", folder, commit)
    hub.fetch_onnx(reference, commit, onnx_folder.choose_names)
    alone = onnx_folder.choose_onnx(folder)
    return Location("huggingface" if alone is None else "onnx", alone or folder, commit)


def _neighbours(reference: str) -> str:
    """What lies beside a path that does not exist, for a reference that may be one."""
    path = expand(reference)
    parent = path.parent
    if "/" not in reference and not is_path(reference):
        return ""
    if not parent.is_dir():
        return f" (there is no folder {str(parent)!r})" if is_path(reference) else ""
    visible = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".") and entry.exists()]
    close = difflib.get_close_matches(path.name, visible, n=3, cutoff=0.5)
    listed = visible if len(visible) <= FEW else close  # a folder may hold thousands
    return f" (in {str(parent)!r}{did_you_mean(path.name, listed)})" if listed else f" (nothing in {str(parent)!r} is called so)"


def _locate_directory(path: Path) -> Location:
    if (path / "manifest.json").is_file():
        return Location("artifact", path)
    alone = None if onnx_folder.has_weights(path) else onnx_folder.choose_onnx(path)
    if alone is not None:
        return Location("onnx", alone)
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
    adapter, folder = adapters.resolve(checkpoint.encoder_place(path), options)
    found = checkpoint.read_checkpoint(path, options.allow_pickle, options.trust_remote_code, folder, adapter)
    guessed = chain.task_of_chain(found) or (None if options.task else adapters.task_of_adapter(adapter))
    task = options.task or guessed or checkpoint.task_of(found, TASKS)
    checkpoint.check_task(found, task)
    if task in EMBEDDINGS:
        chain.read_chain(found, task)
    if (found.root / "modules.json").is_file():
        read_settings(settings_files(found.root, found.place))
    return found, task


def _inventory(found: checkpoint.Checkpoint, task: str, files: Sequence[Path]) -> list[str]:
    """What of a checkpoint's folder the graph does not come from."""
    kinds = [spec.kind for spec in found.chain if spec.kind != "Dropout"]
    notes = list(chain.read_chain(found, task).notes) if task in EMBEDDINGS else []
    if kinds and task not in EMBEDDINGS:
        notes.append(f"not used: {' -> '.join(kinds)} of modules.json: outside task {task!r}")
    used = {*found.files(), *files, *(place / name for place in (found.root, found.place) for name in KNOWN_FILES)}
    apart = () if found.folder.is_relative_to(found.root) else (found.folder,)
    return notes + [note for folder in (found.root, *apart) for note in inventory.file_notes(folder, used)]


def _open_checkpoint(reference: str, place: Location, options: SourceOptions) -> Source:
    found, task = _read_checkpoint(place.path, options)
    torch_export = _torch_export()
    made, dims, notes = torch_export.load_module(found, task, options.trust_remote_code)
    graph, outputs = torch_export.export_module(made, options.opset)
    alone = found.place != found.folder  # an adapter: its tokenizer goes before that of its base
    folders = (found.place, found.folder) if alone else (found.folder, found.root)
    files, asset_notes = assets.collect_assets(*folders, model=found.root)
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
        notes=(
            *(*found.notes, *notes, *_input_notes(found, settings, dims, files), *text.override_notes(files), *asset_notes),
            *_inventory(found, task, files),
        ),
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
    if not found.is_audio and (spare := audio_settings({path.name: path for path in files})[0]) is not None:
        notes.append(f"{spare.name} is of a preprocessor of recordings, and is not used: the model takes token ids")
    return tuple(notes)


def _call_factory(reference: str) -> tuple[factory.FactoryModel, tuple[str, ...]]:
    torch_export = _torch_export()
    made = factory.call_factory(reference, torch_export.nn.Module, torch_export.Tensor)
    module, unwrapped = torch_export.unwrap(made.module, f"factory {reference!r}")
    made = made._replace(module=module)
    notes = ("the factory's module was in training mode; it is used in evaluation mode",) if made.module.training else ()
    made.module.eval()
    torch_export.check_finite(made.module, f"factory {reference!r}")
    found: list[str] = []
    if not made.dims:
        made, found = torch_export.find_dims(made)
    return made, (*unwrapped, *notes, *torch_export.output_notes(made), *found)


def _open_factory(reference: str, place: Location, options: SourceOptions) -> Source:
    torch_export = _torch_export()
    made, notes = _call_factory(reference)
    graph, outputs = torch_export.export_module(made, options.opset)
    run = torch_export.module_runner(made, outputs)
    dims = count_rows(Trial(graph, factory.dims_of(made), run))
    half, half_notes = widen(graph.model)
    given = given_in_half(half, run, "the module in PyTorch on the CPU")
    if made.limits is None:  # nobody says how long an input may be: a table of positions has an end
        dims, found = measure_limits(graph, dims, run)
        notes = (*notes, *found)
    files, asset_notes = assets.collect_assets(Path(made.assets), Path(made.assets)) if made.assets is not None else ((), [])
    return Source(
        reference=reference,
        kind="factory",
        sha256=torch_export.state_sha256(made.module),
        task=options.task or "custom",
        graph=graph,
        dims=dims,
        run=run if given is None else lazy_runner(graph),
        assets=files,
        notes=(*notes, *half_notes, *_settings(files).notes, *text.override_notes(files), *asset_notes),
        versions=_versions("torch", "onnx-ir", "onnxscript"),
        samples=(Sample("the factory's example", torch_export.example_feeds(made)),),
        given=given,
        inputs_truth=lambda: inputs_truth.of_folder(Path(str(made.assets)), _settings(files)),
    )


def _open_onnx(reference: str, place: Location, options: SourceOptions, profiles: Sequence[str]) -> Source:
    path = place.path
    graph, dims, notes = onnx_file.read_onnx_file(path)
    given = find_given(path)
    run, said = truth_of_file(path, graph, given)
    notes += said
    dims, found = settle_sizes(graph, dims, run, profiles)
    root = onnx_folder.asset_root(path)
    files, asset_notes = assets.collect_assets(path.parent, root)
    folder = Path(reference).expanduser()
    if place.revision is not None:
        folder = root
    if folder.is_dir():
        notes = [*onnx_folder.choice_notes(folder, path), *notes]
    task = options.task or onnx_folder.task_of(root, [spec.name for spec in graph.outputs], TASKS)
    return Source(
        reference=reference,
        kind="onnx",
        revision=place.revision,
        sha256=onnx_file.sha256(path),
        task=task or "custom",
        graph=graph,
        dims=dims,
        run=run,
        assets=files,
        notes=(*notes, *found, *_settings(files).notes, *asset_notes),
        versions=_versions("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
        inputs_truth=lambda: inputs_truth.of_folder(path.parent, _settings(files)),
        given=given,
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
