"""What the files beside a model's weights must be: the keys of Hugging Face's files that bertc itself reads, with their types.

Keys that are not here are let through, there are hundreds of them: what transformers makes of them is its own, and what it
raises is told with the file's name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Token = str | dict[str, Any] | None  # a text, or an AddedToken with its `content`
Tokens = list[Any] | dict[str, Any] | None


class ModelConfig(TypedDict, total=False):
    """config.json. `conv_kernel` is a number in models that are none of recordings."""

    architectures: list[str] | None
    model_type: str | None
    auto_map: dict[str, Any] | list[Any] | str | None
    quantization_config: dict[str, Any] | None
    is_encoder_decoder: bool | None
    id2label: dict[str, str | int | float] | None
    pad_token_id: int | list[int] | None
    problem_type: str | None
    vocab_size: int | None
    conv_kernel: list[Size] | int | None
    conv_stride: list[Size] | int | None
    feat_extract_norm: str | None
    squeeze_factor: Size | None
    max_source_positions: Size | None
    position_embeddings_type: str | None


class TokenizerConfig(TypedDict, total=False):
    """tokenizer_config.json and special_tokens_map.json. Of `model_max_length` 1e30 is no limit."""

    model_max_length: int | float | None
    model_input_names: list[str] | None
    pad_token_type_id: Count | None
    padding_side: str
    truncation_side: str
    word_delimiter_token: Token
    bos_token: Token
    eos_token: Token
    unk_token: Token
    sep_token: Token
    pad_token: Token
    cls_token: Token
    mask_token: Token
    additional_special_tokens: Tokens
    extra_special_tokens: Tokens


class Extractor(TypedDict, total=False):
    """A feature extractor of recordings: preprocessor_config.json, or a part of processor_config.json."""

    feature_extractor_type: str | None
    feature_size: Size
    sampling_rate: Annotated[int, Meta(ge=1, le=10**7)]  # Hz
    padding_value: float
    padding_side: Literal["left", "right"]
    do_normalize: bool | None
    return_attention_mask: bool | None
