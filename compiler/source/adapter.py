"""An adapter of PEFT (LoRA and its kin): found beside a model or alone, merged into the weights where that was asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core import Missing, SourceError, counted
from . import hub
from .model_json import AdapterConfig, read_json
from .modules import merging
from .types import Adapter, SourceOptions
from .weight_files import safetensors_header

CONFIG = "adapter_config.json"
WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
SAVED = "base_model.model."  # before the names of an adapter's tensors
TASKS = {
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "features",
}
HEAD_MODULES = {"classifier", "score", "qa_outputs"}
HEADS = ("classifier.weight", "classifier.out_proj.weight", "score.weight")


def task_of_adapter(adapter: Adapter | None) -> str | None:
    """The task that an adapter was trained for, where its config says one."""
    return TASKS.get(str(adapter.config.get("task_type"))) if adapter else None


def label_count(adapter: Adapter | None) -> int | None:
    """The number of classes, where an adapter brings a trained classifier."""
    shapes = safetensors_header(adapter.weights) if adapter and adapter.weights.name == WEIGHTS else {}
    found = [int(entry["shape"][0]) for name, entry in shapes.items() if name.removeprefix(SAVED) in HEADS]
    return found[0] if found else None


def resolve(place: Path, options: SourceOptions) -> tuple[Adapter | None, Path]:
    """The adapter that was asked for, and the folder of the model that it goes into; (None, place) where nobody speaks of one.

    Raises SourceError for an adapter in the folder that was not asked for.
    """
    asked = Path(options.adapter).expanduser() if options.adapter else None
    own, has_base = (place / CONFIG).is_file(), (place / "config.json").is_file()
    if own and (asked is None or not asked.exists() or not asked.samefile(place)):
        refuse_unasked(place, has_base)
    if asked is None:
        return None, place
    adapter = read_adapter(place if own else asked, options.allow_pickle)
    if own and not has_base:
        return adapter, base_folder(adapter, options.allow_pickle, options.trust_remote_code)
    return adapter, place


def read_adapter(folder: Path, allow_pickle: bool) -> Adapter:
    """Check the folder of an adapter. SourceError for one that is not there, of another library, damaged or only a pickle."""
    if not folder.is_dir():
        raise SourceError(f"--adapter {folder} is no folder; give the one that holds {CONFIG}")
    inner = sorted(found.parent for found in folder.glob(f"*/{CONFIG}"))
    if inner and not (folder / CONFIG).is_file():
        raise SourceError(
            f"{folder} has no {CONFIG}; {counted(len(inner), 'folder')} in it {'has' if len(inner) == 1 else 'have'} one: choose "
            f"with --adapter {' or '.join(map(str, inner[:3]))}"
        )
    config = read_json(folder / CONFIG, "the adapter's config", AdapterConfig)
    if not config.get("peft_type"):
        raise SourceError(f"{folder / CONFIG} names no peft_type: it is no adapter of PEFT, and bertc merges no others")
    if (folder / WEIGHTS).is_file():
        safetensors_header(folder / WEIGHTS)
        return Adapter(folder, config, folder / WEIGHTS)
    if (folder / PICKLE).is_file():
        if not allow_pickle:
            raise SourceError(
                f"{folder} has its adapter only as a pickle ({PICKLE}), which can run any code when it is read; pass "
                "--allow-pickle if you trust it"
            )
        return Adapter(folder, config, folder / PICKLE)
    raise SourceError(f"{folder} has {CONFIG} but neither {WEIGHTS} nor {PICKLE}; is the download complete?")


def refuse_unasked(folder: Path, has_base: bool) -> None:
    """A folder with an adapter that was not asked for: with and without it are two models, so the user chooses."""
    config = read_json(folder / CONFIG, "the adapter's config", AdapterConfig)
    kind, base = config.get("peft_type") or "an unknown kind", config.get("base_model_name_or_path") or "an unnamed model"
    if has_base:
        raise SourceError(
            f"{folder} holds an adapter ({kind}, {CONFIG}) beside its weights; pass --adapter {folder} to merge it, or move "
            f"{CONFIG} out of the folder to build without it"
        )
    raise SourceError(
        f"{folder} holds only an adapter ({kind}, {CONFIG}) for {base!r}, no model; pass --adapter {folder} as well to merge it "
        f"into {base!r}, or give a folder of that model as SOURCE, with --adapter {folder}"
    )


def base_folder(adapter: Adapter, allow_pickle: bool, trust_remote_code: bool) -> Path:
    """The folder of the model that an adapter was trained on: a path, or a hub id."""
    for path in (Path(adapter.base).expanduser(), adapter.folder / adapter.base):
        if adapter.base and (path / "config.json").is_file():
            return path
    advice = f"give a folder of the model it was trained on as SOURCE, with --adapter {adapter.folder}"
    if not hub.is_hub_id(adapter.base):
        raise SourceError(f"{adapter.folder / CONFIG}: its base model {adapter.base!r} is not on this machine; {advice}")
    try:
        return hub.fetch_model(adapter.base, adapter.config.get("revision"), allow_pickle, trust_remote_code)[0]
    except (Missing, SourceError) as error:
        raise type(error)(f"the base model of the adapter {adapter.folder}: {error}; or {advice}") from error


def merge(model: Any, adapter: Adapter) -> tuple[Any, set[str]]:
    """The model with the adapter in its weights, by PEFT, and the names of the weights that the adapter brought whole.

    Raises Missing without the package, SourceError for a kind that has no weights to merge, or that does not fit the model.
    """
    try:
        import peft
    except ImportError as error:
        raise Missing(f"merging an adapter needs {error.name}; pip install 'bertc[adapter]'") from error
    before = set(model.state_dict())
    try:
        config = peft.PeftConfig.from_pretrained(str(adapter.folder))
        if config.is_prompt_learning:
            raise SourceError(f"{adapter.folder}: {adapter.kind} adds inputs, not weights: PEFT cannot merge it into a model")
        if not any(HEAD_MODULES & set(name.split(".")) for name in _names(adapter)):
            config.task_type = None  # else PEFT looks for a classifier in the file, and the model's own is the one that stands
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter.folder), config=config)
        placed = set(peft.get_peft_model_state_dict(wrapped))
        _check_fits(adapter, _names(adapter), placed, before)
        before_merge = merging.outputs(wrapped.eval())
        apart = merging.untie(wrapped)
        with warnings.catch_warnings():  # PEFT says so of what is apart for the merge alone
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            merged = wrapped.merge_and_unload(safe_merge=True)
    except SourceError:
        raise
    except Exception as error:  # PEFT raises anything from KeyError to NotImplementedError for an adapter that it cannot merge
        reason = _reason(error, adapter)
        raise SourceError(f"PEFT cannot merge {adapter.folder} ({adapter.kind}) into {type(model).__name__}: {reason}") from error
    merging.tie(merged, apart)
    merging.check(f"{adapter.folder} ({adapter.kind})", before_merge, merging.outputs(merged.eval()))
    return merged, {name.removeprefix(SAVED) for name in _names(adapter)} & set(merged.state_dict())


def _reason(error: Exception, adapter: Adapter) -> str:
    """The first line of what torch says of a tensor that does not fit names the class alone, the second the tensor."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "size mismatch" not in str(error):
        return lines[0]
    return (
        f"{' '.join(lines[:2])} SOURCE must be the model that it was trained on (its config says {adapter.base!r}), its table of "
        "words resized as it was then (resize_token_embeddings, save_pretrained)"
    )


def _check_fits(adapter: Adapter, saved: set[str], placed: set[str], before: set[str]) -> None:
    lost = sorted(saved - placed)
    # A head that PEFT copies from the model by itself is there already.
    random = sorted(name for name in placed - saved if name.removeprefix(SAVED) not in before)
    for names, what in ((lost, "have no place in the model"), (random, "that the model needs are not in it")):
        if names:
            raise SourceError(
                f"{adapter.folder}: {counted(len(names), 'tensor')} of the adapter {what}: {', '.join(names[:3])}; choose "
                "the task and the model that it was trained for "
                f"(its config says {adapter.config.get('task_type')!r}, {adapter.base!r})"
            )


def _names(adapter: Adapter) -> set[str]:
    if adapter.weights.name == WEIGHTS:
        return set(safetensors_header(adapter.weights))
    from . import heads

    return set(heads.read_pickle(adapter.weights))


def notes(adapter: Adapter, compared: bool) -> Iterator[str]:
    """What is said of a merged adapter; `compared`: with its unmerged form, on random inputs."""
    yield f"adapter merged: {adapter.kind} of {adapter.folder}, trained on {adapter.base or 'an unnamed model'}"
    if not compared:
        yield "the merged adapter was not compared with its unmerged form: the model takes neither token ids nor recordings alone"
