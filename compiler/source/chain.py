"""The modules of a sentence-transformers directory behind its encoder, in the order of modules.json and ready for the graph.

As in sentence-transformers a module reads and writes one named value: token_embeddings, and sentence_embedding once the tokens
are pooled. A chain that pools gives one vector a text, a chain that does not (ColBERT) one a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..core import SourceError, did_you_mean
from .checkpoint import POOLING_KEYS, Checkpoint, ModuleSpec
from .model_json import read_json

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
PORTS = ("module_input_name", "module_output_name")
# Every key that a module's config can have: one that is not here may change the result.
KEYS: dict[str, tuple[str, ...]] = {
    "Pooling": ("word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *POOLING_KEYS),
    "SpladePooling": ("word_embedding_dimension", "embedding_dimension", "pooling_strategy", "activation_function", "chunk_size"),
    "Dense": ("in_features", "out_features", "bias", "activation_function", "use_residual", *PORTS),
    "LayerNorm": ("dimension",),
    "Normalize": PORTS,
    "Dropout": ("dropout",),
    "MultiVectorMask": ("skiplist_words", "skiplist_tasks", "keep_only_token_ids"),
}
POOLINGS = ("Pooling", "SpladePooling")
SPLADE = {"pooling_strategy": ("max", "sum"), "activation_function": ("relu", "log1p_relu")}
# What the encoder hands on, by the task that sentence-transformers loads it with.
STATES = {"feature-extraction": "last_hidden_state", "fill-mask": "logits"}
EMBEDDINGS = ("sentence-embedding", "token-embedding")
SETTINGS = "sentence_bert_config.json"


@dataclasses.dataclass(frozen=True)
class Chain:
    """`tokens` work on each token, `pooling` makes one vector of them (or there is none), `after` works on that.

    `states` is the encoder's output that enters: its hidden states, or the logits of its masked language model.
    """

    states: str
    tokens: tuple[ModuleSpec, ...]
    pooling: ModuleSpec | None
    after: tuple[ModuleSpec, ...]
    notes: tuple[str, ...] = ()


def task_of_chain(checkpoint: Checkpoint) -> str | None:
    """The task that modules.json asks for, None where nothing stands behind the encoder."""
    kinds = [spec.kind for spec in checkpoint.chain if spec.kind != "Dropout"]
    if not kinds:
        return None
    return "sentence-embedding" if any("Pooling" in kind for kind in kinds) else "token-embedding"


def read_chain(checkpoint: Checkpoint, task: str) -> Chain:
    """The chain of a task, checked. Raises SourceError naming a module, a key or an order that bertc cannot put into a graph."""
    specs = [spec for spec in checkpoint.chain if spec.kind != "Dropout"]
    found = task_of_chain(checkpoint)
    if found is None:
        raise SourceError(
            f"{checkpoint.root} has no sentence-transformers pooling (modules.json), which task {task} needs; use --task features"
        )
    _check_modules(checkpoint)
    if found != task:
        names = " -> ".join(spec.kind for spec in checkpoint.chain)
        raise SourceError(f"{checkpoint.root}: modules.json is Transformer -> {names}, which is task {found}, not {task}")
    states = _states(checkpoint)
    masks = [spec for spec in specs if spec.kind == "MultiVectorMask"]
    at = next((i for i, spec in enumerate(specs) if spec.kind in POOLINGS), len(specs))
    tokens, pooling, after = specs[:at], specs[at : at + 1], specs[at + 1 :]
    for spec in (*tokens, *after):
        _check_ports(checkpoint, spec, TOKENS if spec in tokens else SENTENCE, pools=bool(pooling))
    notes = [f"{spec.kind} is not in the graph: which tokens count in a score is left to the search" for spec in masks]
    if not pooling and (_model_type(checkpoint) == "ColBERT" or any(spec.package == "pylate" for spec in specs)):
        notes.append("PyLate scores tokens of unit length: the graph ends in Normalize, as sentence-transformers loads it")
        tokens.append(ModuleSpec("Normalize", checkpoint.root, {}))
    kept = tuple(spec for spec in tokens if spec not in masks)
    return Chain(states, kept, pooling[0] if pooling else None, tuple(after), tuple(notes))


def _check_modules(checkpoint: Checkpoint) -> None:
    for spec in checkpoint.chain:
        if spec.kind not in KEYS:
            where = checkpoint.root / "modules.json"
            raise SourceError(f"{where}: unsupported module {spec.kind!r}{did_you_mean(spec.kind, KEYS)}")
        unknown = [key for key, value in spec.config.items() if key not in KEYS[spec.kind] and value not in (None, False)]
        if unknown:
            raise SourceError(
                f"{spec.folder / 'config.json'} has {', '.join(map(repr, unknown))}, which bertc does not know for {spec.kind}; "
                f"the result may depend on it; known: {', '.join(KEYS[spec.kind])}"
            )
    pooling = [spec for spec in checkpoint.chain if spec.kind in POOLINGS]
    if len(pooling) > 1:
        raise SourceError(f"{checkpoint.root}: modules.json has {len(pooling)} poolings; bertc takes one")
    for spec in pooling:
        if spec.kind == "Pooling":
            spec.pooling_modes()
        for key, known in SPLADE.items() if spec.kind == "SpladePooling" else ():
            value = spec.config.get(key) or known[0]
            if value not in known:
                raise SourceError(f"{spec.folder}: {key} {value!r} of SpladePooling{did_you_mean(str(value), known)}")


def _check_ports(checkpoint: Checkpoint, spec: ModuleSpec, wanted: str, pools: bool) -> None:
    if spec.kind == "MultiVectorMask":
        if pools:
            raise SourceError(f"{checkpoint.root}: MultiVectorMask before a pooling is not supported: it changes the mask")
        return
    tokens = spec.package == "pylate" or _model_type(checkpoint) in ("ColBERT", "MultiVectorEncoder")
    default = TOKENS if spec.kind == "Dense" and tokens and not pools else SENTENCE
    reads = str(spec.config.get(PORTS[0]) or default)
    writes = str(spec.config.get(PORTS[1]) or reads)
    if {reads, writes} == {wanted}:
        return
    if reads == SENTENCE and wanted == TOKENS:
        config = spec.folder / "config.json"
        told = f', or write {{"{PORTS[0]}": "{TOKENS}"}} into {config}' if PORTS[0] in KEYS[spec.kind] else ""
        raise SourceError(
            f"{checkpoint.root}: {spec.kind} in modules.json reads {SENTENCE}, which no module before it gives; put a Pooling "
            f"before it{told}"
        )
    ports = sorted({reads, writes} - {wanted})
    raise SourceError(f"{spec.folder}: {spec.kind} on {ports} is not supported, only on {wanted}")


def _states(checkpoint: Checkpoint) -> str:
    """Which output of the encoder enters the chain, from the settings of its Transformer."""
    path = checkpoint.place / SETTINGS
    settings = read_json(path, "the sentence-transformers settings") if path.is_file() else {}
    default = "fill-mask" if checkpoint.encoder_kind == "MLMTransformer" else "feature-extraction"
    task = str(settings.get("transformer_task") or default)
    if task not in STATES:
        raise SourceError(f"{path}: transformer_task {task!r} is not supported behind modules; known: {', '.join(STATES)}")
    text: Mapping[str, Any] = (settings.get("modality_config") or {}).get("text") or {}
    asked = {
        "method": (text.get("method"), "forward"),
        "method_output_name": (text.get("method_output_name"), STATES[task]),
        "module_output_name": (settings.get("module_output_name"), TOKENS),
    }
    for key, (value, wanted) in asked.items():
        if value not in (None, wanted):
            raise SourceError(f"{path}: {key} {value!r} is not supported, only {wanted!r} for {task}")
    return STATES[task]


def _model_type(checkpoint: Checkpoint) -> str:
    """The class that saved a directory, as far as it says so."""
    path = checkpoint.root / "config_sentence_transformers.json"
    return str(read_json(path, "the sentence-transformers config").get("model_type")) if path.is_file() else ""
