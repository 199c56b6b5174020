"""JSON files of a checkpoint's folder, held against what bertc reads of them; config.json's type is `data.ModelConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from ..core import SourceError
from ..core import read_json as read_json_file

Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Name = Annotated[str, Meta(max_length=4096)]


class Module(TypedDict):
    """One entry of modules.json."""

    type: Name
    path: NotRequired[Annotated[str, Meta(max_length=255)]]
    idx: NotRequired[int | None]
    name: NotRequired[str | None]


Modules = Annotated[list[Module], Meta(min_length=1)]


class Ports(TypedDict, total=False):
    module_input_name: str | None
    module_output_name: str | None


class Pooling(TypedDict, total=False):
    word_embedding_dimension: Size | None
    embedding_dimension: Size | None
    pooling_mode: str | list[str] | None
    include_prompt: bool | None
    pooling_mode_cls_token: bool | None
    pooling_mode_max_tokens: bool | None
    pooling_mode_mean_tokens: bool | None
    pooling_mode_mean_sqrt_len_tokens: bool | None
    pooling_mode_weightedmean_tokens: bool | None
    pooling_mode_lasttoken: bool | None


class SpladePooling(TypedDict, total=False):
    pooling_strategy: str | None
    activation_function: str | None
    chunk_size: Size | None


class Dense(Ports):
    in_features: Size
    out_features: Size
    bias: NotRequired[bool]
    activation_function: NotRequired[str]
    use_residual: NotRequired[bool | None]


class LayerNorm(TypedDict):
    dimension: Size


# The config.json of a module, by its kind.
MODULE_CONFIGS: dict[str, Any] = {
    "Pooling": Pooling,
    "SpladePooling": SpladePooling,
    "Dense": Dense,
    "LayerNorm": LayerNorm,
    "Normalize": Ports,
}


class AdapterConfig(TypedDict, total=False):
    """adapter_config.json of PEFT."""

    peft_type: str | None
    task_type: str | None
    base_model_name_or_path: str | None
    revision: str | None


class ShardIndex(TypedDict, total=False):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, Name]


class Tensor(TypedDict):
    """One tensor in the header of a safetensors file."""

    dtype: Name
    shape: list[Annotated[int, Meta(ge=0, le=2**48)]]
    data_offsets: tuple[Annotated[int, Meta(ge=0, le=2**62)], Annotated[int, Meta(ge=0, le=2**62)]]


def read_json(path: Path, what: str, kind: Any = dict[str, Any]) -> Any:
    """What a JSON file says, as `kind`; raises SourceError when it is missing, truncated or something else."""
    if not path.is_file():
        found = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise SourceError(f"{path} ({what}) is missing; the folder holds {', '.join(found[:12]) or 'nothing'}")
    return read_json_file(path, kind, advice=f"it is {what}: is the download complete?", error=SourceError)
