"""What the library of a checkpoint makes of texts and recordings: the truth about how bertc reads the same files.

sentence-transformers loads the folder itself, by its own code, so that what bertc does not read of it shows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core import Missing, Outputs, machine
from ..data import AUDIO_FILES, RAW_AUDIO, Text, TextSettings
from .chain import EMBEDDINGS
from .types import InputTruth

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .factory import FactoryModel

TWICE = 2 * 2**30  # bytes of weights that are held a second time, while the library's own model is run
CROSS_ENCODER_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")
UNLIMITED = 10**6
LIBRARY = "sentence-transformers"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def of_checkpoint(
    found: Checkpoint, task: str, settings: TextSettings, made: FactoryModel, trust_remote_code: bool = False
) -> InputTruth:
    """sentence-transformers for its own folders and for cross-encoders, else transformers. Raises Missing with the reason."""
    if found.is_audio:
        return _of_audio(found.folder)
    head: Any = made.module
    names = made.outputs or ()
    kind = settings.model_type
    if task == "sequence-classification" and any(found.config.get(key) for key in CROSS_ENCODER_KEYS):
        kind = "CrossEncoder"
    if not kind and found.chain:
        kind = "SentenceTransformer"
    if not kind:
        place = found.place if any((found.place / name).is_file() for name in TOKENIZER_FILES) else found.folder
        plain = _transformers_ids(place, trust_remote_code)
        return dataclasses.replace(
            plain, outputs=_outputs_of(plain.ids, head, names), pairs=task in ("sequence-classification", "question-answering")
        )
    size = sum(path.stat().st_size for path in found.weights)
    if size > TWICE:
        raise Missing(f"{LIBRARY} would hold {size / 2**30:.1f} GiB of weights a second time")
    if found.adapter:
        raise Missing(f"{LIBRARY} loads the folder without merging the adapter")
    model = _sentence_model(found.root, kind, trust_remote_code)
    ids_of = _sentence_ids(model)
    outputs: Any = _outputs_of(ids_of, head, names) if task not in EMBEDDINGS else None
    if task == "sentence-embedding" and kind == "SentenceTransformer":
        outputs = _embedding(model)
    elif task == "sequence-classification" and kind == "CrossEncoder":
        outputs = _scores(model)
    pairs = kind == "CrossEncoder"  # which takes nothing else
    name = f"{LIBRARY} {machine.installed_version(LIBRARY)}"
    return InputTruth(name, ids_of, outputs, singles=not pairs, pairs=pairs)


def of_folder(folder: Path, settings: TextSettings) -> InputTruth:
    """The tokenizer or the feature extractor that transformers makes of a folder's files. Raises Missing with the reason."""
    if settings.model_type:
        raise Missing(f"no model of {LIBRARY} beside its settings")
    if not (folder / "tokenizer.json").is_file() and any((folder / name).is_file() for name in AUDIO_FILES):
        return _of_audio(folder)
    return _transformers_ids(folder, False)


# ---- sentence-transformers -------------------------------------------------------------------------------------------


def _sentence_model(root: Path, kind: str, trust_remote_code: bool) -> Any:
    if machine.installed_version(LIBRARY) is None:
        raise Missing(f"{LIBRARY} is not installed: pip install {LIBRARY}")
    if kind not in ("SentenceTransformer", "CrossEncoder"):
        raise Missing(f"bertc compares a SentenceTransformer or a CrossEncoder of {LIBRARY}; this is a {kind}")
    with _loading(LIBRARY):
        import sentence_transformers

        return getattr(sentence_transformers, kind)(
            str(root),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            # Else weights saved in half precision are run in it; and attention that a config names may be code on the hub.
            model_kwargs={"dtype": "float32", "attn_implementation": "eager"},
            config_kwargs={"_attn_implementation": "eager"},  # which wins where config.json has it
        )


def _sentence_ids(model: Any) -> Callable[[Sequence[Text], str | None], dict[str, np.ndarray]]:
    def ids(texts: Sequence[Text], prompt_name: str | None) -> dict[str, np.ndarray]:
        name = prompt_name if prompt_name is not None else model.default_prompt_name
        found = model.preprocess(list(texts), prompt=model.prompts[name] if name is not None else None)
        return {key: value.numpy() for key, value in found.items() if getattr(value, "ndim", 0) == 2}

    return ids


def _embedding(model: Any) -> Callable[[Text, str | None], Outputs]:
    def outputs(text: Text, prompt_name: str | None) -> Outputs:
        vectors = model.encode([text], prompt_name=prompt_name, convert_to_numpy=True, show_progress_bar=False)
        return {"sentence_embedding": np.asarray(vectors)}

    return outputs


def _scores(model: Any) -> Callable[[Text, str | None], Outputs]:
    def outputs(text: Text, prompt_name: str | None) -> Outputs:
        # Logits, as the graph gives them: its activation is the caller's.
        found = model.predict([text], prompt_name=prompt_name, activation_fn=lambda scores: scores, show_progress_bar=False)
        return {"logits": np.asarray(found).reshape(1, -1)}

    return outputs


# ---- transformers ----------------------------------------------------------------------------------------------------


def _transformers_ids(folder: Path, trust_remote_code: bool) -> InputTruth:
    with _loading("transformers"):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=trust_remote_code)
    pads = tokenizer.pad_token is not None

    def ids(texts: Sequence[Text], prompt_name: str | None) -> dict[str, np.ndarray]:
        firsts = [text[0] if isinstance(text, tuple) else text for text in texts]
        seconds = [text[1] for text in texts if isinstance(text, tuple)] or None
        limited = tokenizer.model_max_length < UNLIMITED
        found = tokenizer(firsts, seconds, padding=pads, truncation="longest_first" if limited else False, return_tensors="np")
        return {name: np.asarray(array) for name, array in found.items()}

    return InputTruth(f"transformers {machine.installed_version('transformers')}", ids, pads=pads)


def _outputs_of(ids: Any, head: Any, names: Sequence[str]) -> Callable[[Text, str | None], Outputs]:
    def outputs(text: Text, prompt_name: str | None) -> Outputs:
        return head.run_bare(ids([text], prompt_name), names)

    return outputs


def _of_audio(folder: Path) -> InputTruth:
    with _loading("transformers"):
        from transformers import AutoFeatureExtractor

        auto: Any = AutoFeatureExtractor
        extractor: Any = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)

    def values(waves: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        # Of raw samples none is padded unless it is asked for; of mel frames each class pads as its model wants.
        padding = {"padding": True} if type(extractor).__name__ == RAW_AUDIO else {}
        found = extractor(list(waves), sampling_rate=extractor.sampling_rate, **padding, return_tensors="np")
        return {name: np.asarray(array) for name, array in found.items()}

    return InputTruth(f"transformers {machine.installed_version('transformers')}", values=values)


@contextlib.contextmanager
def _loading(library: str) -> Iterator[None]:
    """Whatever stops a library from loading a folder is the reason why nothing can be held against it."""
    try:
        from .loading import root_cause
        from .silence import quiet

        with quiet():
            yield
    except ImportError as error:
        raise Missing(f"{library} cannot be loaded here: {error}") from error
    except Exception as error:  # libraries raise anything for a folder that they cannot read
        raise Missing(f"{library} cannot load it: {root_cause(error)}") from error
