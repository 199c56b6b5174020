"""What a model's folder says of how its texts become ids, read strictly and in this one place.

The files are those of sentence-transformers, old and new. A setting that bertc cannot honour is refused by name, as is one that
sentence-transformers itself does not know; what changes nothing is told in a note.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core import ArtifactError, DataError, did_you_mean, read_json

# In the order in which sentence-transformers looks for the settings of its first module.
MODULE_CONFIGS = tuple(
    f"sentence_{name}_config.json" for name in "bert roberta distilbert camembert albert xlm-roberta xlnet".split()
)
MODEL_CONFIG = "config_sentence_transformers.json"
SENTENCE_FILES = (*MODULE_CONFIGS, MODEL_CONFIG)
PROMPT_MASK = "pooling_mask"  # the input of a graph whose pooling leaves the prompt out

# What the first module takes, by what bertc does with it.
HONOURED = ("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "processing_kwargs")
ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
WITHOUT_EFFECT = ("unpad_inputs",)  # how a batch lies in memory
OF_TASKS = ("query_length", "document_length", "query_expansion")  # of encode_query and encode_document alone
OF_MODEL = ("__version__", "requirements", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
OF_CROSS_ENCODERS = ("activation_fn", "keep_in_fp32_modules")
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# Arguments of loading that change no number of a float32 model.
LOADING = set("trust_remote_code dtype torch_dtype attn_implementation add_pooling_layer use_fast revision device_map".split())
OF_TOKENIZERS = ("model_max_length", "padding_side", "truncation_side")
CALLS = {"padding": (True, "longest"), "truncation": (True, "longest_first"), "return_tensors": ("pt",)}
TASK_OUTPUTS = {
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
    "fill-mask": ("logits", "token_embeddings"),
}


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """`max_length` in tokens, None: the tokenizer's own; `max_length_in` names the file. `model_type` is the class of
    sentence-transformers, "" for none.

    `tokenizer`: what goes over tokenizer_config.json.
    """

    model_type: str = ""
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    similarity_fn_name: str | None = None
    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    max_length_in: str = ""

    def prompt(self, prompt_name: str | None = None, prompt: str | None = None) -> str:
        """What is put before each text: `prompt`, else the prompt of that name, else the default; "" for none.

        Raises DataError for a name that the model does not have, and for both a name and a text.
        """
        if prompt is not None and prompt_name is not None:
            raise DataError(f"prompt_name {prompt_name!r} and a prompt are given; give one of them")
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise DataError(f"the model has no prompt {name!r}{did_you_mean(name, self.prompts)}")
        return self.prompts[name]


def read_settings(files: Mapping[str, Path]) -> TextSettings:
    """The settings in the files of a model, by their names; those of a model that has none of them are all defaults.

    Raises ArtifactError for a damaged file, DataError for a setting that cannot be honoured, with its name and file.
    """
    module, path = _first_module(files)
    model = read_config(files[MODEL_CONFIG]) if MODEL_CONFIG in files else {}
    if path is None and MODEL_CONFIG not in files:
        return TextSettings()
    notes: list[str] = []
    made = _of_model(model, files.get(MODEL_CONFIG), notes)
    if path is not None:
        made = _of_module(made, module, path, notes)
    return dataclasses.replace(made, notes=tuple(notes))


def settings_files(*folders: Path) -> dict[str, Path]:
    """The files of `read_settings` in some folders, by name; the last folder that has one counts."""
    return {name: path for folder in folders for name in SENTENCE_FILES if (path := folder / name).is_file()}


def read_config(path: Path, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """A JSON object of the model's assets, {} where there is no file. Raises ArtifactError for one that is no `kind`."""
    if not path.is_file():
        return {}
    return dict(read_json(path, kind, advice="copy it again from the source model", error=ArtifactError))


# ---- config_sentence_transformers.json -------------------------------------------------------------------------------


def _of_model(config: Mapping[str, Any], path: Path | None, notes: list[str]) -> TextSettings:
    where = f"{path}: "
    kind = _typed(config, "model_type", str, where) or "SentenceTransformer"
    prompts = _prompts(config.get("prompts") or {}, where)
    if kind == "SentenceTransformer":  # which has these two, empty, where nobody wrote them
        prompts = {"query": "", "document": ""} | prompts
    default = _typed(config, "default_prompt_name", str, where)
    if default is not None and default not in prompts:
        raise DataError(f"{where}default_prompt_name {default!r} is none of the prompts{did_you_mean(default, prompts)}")
    similarity = config.get("similarity_fn_name")
    if similarity is not None and similarity not in SIMILARITIES:
        notes.append(f"{MODEL_CONFIG}: similarity_fn_name {similarity!r} is not used: sentence-transformers takes cosine for it")
        similarity = None
    of_kind = OF_CROSS_ENCODERS if kind == "CrossEncoder" else ()
    unknown = [name for name in config if name not in (*OF_MODEL, *of_kind)]
    if unknown:
        notes.append(
            f"{MODEL_CONFIG}: not used: {', '.join(unknown)} (a {kind} of sentence-transformers does not read it either)"
        )
    if kind == "CrossEncoder" and config.get("activation_fn"):
        notes.append(f"the graph gives logits; CrossEncoder.predict applies {config['activation_fn']} to them")
    width = config.get("truncate_dim")
    if width is not None and (type(width) is not int or width < 1):
        raise DataError(f"{where}truncate_dim is {width!r}; it is a number of dimensions, 1 or more")
    return TextSettings(kind, None, False, prompts, default, width, similarity)


def _prompts(found: Any, where: str) -> dict[str, str]:
    texts = isinstance(found, dict) and all(value is None or isinstance(value, str) for value in found.values())
    if not texts:
        raise DataError(f"{where}prompts are names with a text each; got {found!r:.80}")
    return {name: value or "" for name, value in found.items()}


# ---- sentence_bert_config.json ---------------------------------------------------------------------------------------


def _first_module(files: Mapping[str, Path]) -> tuple[dict[str, Any], Path | None]:
    """The first of the files that says something, as sentence-transformers chooses."""
    found = [(read_config(files[name]), files[name]) for name in MODULE_CONFIGS if name in files]
    return next((each for each in found if each[0]), found[0] if found else ({}, None))


def _of_module(made: TextSettings, config: Mapping[str, Any], path: Path, notes: list[str]) -> TextSettings:
    where = f"{path}: "
    known = (*HONOURED, *ARGUMENTS, *WITHOUT_EFFECT, *OF_TASKS, "tokenizer_name_or_path")
    for name in config:
        if name not in known:
            raise DataError(f"{where}unknown setting {name!r}{did_you_mean(name, known)}; sentence-transformers refuses it too")
    if config.get("tokenizer_name_or_path") is not None:
        raise DataError(
            f"{where}tokenizer_name_or_path {config['tokenizer_name_or_path']!r} names a tokenizer elsewhere; save that "
            "tokenizer into the folder, and remove the setting"
        )
    if config.get("query_expansion"):
        raise DataError(f"{where}query_expansion is not supported: bertc adds no mask tokens to queries")
    lengths = [name for name in OF_TASKS if config.get(name)]
    if lengths:
        notes.append(
            f"{path.name}: not used: {', '.join(lengths)} (of encode_query and encode_document; texts are as for encode)"
        )
    _check_task(config, where)
    _check_arguments(config, where)
    tokenizer = dict(_of_tokenizer(config, where))
    limits = [config.get("max_seq_length"), tokenizer.get("model_max_length"), *_call_lengths(config, where)]
    for limit in limits:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise DataError(f"{where}a longest text of {limit!r} tokens; it is 1 or more")
    # The arguments of the tokenizer go over max_seq_length, those of its call over both.
    length = next((limit for limit in reversed(limits) if limit is not None), None)
    lower = bool(_typed(config, "do_lower_case", bool, where))
    return dataclasses.replace(made, max_length=length, max_length_in=path.name, lower_case=lower, tokenizer=tokenizer)


def _check_task(config: Mapping[str, Any], where: str) -> None:
    task = config.get("transformer_task", "feature-extraction")
    if task not in TASK_OUTPUTS:
        raise DataError(f"{where}transformer_task {task!r} is not supported{did_you_mean(str(task), TASK_OUTPUTS)}")
    method_output, module_output = TASK_OUTPUTS[task]
    modalities = config.get("modality_config")
    if modalities is None:
        return
    text = modalities.get("text") if isinstance(modalities, dict) else None
    if "message" in (modalities or {}) or not isinstance(text, dict):
        raise DataError(
            f"{where}modality_config: bertc encodes plain text; this model takes {', '.join(modalities) or 'nothing'}"
        )
    asked = {"method": text.get("method"), "method_output_name": text.get("method_output_name")}
    wanted: dict[str, Any] = {"method": "forward", "method_output_name": method_output}
    asked["module_output_name"], wanted["module_output_name"] = config.get("module_output_name"), module_output
    for name, value in asked.items():
        if value != wanted[name]:
            raise DataError(f"{where}{name} {value!r} is not supported for {task}, only {wanted[name]!r}")


def _check_arguments(config: Mapping[str, Any], where: str) -> None:
    """Arguments of loading the model and its config: those that change no number."""
    for name in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
        given = _mapping(config, name, where)
        kernel = given.get("attn_implementation")
        if "/" in str(kernel):
            raise DataError(
                f"{where}{name}: attn_implementation {kernel!r:.100} is code on the hub, which would be run; remove it"
            )
        unknown = sorted(set(given) - LOADING)
        if unknown:
            raise DataError(f"{where}{name}: {', '.join(unknown)} is not supported; write it into config.json")


def _of_tokenizer(config: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    for name in ("tokenizer_args", "processor_kwargs"):
        for key, value in _mapping(config, name, where).items():
            if key in OF_TOKENIZERS:
                yield key, value
            elif key not in LOADING:
                raise DataError(f"{where}{name}: {key!r} is not supported; write it into tokenizer_config.json")


def _call_lengths(config: Mapping[str, Any], where: str) -> Iterator[int | None]:
    """The lengths that `processing_kwargs` set for texts. Raises DataError for what they set otherwise."""
    calls = _mapping(config, "processing_kwargs", where)
    unknown = [name for name, value in calls.items() if name not in ("text", "common", "audio", "image", "video") and value]
    if unknown:
        raise DataError(f"{where}processing_kwargs.{unknown[0]} is not supported; bertc encodes plain text")
    for part in ("text", "common"):
        for key, value in _mapping(calls, part, where).items():
            if key == "max_length":
                yield value
            elif not any(value is known or (isinstance(known, str) and value == known) for known in CALLS.get(key, ())):
                raise DataError(f"{where}processing_kwargs.{part}.{key} = {value!r} is not supported")


def _mapping(config: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    return _typed(config, name, dict, where) or {}


def _typed(config: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    value = config.get(name)
    if value is not None and not isinstance(value, kind):
        raise DataError(f"{where}{name} is {value!r:.80}, not of type {kind.__name__}")
    return value
