"""An artifact as the one module of a SentenceTransformer: its tokenizer, its engine, and what its folder says of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule

from ..core import DataError
from ..data import Text
from ..verification import load_runner

EMBEDDING = "sentence_embedding"


class ArtifactModule(InputModule):
    """Texts to `sentence_embedding` through the engine of an artifact. Everything after it (normalize, truncate_dim, precision)
    is sentence-transformers' own."""

    config_keys: ClassVar[list[str]] = ["artifact"]
    save_in_root = False

    def __init__(self, artifact: str) -> None:
        super().__init__()
        self.artifact = str(artifact)
        self.runner = load_runner(Path(artifact))
        width = next((spec.dims[-1] for spec in self.runner.outputs if spec.name == EMBEDDING), None)
        if width is None:
            found = ", ".join(spec.name for spec in self.runner.outputs)
            raise DataError(f"{artifact} gives {found}, no {EMBEDDING}: build it from a sentence-transformers model")
        self.width = width if isinstance(width, int) else None
        self.encoder = self.runner.encoder()
        self.tokenizer = self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of a text, special ones counted."""
        return self.encoder.max_length

    def on_model_ready(self, model: Any) -> None:
        """Prompts, the similarity and the dimension of the model's folder, where the caller gave none: as a load from it does."""
        settings = self.encoder.settings
        given = {name: prompt for name, prompt in model.prompts.items() if prompt}
        model.prompts = {**model.prompts, **settings.prompts, **given}
        if model.default_prompt_name is None:
            model.default_prompt_name = settings.default_prompt_name
        if getattr(model, "_similarity_fn_name", None) is None and settings.similarity_fn_name is not None:
            model.similarity_fn_name = settings.similarity_fn_name
        if model.truncate_dim is None:
            model.truncate_dim = settings.truncate_dim

    def preprocess(self, inputs: Sequence[Text], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The feeds of the engine. Settings of a call that would change them are refused: the artifact has its own."""
        if kwargs.get("processing_kwargs"):
            raise DataError(f"processing_kwargs {kwargs['processing_kwargs']}: an artifact is cut where it was built to be")
        texts = [tuple(text) if isinstance(text, list) else text for text in inputs]
        feeds = self.encoder.encode(texts, prompt=prompt or "")
        return {name: torch.from_numpy(array) for name, array in feeds.items()}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Run the engine; `sentence_embedding` comes back where the features lie."""
        feeds = {name: value.cpu().numpy() for name, value in features.items() if isinstance(value, torch.Tensor)}
        device = next((value.device for value in features.values() if isinstance(value, torch.Tensor)), None)
        made = [self.runner.run(chunk)[EMBEDDING] for chunk in self._chunks(feeds)]
        features[EMBEDDING] = torch.from_numpy(np.concatenate(made).astype(np.float32)).to(device)
        return features

    def _chunks(self, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Batches that the engine takes: `batch_size` may be larger than its profile."""
        first = self.runner.inputs[0].dims[0]
        count = len(next(iter(feeds.values())))
        if isinstance(first, int):
            size = first
        else:
            size = max((profile[first].max for profile in self.runner.profiles if first in profile), default=count)
        return [{name: array[at : at + size] for name, array in feeds.items()} for at in range(0, count, size)]

    def get_embedding_dimension(self) -> int | None:
        """The width of the vectors."""
        return self.width

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before sentence-transformers 5.5

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save where the artifact lies: the engine stays there."""
        self.artifact = str(Path(self.artifact).resolve())
        self.save_config(output_path)
