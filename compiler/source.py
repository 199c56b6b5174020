"""Source: what a user points at, opened as one graph, with the computation that is the truth about it.

`open_source` resolves a reference in a fixed order: an existing path, then a Python factory, then a hub id.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

from . import assets, checkpoint, factory, hub
from .errors import Missing, SourceError, nearest
from .exported import with_int32_ids
from .graph import Graph, hash_file
from .profiles import Dim
from .runner import Feeds, Outputs

IDS = ("int64", "int32")
FORMS = "a Hugging Face directory, a hub id (org/name), package.module:function, an .onnx file or an artifact directory"
TASKS = (
    "features",
    "sentence-embedding",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "masked-lm",
    "audio-features",
    "ctc",
)


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """How to open a source. `ids` is the integer type at the graph's boundary: int64, or int32 for TensorRT."""

    task: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    ids: str = "int64"
    opset: int = 20


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    `run` is the truth: PyTorch for a checkpoint or a factory, ONNX Runtime without optimisations for an .onnx file,
    None for an artifact (its goldens are the truth). `assets` are tokenizer or preprocessor files to copy.
    """

    reference: str
    kind: str  # huggingface, factory, onnx or artifact
    sha256: str
    task: str
    graph: Graph
    dims: Mapping[str, Dim]
    run: Callable[[Feeds], Outputs] | None
    assets: tuple[Path, ...] = ()
    revision: str | None = None
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def open_source(reference: str, options: SourceOptions | None = None) -> Source:
    """Open what a user points at: an existing path, else a Python factory, else a Hugging Face hub id.

    `task` is one of TASKS, or "custom" for a factory or an .onnx file whose task was not given.
    Raises SourceError for a source that cannot be used as asked, Missing when this machine lacks something it needs
    (torch, ONNX Runtime, a network).
    """
    options = options or SourceOptions()
    if options.task is not None and options.task not in TASKS:
        raise SourceError(f"unknown task {options.task!r}{nearest(options.task, TASKS)}")
    if options.ids not in IDS:
        raise SourceError(f"unknown integer type {options.ids!r} for ids{nearest(options.ids, IDS)}")
    source = _open(reference, options)
    if options.ids == "int32" and source.kind != "artifact":
        source = dataclasses.replace(source, graph=with_int32_ids(source.graph))
    return source


def _open(reference: str, options: SourceOptions) -> Source:
    path = Path(reference).expanduser()
    if path.is_dir():
        return _open_directory(reference, path, options)
    if path.is_file():
        return _open_onnx(reference, path, options)
    if factory.is_factory(reference):
        return _open_factory(reference, options)
    if not _is_path(reference) and hub.is_hub_id(reference):
        try:
            folder, commit = hub.fetch(reference, options.revision, options.allow_pickle, options.trust_remote_code)
        except (Missing, SourceError) as error:
            raise type(error)(f"{error}{_neighbours(reference)}") from error
        return _open_checkpoint(reference, folder, options, commit)
    raise SourceError(f"nothing at {reference!r}{_neighbours(reference)}; a source is {FORMS}")


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
    return f" (in {str(parent)!r}{nearest(path.name, [entry.name for entry in parent.iterdir()])})"


def _open_directory(reference: str, path: Path, options: SourceOptions) -> Source:
    if (path / "manifest.json").is_file():
        from .artifact import open_artifact_source

        return open_artifact_source(path)
    if checkpoint.is_checkpoint(path):
        return _open_checkpoint(reference, path, options, None)
    models = sorted(path.glob("*.onnx"))
    if len(models) == 1:
        return _open_onnx(reference, models[0], options)
    found = sorted(entry.name for entry in path.iterdir())
    raise SourceError(
        f"{path} is no source: no config.json, modules.json or manifest.json, and {len(models)} .onnx files where one would do; "
        f"it holds {', '.join(found[:12]) or 'nothing'}"
    )


def _open_checkpoint(reference: str, path: Path, options: SourceOptions, revision: str | None) -> Source:
    found = checkpoint.read(path, options.allow_pickle, options.trust_remote_code)
    task = options.task or checkpoint.task_of(found, TASKS)
    checkpoint.check_task(found, task)
    if task == "sentence-embedding":
        checkpoint.embedding_chain(found)
    torch_export = _torch_export()
    made, dims, notes = torch_export.load(found, task, options.trust_remote_code)
    graph, outputs = torch_export.export(made, options.opset)
    files, asset_notes = assets.collect(found.folder, found.root)
    return Source(
        reference=reference,
        kind="huggingface",
        sha256=found.sha256(),
        task=task,
        graph=graph,
        dims=dims,
        run=torch_export.reference(made, outputs),
        assets=files,
        revision=revision,
        notes=(*found.notes, *notes, *_length_notes(found, dims), *asset_notes),
        versions=_versions("torch", "transformers", "onnx-ir", "onnxscript"),
    )


def _length_notes(found: checkpoint.Checkpoint, dims: Mapping[str, Dim]) -> tuple[str, ...]:
    path = found.folder / "sentence_bert_config.json"
    if not found.chain or not path.is_file():
        return ()
    length = checkpoint.read_json(path, "the sentence-transformers settings").get("max_seq_length")
    limit = dims["length"].max if "length" in dims else None
    if not isinstance(length, int) or length == limit:
        return ()
    return (f"sentence-transformers truncates texts to {length} tokens; the graph itself takes {limit or 'any number'}",)


def _open_factory(reference: str, options: SourceOptions) -> Source:
    torch_export = _torch_export()
    made = factory.call(reference)
    notes = ("the factory's module was in training mode; exported in evaluation mode",) if made.module.training else ()
    made.module.eval()
    torch_export.check_finite(made.module, f"factory {reference!r}")
    graph, outputs = torch_export.export(made, options.opset)
    return Source(
        reference=reference,
        kind="factory",
        sha256=torch_export.state_sha256(made.module),
        task=options.task or "custom",
        graph=graph,
        dims=factory.dims_of(made),
        run=torch_export.reference(made, outputs),
        notes=notes,
        versions=_versions("torch", "onnx-ir", "onnxscript"),
    )


def _open_onnx(reference: str, path: Path, options: SourceOptions) -> Source:
    from . import onnx_source

    graph, dims, notes = onnx_source.open_graph(path)
    digest = hashlib.sha256()
    for file in onnx_source.data_files(path, graph):
        digest.update(f"{file.name}\0{hash_file(file)}\n".encode())
    files, asset_notes = assets.collect(path.parent, path.parent)
    return Source(
        reference=reference,
        kind="onnx",
        sha256=digest.hexdigest(),
        task=options.task or "custom",
        graph=graph,
        dims=dims,
        run=onnx_source.runner(path),
        assets=files,
        notes=(*notes, *asset_notes),
        versions=_versions("onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    )


def _torch_export():  # type: ignore[no-untyped-def]
    try:
        from . import torch_export
    except ImportError as error:
        raise Missing(f"reading a PyTorch model needs {error.name}; pip install 'bertc[export]'") from error
    return torch_export


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one: the list of versions says what took part
    return found
