"""The tokenizer before an engine, and the ensembles that join them: TEXT, or TEXT and TEXT_PAIR, to the engine's outputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ...artifact import Artifact
from ...core import BertcError
from ...data import PROMPT_MASK, Encoder

PAIR_TASKS = ("sequence-classification", "question-answering")


@dataclasses.dataclass(frozen=True)
class Front:
    """The tokenizer of a model, with all settings of its folder in one tokenizer.json, or why there is none."""

    encoder: Encoder | None
    why: str = ""


def front_of(found: Artifact) -> Front:
    """The tokenizer of an artifact, cut at what its profiles take."""
    if found.tokenizer is None:
        return Front(None, "the artifact has no tokenizer: arrays alone")
    names = [spec.name for spec in found.inputs]
    if PROMPT_MASK in names:
        return Front(
            None, f"its pooling leaves the prompt out ({PROMPT_MASK}), which a tokenizer alone cannot tell: arrays alone"
        )
    tops = [profile["length"].max for profile in found.profiles if "length" in profile]
    try:
        encoder = Encoder.from_directory(found.tokenizer, max(tops, default=None), names, found.index_bounds.get("input_ids"))
    except BertcError as error:
        return Front(None, str(error))
    return Front(encoder)


def save_tokenizer(encoder: Encoder, path: Path) -> None:
    """tokenizer.json with truncation, padding and lower case in it: whoever reads it needs the package tokenizers alone."""
    tokenizer = encoder.tokenizer
    if encoder.max_length is not None:
        tokenizer.enable_truncation(encoder.max_length, strategy="longest_first", direction=encoder.truncation_side)
    else:
        tokenizer.no_truncation()
    token = tokenizer.id_to_token(encoder.pad_id) or "[PAD]"
    kind = encoder.pad_type
    tokenizer.enable_padding(direction=encoder.padding_side, pad_id=encoder.pad_id, pad_type_id=kind, pad_token=token)
    tokenizer.save(str(path))
    tokenizer.no_padding()


def tokenizer_config(name: str, encoder: Encoder, engine: Any) -> Any:
    """The Python model of the tokenizer; its outputs are the inputs of the engine."""
    from tritonclient.grpc import model_config_pb2 as schema

    made = schema.ModelConfig(name=name, backend="python", max_batch_size=engine.max_batch_size)
    made.input.add(name="TEXT", data_type="TYPE_STRING", dims=[1])
    made.input.add(name="TEXT_PAIR", data_type="TYPE_STRING", dims=[1], optional=True)
    for each in engine.input:
        made.output.add(name=each.name, data_type=each.data_type, dims=each.dims)
    made.instance_group.add(count=1, kind="KIND_CPU")
    made.parameters["prompt"].string_value = encoder.settings.prompt()
    made.parameters["typed"].string_value = "yes" if encoder.typed else "no"
    made.response_cache.enable = False
    return made


def ensemble_config(name: str, tokenizer: str, engine: Any, pairs: bool) -> Any:
    """Texts, or pairs of texts, to the outputs of the engine."""
    from tritonclient.grpc import model_config_pb2 as schema

    made = schema.ModelConfig(name=name, platform="ensemble", max_batch_size=engine.max_batch_size)
    texts = ["TEXT", "TEXT_PAIR"] if pairs else ["TEXT"]
    for each in texts:
        made.input.add(name=each, data_type="TYPE_STRING", dims=[1])
    for each in engine.output:
        made.output.add(name=each.name, data_type=each.data_type, dims=each.dims)
    first = made.ensemble_scheduling.step.add(model_name=tokenizer, model_version=-1)
    for each in texts:
        first.input_map[each] = each
    second = made.ensemble_scheduling.step.add(model_name=engine.name, model_version=-1)
    for each in engine.input:
        first.output_map[each.name] = f"tokens_{each.name}"
        second.input_map[each.name] = f"tokens_{each.name}"
    for each in engine.output:
        second.output_map[each.name] = each.name
    return made
