"""Encoders that take mel frames, made by a feature extractor of transformers: the input of each, from its config alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from ..core import SourceError, require
from .model_json import Size

FRAMES = "frames"
Config = Mapping[str, Any]


class MelEncoder(TypedDict, total=False):
    num_mel_bins: Size
    max_position_embeddings: Size
    subsampling_factor: Size


class MelConfig(MelEncoder, total=False):
    """The sizes of mel frames in config.json."""

    encoder_config: MelEncoder
    feature_projection_input_dim: Size
    max_length: Size
    max_source_positions: Size


@dataclasses.dataclass(frozen=True)
class MelInput:
    """The float input of a model: its name, its dimensions, whether a mask over frames comes with it, and the most frames."""

    name: str
    dims: tuple[str | int, ...]
    masked: bool = False
    longest: int | None = None


def frames_of_table(config: Config) -> int | None:
    """How many frames the table of a conformer's relative positions has; a clipped distance ("relative_key") and rotations have
    no end. PyTorch makes a longer one when it needs to, a graph has the one that was there."""
    return int(config.get("max_source_positions") or 5000) if config.get("position_embeddings_type") == "relative" else None


def _wav2vec2_bert(config: Config) -> MelInput:
    bins = config.get("feature_projection_input_dim", 160)
    return MelInput("input_features", ("batch", FRAMES, bins), True, frames_of_table(config))


def _parakeet(config: Config) -> MelInput:
    encoder = config.get("encoder_config", config)
    bins, longest = encoder.get("num_mel_bins", 80), encoder.get("max_position_embeddings", 5000)
    return MelInput("input_features", ("batch", FRAMES, bins), True, longest * encoder.get("subsampling_factor", 8))


def _spectrogram_transformer(config: Config) -> MelInput:
    return MelInput("input_values", ("batch", config.get("max_length", 1024), config.get("num_mel_bins", 128)))


def _whisper(config: Config) -> MelInput:
    # Two convolutions, the second of stride 2, before a table of positions that is added whole.
    return MelInput("input_features", ("batch", config.get("num_mel_bins", 80), 2 * config.get("max_source_positions", 1500)))


TAKEN: dict[str, Callable[[Config], MelInput]] = {
    "wav2vec2-bert": _wav2vec2_bert,
    "audio-spectrogram-transformer": _spectrogram_transformer,
    "whisper": _whisper,
    "parakeet_ctc": _parakeet,
    "parakeet_encoder": _parakeet,
}
# Other models of recordings, where no file of a feature extractor says that they are.
OTHERS = frozenset(
    "clap clap_audio_model dac encodec lasr_ctc lasr_encoder mimi moonshine parakeet_ctc parakeet_encoder parakeet_tdt pe_audio "
    "qwen2_audio_encoder seamless_m4t seamless_m4t_v2 speech_to_text speecht5 univnet voxtral_encoder".split()
)


def mel_input(config: Config, architecture: str) -> MelInput | None:
    """What a model takes, where it takes mel frames and bertc knows how. Of Whisper only the encoder of a classifier."""
    kind = str(config.get("model_type"))
    if kind not in TAKEN or (kind == "whisper" and not architecture.endswith("ForAudioClassification")):
        return None
    require(dict(config), MelConfig, where=f"config.json of a {kind} model", error=SourceError)
    return TAKEN[kind](config)


def refusal(config: Config, architecture: str, extractor: Config) -> str:
    """Why a model that takes recordings is not taken; "" for any other model. `extractor`: its feature extractor's settings."""
    kind = str(config.get("model_type"))
    named = extractor.get("feature_extractor_type") if "sampling_rate" in extractor else None
    if kind not in OTHERS and not named:
        return ""
    made = f"what {named} makes of recordings" if named else "recordings in a form of its own"
    return (
        f"{architecture} (model_type {kind!r}) takes {made}; bertc reads raw samples through strided convolutions (conv_kernel "
        f"and conv_stride in config.json), and the mel frames of {', '.join(TAKEN)}: for anything else write a Python factory "
        "(package.module:function)"
    )
