"""A Hugging Face directory, checked without torch: config, weights on disk, the sentence-transformers chain, the task.

Everything a user can get wrong about a directory is found here, before a second is spent on importing torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..core import SourceError, check_link, did_you_mean, hash_file
from ..data import AUDIO_FILES, ModelConfig, audio_settings, settings_files
from . import config_check
from .mel import MelInput, frames_of_table, mel_input, refusal
from .model_json import MODULE_CONFIGS, Modules, read_json
from .types import Adapter
from .weight_files import dtype_notes, find_weights

ENCODER_KINDS = ("Transformer", "MLMTransformer")
CONFIGURED = ("Pooling", "SpladePooling", "Dense", "LayerNorm")  # modules that have no meaning without a config
KNOWN_PACKAGES = ("sentence_transformers", "pylate")
# In the order in which sentence_transformers concatenates them.
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
TASK_OF_SUFFIX = {
    "ForAudioFrameClassification": "audio-frame-classification",
    "ForAudioClassification": "audio-classification",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "features",
    "ForCTC": "ctc",
    "Model": "features",
    "Encoder": "features",
}
AUDIO_TASKS = {"features": "audio-features", "sequence-classification": "audio-classification"}
# transformers has no AutoModel that gives the encoder alone of these.
ENCODER_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
MOST_SAMPLES = 2**20  # of a frame, a minute at 16 kHz: an example of some frames is made before anything is known of the model
ADAPTER_CONFIG = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class ModuleSpec:
    """One module of a sentence-transformers chain: its kind, the folder it is in, its config and the package of its class."""

    kind: str
    folder: Path
    config: Mapping[str, Any]
    allow_pickle: bool = False
    package: str = ""

    def pooling_modes(self) -> tuple[str, ...]:
        """The pooling modes in the order of concatenation, from the old boolean keys or the newer `pooling_mode`."""
        found = self.config.get("pooling_mode")
        if found is None:
            found = [mode for key, mode in POOLING_KEYS.items() if self.config.get(key)] or ["mean"]
        modes = [found] if isinstance(found, str) else list(found)
        modes = ["mean_sqrt_len_tokens" if mode == "mean_sqrt_len" else mode for mode in modes]
        for mode in modes:
            if mode not in POOLING_KEYS.values():
                raise SourceError(f"{self.folder}: unknown pooling mode {mode!r}{did_you_mean(str(mode), POOLING_KEYS.values())}")
        return tuple(modes)

    def weights(self) -> Path:
        """The one weights file of a Dense or LayerNorm module, checked."""
        return find_weights(self.folder, self.allow_pickle)[0]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory that passed every check that needs no torch. `folder` holds config.json, `root` is what was asked for.

    `place` is the encoder's folder in `root`, with its tokenizer: another one than `folder` for an adapter without its base.
    """

    root: Path
    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    chain: tuple[ModuleSpec, ...] = ()
    notes: tuple[str, ...] = ()
    place: Path = Path()
    encoder_kind: str = "Transformer"
    adapter: Adapter | None = None

    @property
    def architecture(self) -> str:
        return str(self.config["architectures"][0])

    @property
    def is_audio(self) -> bool:
        """Recordings in: raw samples through strided convolutions (wav2vec2, HuBERT, WavLM, SEW ...), or mel frames."""
        return self.mel is not None or all(isinstance(self.config.get(key), list) for key in ("conv_kernel", "conv_stride"))

    @property
    def mel(self) -> MelInput | None:
        return mel_input(self.config, self.architecture)

    @property
    def pickled(self) -> bool:
        return self.weights[0].suffix != ".safetensors"

    def files(self) -> Iterator[Path]:
        """Everything that decides what the model computes, in a stable order."""
        files = {self.folder / "config.json", *self.weights}
        settings = [self.root / "modules.json", *(self.folder / name for name in AUDIO_FILES)]
        settings += settings_files(self.root, self.place).values() if self.chain else ()
        files.update(f for f in settings if f.is_file())
        files.update(self.adapter.files() if self.adapter else ())
        if self.config.get("auto_map"):
            files.update(self.folder.glob("*.py"))
        for spec in self.chain:
            files.update(f for f in (spec.folder / "config.json",) if f.is_file())
            if spec.kind in ("Dense", "LayerNorm"):
                files.add(spec.weights())
        return iter(sorted(files))

    def sha256(self) -> str:
        """One hash over names and contents of `files()`, in hexadecimal."""
        digest = hashlib.sha256()
        for file in self.files():
            above = next((at for at in (self.root, self.folder) if file.is_relative_to(at)), file.parent)
            digest.update(f"{file.relative_to(above).as_posix()}\0{hash_file(file)}\n".encode())
        return digest.hexdigest()


def is_checkpoint(path: Path) -> bool:
    """Whether a directory looks like a Hugging Face or sentence-transformers directory."""
    return any((path / name).is_file() for name in ("config.json", "modules.json", ADAPTER_CONFIG))


def encoder_place(root: Path) -> Path:
    """The folder in a directory that its encoder is in: its own, or the one that modules.json names first."""
    specs = _read_chain(root, allow_pickle=False)
    return specs[0].folder if specs else root


def read_checkpoint(
    root: Path,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    folder: Path | None = None,
    adapter: Adapter | None = None,
) -> Checkpoint:
    """Check a directory and describe it. `folder` holds the model where the directory itself is an adapter without its base.

    Raises SourceError for a missing or truncated config, no `architectures`, missing or truncated weights, weights that
    are only there as a pickle, remote code, and a sentence-transformers module that bertc does not know.
    """
    config_check.check_links(root, root)
    specs = _read_chain(root, allow_pickle)
    place = specs[0].folder if specs else root
    folder = folder or place
    config = read_json(folder / "config.json", "the model's config", ModelConfig)
    if not config.get("architectures"):
        raise SourceError(
            f"{folder / 'config.json'} names no `architectures`, so the model's class is unknown; "
            'save the model with save_pretrained, or add e.g. "architectures": ["BertModel"]'
        )
    config_check.check_config(folder / "config.json", config, trust_remote_code)
    if config.get("quantization_config"):
        raise SourceError(
            f"{folder} holds quantised weights (quantization_config); give the float model, bertc quantises it itself"
        )
    weights = find_weights(folder, allow_pickle)
    config_check.check_counts(folder / "config.json", config, weights)
    kind = specs[0].kind if specs else ""
    made = Checkpoint(root, folder, config, weights, specs[1:], tuple(dtype_notes(weights)), place, kind, adapter)
    if made.is_audio and made.mel is None:
        _check_convolutions(folder / "config.json", config)
    return made


def _check_convolutions(path: Path, config: Mapping[str, Any]) -> None:
    kernels, strides = config["conv_kernel"], config["conv_stride"]
    if not kernels or len(kernels) != len(strides):
        raise SourceError(f"{path} has {len(kernels)} sizes in conv_kernel and {len(strides)} in conv_stride; one for each layer")
    if (samples := smallest_samples(config, 1)) > MOST_SAMPLES:
        raise SourceError(
            f"{path} makes one frame of {samples} samples (conv_kernel {kernels!r:.80}, conv_stride {strides!r:.80}); bertc "
            f"takes up to {MOST_SAMPLES}"
        )


# ---- sentence-transformers -------------------------------------------------------------------------------------------


def _read_chain(root: Path, allow_pickle: bool) -> tuple[ModuleSpec, ...]:
    if not (root / "modules.json").is_file():
        return ()
    entries = read_json(root / "modules.json", "the sentence-transformers modules", Modules)
    first = _module(root, entries[0], allow_pickle)
    if first.kind not in ENCODER_KINDS:
        raise SourceError(
            f"{root / 'modules.json'}: the first module is {first.kind!r}; bertc reads chains that begin with a Transformer of "
            "sentence-transformers"
        )
    return (first, *(_module(root, entry, allow_pickle) for entry in entries[1:]))


def _module(root: Path, entry: Mapping[str, Any], allow_pickle: bool) -> ModuleSpec:
    kind = str(entry["type"]).rpartition(".")[2]
    path = PurePosixPath(entry.get("path", ""))
    if path.is_absolute() or ".." in path.parts:
        raise SourceError(f"{root / 'modules.json'} points to {path}, outside its own folder")
    try:
        folder = check_link(root / path, root)
    except ValueError as error:  # a null byte, half of a character
        raise SourceError(f"{root / 'modules.json'} points to {str(path)!r}, which is no name of a folder: {error}") from error
    if folder.is_dir():
        config_check.check_links(folder, root)
    package = str(entry["type"]).partition(".")[0]
    if package not in KNOWN_PACKAGES:
        kind = str(entry["type"])  # the name alone would make another author's class one of theirs
    if kind in CONFIGURED or (kind not in ENCODER_KINDS and (folder / "config.json").is_file()):
        config = read_json(folder / "config.json", f"the {kind} module", MODULE_CONFIGS.get(kind, dict[str, Any]))
        return ModuleSpec(kind, folder, config, allow_pickle, package)
    return ModuleSpec(kind, folder, {}, allow_pickle, package)


# ---- task ------------------------------------------------------------------------------------------------------------


def task_of(checkpoint: Checkpoint, tasks: Sequence[str]) -> str:
    """The task of a checkpoint, from the class in `architectures`. Raises SourceError listing the tasks."""
    name = checkpoint.architecture
    for suffix, task in TASK_OF_SUFFIX.items():
        if name.endswith(suffix):
            return AUDIO_TASKS.get(task, task) if checkpoint.is_audio else task
    raise SourceError(
        f"{checkpoint.folder / 'config.json'}: architecture {name!r} has no task that bertc knows; choose one with --task "
        f"({', '.join(tasks)}), or write a Python factory (package.module:function)"
    )


def check_task(checkpoint: Checkpoint, task: str) -> None:
    """Raises SourceError when a checkpoint cannot do a task for a reason that its config shows."""
    audio = task in (*AUDIO_TASKS.values(), "audio-frame-classification", "ctc")
    encoder = checkpoint.config.get("model_type") in ENCODER_CLASSES and task in ("features", "sentence-embedding")
    if checkpoint.config.get("is_encoder_decoder") and not encoder and checkpoint.mel is None:
        raise SourceError(
            f"{checkpoint.folder}: {checkpoint.architecture} is an encoder-decoder by its config.json; write a Python factory "
            "(package.module:function) that returns its encoder"
        )
    why = "" if checkpoint.is_audio else refusal(checkpoint.config, checkpoint.architecture, _extractor(checkpoint)[1])
    if why:
        raise SourceError(f"{checkpoint.folder}: {why}")
    if audio != checkpoint.is_audio:
        kind = "recordings" if checkpoint.is_audio else "token ids"
        raise SourceError(f"{checkpoint.folder}: task {task!r} does not fit {checkpoint.architecture}, which takes {kind}")


def _extractor(checkpoint: Checkpoint) -> tuple[Path | None, dict[str, Any]]:
    return audio_settings({name: path for name in AUDIO_FILES if (path := checkpoint.folder / name).is_file()})


def smallest_samples(config: Mapping[str, Any], frames: int) -> int:
    """The smallest number of samples that gives so many frames: 400 for one frame of wav2vec2."""
    samples = frames
    for kernel, stride in reversed(list(zip(config["conv_kernel"], config["conv_stride"], strict=True))):
        samples = (samples - 1) * int(stride) + int(kernel)
    # PyTorch refuses a group norm, which stands behind the first convolution, over one frame of one row.
    grouped = int(config["conv_kernel"][0]) + int(config["conv_stride"][0])
    return max(samples, grouped) if config.get("feat_extract_norm") == "group" else samples


def largest_samples(config: Mapping[str, Any]) -> int | None:
    """The most samples that a table of relative positions has frames for; None where there is no such table."""
    frames = frames_of_table(config)
    return None if frames is None else smallest_samples(config, frames + 1) - 1


def frames_squeezed(config: Mapping[str, Any]) -> int:
    """How many frames become one before the encoder: 2 of SEW, which takes no fewer."""
    return int(config.get("squeeze_factor") or 1)


def takes_audio_mask(checkpoint: Checkpoint) -> bool:
    """Whether the model was trained with a mask over samples, as its preprocessor says (else by its normalisation)."""
    _, config = _extractor(checkpoint)
    if config:
        return bool(config.get("return_attention_mask"))
    return checkpoint.config.get("feat_extract_norm") == "layer"
