"""A model of transformers from a checkpoint, with every tensor of its weights accounted for.

Weights saved from a wrapper (DataParallel, torch.compile, FSDP) are read without its prefix, an adapter is merged, and what the
model has no place for is refused or noted (inventory.py).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import SourceError, counted, scratch
from . import adapter as adapters
from . import inventory
from .chain import EMBEDDINGS, read_chain
from .checkpoint import ENCODER_CLASSES, Checkpoint
from .modules import merging
from .weight_files import safetensors_header

AUTO_CLASSES = {
    "features": "AutoModel",
    "sentence-embedding": "AutoModel",
    "token-embedding": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "masked-lm": "AutoModelForMaskedLM",
    "audio-features": "AutoModel",
    "audio-classification": "AutoModelForAudioClassification",
    "audio-frame-classification": "AutoModelForAudioFrameClassification",
    "ctc": "AutoModelForCTC",
}
WRAPPER = r"(?:(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+"
NESTED = 4
OLD_NAMES = {
    r"\bgamma$": "weight",
    r"\bbeta$": "bias",
    r"\bweight_g$": "parametrizations.weight.original0",
    r"\bweight_v$": "parametrizations.weight.original1",
}


def load_model(checkpoint: Checkpoint, task: str, trust_remote_code: bool) -> tuple[Any, set[str], list[str]]:
    """The model of a task in evaluation mode, its weights that nothing gave a value (all poolers or training-only), and notes.

    Raises SourceError for weights that are missing, of another shape, or that the model has no place for.
    """
    saved = tensor_names(checkpoint)
    model, info, notes = _from_pretrained(checkpoint, task, trust_remote_code)
    if _absent(info["missing_keys"], task) and (unwrapped := _without_wrapper(checkpoint, task, trust_remote_code, saved)):
        model, info, notes = unwrapped
    missing, structure, hidden = set(info["missing_keys"]), _structure(model), _hidden(model, saved)
    known, prefix = set(model.state_dict()), f"{model.base_model_prefix}."
    brought: set[str] = set()
    if checkpoint.adapter:
        model, brought = adapters.merge(model, checkpoint.adapter)
        notes += adapters.notes(checkpoint.adapter, compared=merging.random_feed(model) is not None)
    missing -= brought
    _check_shapes(checkpoint, info, brought)
    if absent := _absent(missing, task):
        raise SourceError(
            f"{checkpoint.folder} ({checkpoint.architecture}) lacks {counted(len(missing), 'weight')} that task {task!r} needs: "
            f"{', '.join(sorted(missing)[:3])}; they would be random{_elsewhere(absent, saved)}. "
            + (_layers(absent, saved) or "Choose the task the model was trained for with --task")
        )
    unexpected = set(info["unexpected_keys"]) - brought
    inventory.check_twice(str(checkpoint.folder), _places(saved, known, prefix, set(info["unexpected_keys"])))
    notes += inventory.check_tensors(str(checkpoint.folder), unexpected, hidden, structure, task)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.eval(), missing, notes


def is_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _absent(missing: set[str], task: str) -> list[str]:
    pooler = () if task in ("features", *EMBEDDINGS) else tuple(name for name in missing if is_pooler(name))
    return sorted({n for n in missing if not is_pooler(n) and not n.endswith(inventory.TRAINING_ONLY)} | set(pooler))


def _elsewhere(absent: list[str], saved: list[str]) -> str:
    """Where the weights that are missing are, under other names."""
    found = {name: other for name in absent for other in saved if other.endswith(f".{name}")}
    if not found:
        return ""
    name, other = next(iter(found.items()))
    count = f"all {len(absent)}" if len(found) == len(absent) else f"{len(found)} of {len(absent)}"
    return f" ({count} are there under other names, {name} as {other}: save the state_dict of the model inside its wrapper)"


def _layers(absent: list[str], saved: list[str]) -> str:
    """What to do where all that is missing is of layers behind those that the weights have."""
    numbers = [re.match(r"(.*?\.)(\d+)\.", name) for name in absent]
    stems = {found[1] for found in numbers if found}
    if len(stems) != 1 or not all(numbers):
        return ""
    stem, first = stems.pop(), min(int(found[2]) for found in numbers if found)
    there = {int(found[1]) for name in saved if (found := re.search(rf"(?:^|\.){re.escape(stem)}(\d+)\.", name))}
    if not there or there != set(range(first)):
        return ""
    last = max(int(found[2]) for found in numbers if found)
    return f"The weights have {first} of {last + 1} layers ({stem}0 to {first - 1}): correct config.json's number of layers"


# ---- transformers ----------------------------------------------------------------------------------------------------


Loaded = tuple[Any, dict[str, Any], list[str]]


def _from_pretrained(checkpoint: Checkpoint, task: str, trust_remote_code: bool, **more: Any) -> Loaded:
    import transformers

    name = _class_name(checkpoint, task)
    arguments: dict[str, Any] = {
        "local_files_only": True,
        "dtype": "float32",
        "output_loading_info": True,
        "use_safetensors": not checkpoint.pickled,
        # Else transformers raises and names no weight; they are refused below, by name.
        "ignore_mismatched_sizes": True,
        # Said also where it is False: else transformers asks on the terminal, and a "y" in a pipe runs the code.
        "trust_remote_code": trust_remote_code,
        **more,
    }
    if (labels := adapters.label_count(checkpoint.adapter)) and labels != len(checkpoint.config.get("id2label") or (0, 1)):
        arguments["num_labels"] = labels
    from .bounded import built_within

    build = getattr(transformers, name).from_pretrained
    notes: list[str] = []
    try:
        with _plain_folder(checkpoint.folder) as folder, built_within(checkpoint.weights, checkpoint.folder / "config.json"):
            try:
                model, info = build(str(folder), **_attention("eager"), **arguments)
            except ValueError as error:
                if "attn" not in str(error) and "eager" not in str(error):
                    raise
                model, info = build(str(folder), **_attention(None), **arguments)
                notes.append(
                    f"{type(model).__name__} has no eager attention; exported with {model.config._attn_implementation!r}"
                )
    except SourceError:
        raise
    except Exception as error:  # transformers raises anything from KeyError to ImportError for a model it cannot build
        raise SourceError(
            f"transformers cannot load {checkpoint.folder} as {name} by its config.json: {root_cause(error)}"
        ) from error
    return model, info, notes


def _attention(name: str | None) -> dict[str, Any]:
    """Which attention to build; None is transformers' own choice. Never the config's: that may be code on the hub, even by the
    name of flash_attention_2. A `_attn_implementation` in config.json wins over the public argument, so both are given."""
    return {"attn_implementation": name, "_attn_implementation": name}


def _class_name(checkpoint: Checkpoint, task: str) -> str:
    if task in EMBEDDINGS and read_chain(checkpoint, task).states == "logits":
        return AUTO_CLASSES["masked-lm"]
    return ENCODER_CLASSES.get(str(checkpoint.config.get("model_type")), AUTO_CLASSES[task])


@contextlib.contextmanager
def _plain_folder(folder: Path) -> Iterator[Path]:
    """The folder, without its adapter: transformers puts one that it sees into the model, unmerged, where peft is installed."""
    if not (folder / adapters.CONFIG).is_file():
        yield folder
        return
    with scratch() as made:
        for file in folder.iterdir():
            if file.is_file() and not file.name.startswith("adapter_"):
                (made / file.name).symlink_to(file.resolve())
        yield made


def _without_wrapper(checkpoint: Checkpoint, task: str, trust_remote_code: bool, saved: list[str]) -> Loaded | None:
    """The model from weights whose names begin with a prefix that is not the model's, where all of them then fit."""
    common = inventory.common_modules(saved)
    prefixes = [".".join(common[: end + 1]) + "." for end in range(len(common))]
    wrapped = [found[0] for name in saved if (found := re.search(WRAPPER, name))]
    tries = [(WRAPPER, f"without {wrapped[0]!r}, the name of a wrapper (DataParallel, torch.compile, FSDP)")] if wrapped else []
    tries += [("^" + re.escape(prefix), f"without the prefix {prefix!r} that all of them have") for prefix in prefixes]
    for pattern, how in tries:
        # transformers replaces once for each pattern; a wrapped layer of a wrapped model has the name more often.
        mapping = {pattern + "(?:)" * times: "" for times in range(NESTED if pattern == WRAPPER else 1)}
        model, info, notes = _from_pretrained(checkpoint, task, trust_remote_code, key_mapping=mapping)
        if not _absent(set(info["missing_keys"]), task) and not info["mismatched_keys"]:
            return model, info, [*notes, f"{counted(len(saved), 'weight')} read {how}"]
    return None


def _check_shapes(checkpoint: Checkpoint, info: dict[str, Any], brought: set[str]) -> None:
    wrong = [
        f"{name} is {list(found)}, the config says {list(wanted)}"
        for name, found, wanted in info["mismatched_keys"]
        if name not in brought
    ]
    wrong = [*sorted(wrong), *map(str, info["error_msgs"])]
    if wrong:
        where = checkpoint.folder / "config.json"
        raise SourceError(f"{where} does not fit {counted(len(wrong), 'weight')} beside it: {'; '.join(wrong[:3])}")


# ---- tensors ---------------------------------------------------------------------------------------------------------


def tensor_names(checkpoint: Checkpoint) -> list[str]:
    """The names of all tensors in the files of a checkpoint."""
    if not checkpoint.pickled:
        return sorted(name for file in checkpoint.weights for name in safetensors_header(file))
    from . import heads

    names = []
    for file in checkpoint.weights:
        found = heads.read_pickle(file)
        other = [str(name) for name, value in found.items() if not hasattr(value, "shape")]
        if other:
            inner = " or ".join(repr(name) for name in other if isinstance(found[name], Mapping)) or "the state_dict"
            raise SourceError(
                f"{file} holds {', '.join(map(repr, other[:4]))}, not tensors by name: it is the state of a training; "
                f"save what it has as {inner} under this name (torch.save)"
            )
        names += [str(name) for name in found]
    return sorted(names)


def _structure(model: Any) -> inventory.Structure:
    base = getattr(model, model.base_model_prefix, model) if model.base_model_prefix else model
    names = [frozenset(name for name, _ in module.named_modules() if name) for module in (model, base)]
    return inventory.Structure(type(model).__name__, str(model.base_model_prefix or ""), *names)


def _hidden(model: Any, saved: list[str]) -> list[str]:
    """Tensors of the files that transformers leaves out without a word, because the class lists them."""
    patterns = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), r"(^|\.)position_ids$", "inv_freq$"]
    known = set(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    names = [name for name in saved if any(re.search(pattern, name) for pattern in patterns)]
    return [name for name in names if not {name, prefix + name, name.removeprefix(prefix)} & known]


def _places(saved: list[str], known: set[str], prefix: str, unexpected: set[str]) -> dict[str, list[str]]:
    """{weight of the model: the tensors of the files that transformers reads as it}."""
    found: dict[str, list[str]] = {}
    for name in saved:
        plain = re.sub(WRAPPER, "", name)
        spelt = [re.sub(old, new, plain) for old, new in OLD_NAMES.items()]
        for each in (name, plain, *spelt):
            place = next((p for p in (each, prefix + each, each.removeprefix(prefix)) if p in known), None)
            if place and name not in unexpected:
                found.setdefault(place, []).append(name)
                break
    return found


def root_cause(error: BaseException) -> str:
    """One line for an exception: the first meaningful line of its root cause."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return f"{type(root).__name__}: {lines[0]}" if lines else type(root).__name__
