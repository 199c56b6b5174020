"""What of a source is used, and what is not: every tensor of the weights and every file of the folder is one or the other.

A tensor that the asked task has no place for is refused where it would change the result, and noted where it belongs to
something the task does not have (the head of a pre-training). A file that was not read is noted.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..core import SourceError, counted

# The module computes these by itself; older versions of transformers saved them beside the weights.
COMPUTED = ("position_ids", "token_type_ids", "inv_freq", "masked_bias", "num_batches_tracked")
TRAINING_ONLY = ("masked_spec_embed",)
# A head of its own inside the module of another head: next-sentence prediction beside the masked language model.
OTHER_HEADS = ("seq_relationship", "pooler")
DOCUMENTS = (
    *("readme*", "license*", "notice*", "use_policy*", "*.md", "*.rst", "*.html", "*.pdf", "*.png", "*.jpg", "*.jpeg", "*.gif"),
    *("*.svg", "*.csv", "*.tsv", "*.log", "*.yaml", "*.yml", ".*", "training_args.*", "trainer_state.json", "optimizer.*"),
    *("scheduler.*", "rng_state*", "scaler.pt", "*results.json", "generation_config.json", "runs", "logs", "eval", "events.out*"),
    *("similarity_*", "__pycache__", "train_script.py", "data_config.json", "artifact.metadata"),
)
OTHER_FORMS = (
    *("pytorch_model*", "model*.safetensors*", "tf_model*", "flax_model*", "rust_model*", "*.h5", "*.msgpack", "*.ot", "*.onnx*"),
    *("*.gguf", "*.tflite", "*.mlmodel", "*.mlpackage", "onnx", "openvino", "openvino_model*", "coreml", "gguf", "consolidated*"),
    "mlx*",
)
MANY = 6


@dataclasses.dataclass(frozen=True)
class Structure:
    """The class of a loaded model, the names of its modules and of its encoder's, and the prefix of the encoder's names."""

    name: str
    prefix: str
    modules: frozenset[str]
    base_modules: frozenset[str]

    def is_inside(self, tensor: str) -> bool:
        """Whether a tensor without a place belongs to something that the model computes with."""
        below = bool(self.prefix) and tensor.startswith(f"{self.prefix}.")
        parts = (tensor.removeprefix(f"{self.prefix}.") if below else tensor).split(".")
        if any(part in OTHER_HEADS for part in parts):
            return f"{'.'.join(parts[:-1])}" in self.base_modules | self.modules
        return below or parts[0] in self.base_modules or parts[0] in self.modules


def check_tensors(where: str, unexpected: Iterable[str], hidden: Iterable[str], model: Structure, task: str) -> list[str]:
    """Notes on tensors of a checkpoint that its model has no place for. `hidden` are those that the class lists as not needed.

    Raises SourceError naming those that would change the result.
    """
    left, hidden = sorted(unexpected), sorted(hidden)
    computed = [name for name in (*left, *hidden) if name.rpartition(".")[2] in COMPUTED]
    training = [name for name in left if name.endswith(TRAINING_ONLY)]
    left = [name for name in left if name not in computed and name not in training]
    inside = [name for name in left if model.is_inside(name)]
    if inside:
        has = "has" if len(inside) == 1 else "have"
        raise SourceError(
            f"{where}: {_tensors(len(inside))} in the weights {has} no place in {model.name}, the class that transformers builds "
            f"from config.json: {some(inside)}. Without them the result is another one. Set the config as the model was trained, "
            "load it with the transformers version that it was saved with and write a Python factory "
            "(package.module:function), or remove these tensors from the weights if they are not needed"
        )
    reasons = [
        (left, f"outside task {task!r}"),
        (training, "used in training only"),
        (computed, "computed again by the module"),
        ([name for name in hidden if name not in computed], f"{model.name} lists them as not needed"),
    ]
    return [f"not used: {some(groups(names))}: {why}" for names, why in reasons if names]


def check_twice(where: str, places: Mapping[str, Sequence[str]]) -> None:
    """Raises SourceError where several tensors of a checkpoint are one weight of the model: which one stands, nobody says."""
    twice = [names for names in places.values() if len(names) > 1]
    if twice:
        raise SourceError(
            f"{where}: the files hold {counted(len(twice), 'weight')} of the model more than once: "
            f"{some([' and '.join(dict.fromkeys(names)) for names in twice])}. Nothing says which one the model has; keep one of "
            "each (load the model with its library, look at it, and save it with save_pretrained into an empty folder)"
        )


def groups(names: Sequence[str]) -> list[str]:
    """Tensors by their first module, as in `cls.predictions.* (7 tensors)`."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition(".")[0], []).append(name)
    made = []
    for members in found.values():
        common = common_modules(members)
        made.append(f"{'.'.join(common)}.* ({_tensors(len(members))})" if common and len(members) > 1 else some(members))
    return made


def common_modules(names: Sequence[str]) -> list[str]:
    """The modules that all dotted names begin with."""
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


# ---- files -----------------------------------------------------------------------------------------------------------


def file_notes(root: Path, used: Collection[Path]) -> list[str]:
    """Notes on files of a folder that were not read: documents and training state are counted, the rest is named."""
    unread = sorted(_unread(root.absolute(), frozenset(file.absolute() for file in used)))
    documents = [name for name in unread if _is(name, DOCUMENTS)]
    forms = [name for name in unread if name not in documents and _is(name, OTHER_FORMS)]
    adapters = [name for name in unread if (root / name / "adapter_config.json").is_file()]
    rest = [name for name in unread if name not in {*documents, *forms, *adapters}]
    notes = [f"files not read: {some(rest)}; nothing of them is in the graph"] if rest else []
    notes += [f"adapter not used: {name}; --adapter {root / name.rstrip('/')} merges it" for name in adapters]
    notes += [f"other forms of the weights, not read and not compared: {some(forms)}"] if forms else []
    return notes + ([f"{len(documents)} documents and files of a training not read"] if documents else [])


def _is(name: str, patterns: Sequence[str]) -> bool:
    last = name.rstrip("/").rpartition("/")[2].lower()
    return any(fnmatch.fnmatchcase(last, pattern) for pattern in patterns)


def _unread(folder: Path, used: frozenset[Path], above: str = "") -> Iterator[str]:
    """A folder of which nothing is used is one entry."""
    for entry in folder.iterdir():
        if not entry.is_dir():
            if entry not in used:
                yield above + entry.name
        elif any(entry in file.parents for file in used):
            yield from _unread(entry, used, f"{above}{entry.name}/")
        elif any(path.is_file() for path in entry.rglob("*")):
            yield f"{above}{entry.name}/"
