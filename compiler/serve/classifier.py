"""A classifier as a callable, with the answers of transformers' text-classification pipeline."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import special

from ..artifact import Artifact, open_artifact
from ..core import DataError
from ..data import Labels, Text
from ..verification import load_runner
from .model import LOGITS, problem_type

if TYPE_CHECKING:
    from ..runtime import Runner

Given = str | Mapping[str, str]
Answer = dict[str, Any]
FUNCTIONS: Mapping[str, Callable[[np.ndarray], Any]] = {
    "softmax": functools.partial(special.softmax, axis=-1),
    "sigmoid": special.expit,
    "none": np.asarray,
}


class Classifier:
    """`classifier("a text") -> [{"label", "score"}]`, the likeliest class first; a list of texts gives a list.

    A pair is {"text": ..., "text_pair": ...}. Texts that are too long are cut, as the model's folder says.
    """

    def __init__(self, artifact: Path) -> None:
        found = open_artifact(Path(artifact))
        self.runner: Runner = load_runner(Path(artifact))
        spec = next((each for each in self.runner.outputs if each.name == LOGITS), None)
        if spec is None or len(spec.dims) != 2:
            given = ", ".join(map(str, self.runner.outputs))
            raise DataError(f"{artifact} gives {given}, no {LOGITS} [texts, classes]: a classifier or a ranker is needed")
        self.encoder = self.runner.encoder()
        self.labels = dict(Labels.from_assets(found.task, found.assets).names)
        self.function = _function(found, spec.dims[1])
        self._most = _most_rows(self.runner)

    def __call__(
        self,
        inputs: Given | Iterable[Given],
        *,
        top_k: int | None = 1,
        function_to_apply: str | None = None,
        batch_size: int = 1,
    ) -> list[Answer] | list[list[Answer]]:
        """`top_k=None` gives every class. `batch_size` texts run at once. DataError for what is no text, or no list of them."""
        function = self.function if function_to_apply is None else function_to_apply.lower()
        if function not in FUNCTIONS:
            raise DataError(f"function_to_apply {function_to_apply!r}; known: {', '.join(FUNCTIONS)}")
        if batch_size < 1 or (top_k is not None and top_k < 1):
            raise DataError(f"batch_size {batch_size}, top_k {top_k}: each is 1 or more")
        single = isinstance(inputs, (str, Mapping))
        texts = [_text(inputs)] if isinstance(inputs, (str, Mapping)) else [_text(each) for each in inputs]
        logits = self._logits(texts, min(batch_size, self._most))
        answers = [self._classes(row, function)[:top_k] for row in logits]
        return answers[0] if single else answers

    def _logits(self, texts: Sequence[Text], size: int) -> np.ndarray:
        self.encoder.check(texts)
        chunks = [texts[at : at + size] for at in range(0, len(texts), size)]
        return np.concatenate([self.runner.run(self.encoder.encode(chunk))[LOGITS] for chunk in chunks]).astype(np.float32)

    def _classes(self, logits: np.ndarray, function: str) -> list[Answer]:
        scores = FUNCTIONS[function](logits)
        order = np.argsort(-logits, kind="stable").tolist()
        return [{"label": self.labels.get(at, f"LABEL_{at}"), "score": float(scores[at])} for at in order]


def _function(found: Artifact, classes: Any) -> str:
    """As transformers chooses it."""
    problem = problem_type(found)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or classes == 1 else "softmax"


def _text(given: Any) -> Text:
    if isinstance(given, Mapping):
        known = set(given) <= {"text", "text_pair"} and "text" in given
        if not known or not all(isinstance(each, str) for each in given.values()):
            raise DataError(f"{given!r:.80} is no pair; wanted {{'text': ..., 'text_pair': ...}}")
        return (given["text"], given["text_pair"]) if "text_pair" in given else given["text"]
    if not isinstance(given, str):
        raise DataError(f"{given!r:.80} is no text; a pair is {{'text': ..., 'text_pair': ...}}")
    return given


def _most_rows(runner: Runner) -> int:
    first = runner.inputs[0].dims[0]
    if isinstance(first, int):
        return first
    return max((profile[first].max for profile in runner.profiles if first in profile), default=2**20)
