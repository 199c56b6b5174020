"""A served model as the front of the server sees it: texts to rows, limits, and what its outputs mean. No session is here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import Artifact
from ..core import Feeds, Outputs, Profile, TensorSpec
from ..data import Encoder, Labels, Text
from .batches import Batching, joined
from .errors import Refused, TooLong

if TYPE_CHECKING:
    from ..runtime import Runner
    from .scheduler import Scheduler

EMBEDDING, LOGITS = "sentence_embedding", "logits"
INLINE = 2000  # characters that are tokenized in the event loop: a thread costs more


@dataclasses.dataclass(frozen=True)
class Request:
    """What every route hands on: how texts are prepared, and until when the answer is wanted (seconds from now)."""

    deadline: float
    truncate: bool
    rows: int = 1024
    prompt_name: str | None = None


class ServedModel:
    """One model of a server or a Batcher: `infer`, `embed`, `scores` over a scheduler.

    `lane`: the name under which its pool knows the artifact, which a reload changes.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        encoder: Encoder | None,
        scheduler: Scheduler,
        labels: Mapping[int, str] | None = None,
        multi_label: bool = False,
    ) -> None:
        self.name = self.lane = name
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.encoder, self.scheduler = encoder, scheduler
        self.labels = dict(labels or {})
        self.multi_label = multi_label  # each class by itself: sigmoid, not softmax
        self.batching = Batching.of(inputs, outputs, encoder.pad_id if encoder else 0)
        # One thread: truncation is a state of the tokenizer.
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, f"bertc-tokenize-{name}")

    @staticmethod
    def of_artifact(name: str, found: Artifact, profiles: Sequence[Profile], scheduler: Scheduler) -> ServedModel:
        """The front of an artifact. `profiles`: the sizes that its loaded runner is bound to."""
        encoder = None
        names = [spec.name for spec in found.inputs]
        if found.tokenizer is not None:
            encoder = Encoder.from_directory(found.tokenizer, _longest(profiles), names, found.index_bounds.get("input_ids"))
        multi = problem_type(found) == "multi_label_classification"
        names_of = dict(Labels.from_assets(found.task, found.assets).names)
        return ServedModel(name, found.inputs, found.outputs, encoder, scheduler, names_of, multi)

    @staticmethod
    def of_runner(name: str, runner: Runner, scheduler: Scheduler) -> ServedModel:
        """The front of a loaded runner."""
        return ServedModel(name, runner.inputs, runner.outputs, runner.encoder() if runner.tokenizer else None, scheduler)

    def output(self, *names: str) -> TensorSpec | None:
        """The output of one of these names."""
        return next((spec for name in names for spec in self.outputs if spec.name == name), None)

    async def rows_of(self, texts: Sequence[Text], request: Request) -> list[Feeds]:
        """The feeds of each text, [1, its own length]. TooLong where one would be cut and may not be, Refused for no texts."""
        if self.encoder is None:
            raise Refused(f"model {self.name!r} has no tokenizer: it takes arrays alone (/v2/models/{self.name}/infer)")
        if len(texts) > request.rows:
            raise TooLong(f"{len(texts)} texts; a request has up to {request.rows} (limits.rows)")
        if sum(len(part) for text in texts for part in (text if isinstance(text, tuple) else (text,))) <= INLINE:
            return self._tokenize(texts, request)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, self._tokenize, texts, request)

    def _tokenize(self, texts: Sequence[Text], request: Request) -> list[Feeds]:
        assert self.encoder is not None
        made = self.encoder.encode_counted(texts, prompt_name=request.prompt_name)
        if made.truncated and not request.truncate:
            limit = self.encoder.max_length
            raise TooLong(f"{made.truncated} of {len(texts)} texts are over {limit} tokens; cut them, or ask for truncation")
        spans = [(shift, shift + len(encoding.ids)) for encoding, shift in made.tokens]
        return [
            {name: array[at : at + 1, low:high] for name, array in made.feeds.items()} for at, (low, high) in enumerate(spans)
        ]

    async def run_rows(self, rows: Sequence[Feeds], request: Request) -> list[Outputs]:
        """The outputs of each row. Raises as Scheduler.submit."""
        return await self.scheduler.submit(self.lane, rows, request.deadline)

    async def infer(self, feeds: Feeds, request: Request) -> Outputs:
        """Arrays in, arrays out, as Runner.run: rows are batched with those of others."""
        rows = self.batching.rows(feeds)
        if len(rows) > request.rows:
            raise TooLong(f"{len(rows)} rows; a request has up to {request.rows} (limits.rows)")
        return joined(await self.run_rows(rows, request))

    async def embed(self, texts: Sequence[str], request: Request, normalize: bool, width: int | None) -> tuple[np.ndarray, int]:
        """(vectors float32 [texts, width], the tokens that were read)."""
        spec = self.output(EMBEDDING)
        if spec is None:
            raise Refused(f"model {self.name!r} gives {', '.join(s.name for s in self.outputs)}, no {EMBEDDING}")
        whole = spec.dims[-1]
        if width is not None and not (1 <= width <= (whole if isinstance(whole, int) else math.inf)):
            raise Refused(f"dimensions {width}: the vectors of {self.name!r} have {whole}")
        rows = await self.rows_of(texts, request)
        found = await self.run_rows(rows, request)
        vectors = np.concatenate([each[EMBEDDING] for each in found]).astype(np.float32)[:, :width]
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors, sum(map(self.batching.tokens, rows))

    async def logits(self, texts: Sequence[Text], request: Request) -> np.ndarray:
        """float32 [texts, classes] of a classifier or a ranker: rows shortest first in the queue, answers in the order given."""
        spec = self.output(LOGITS)
        if spec is None or len(spec.dims) != 2:
            raise Refused(f"model {self.name!r} gives {', '.join(map(str, self.outputs))}, no {LOGITS} [texts, classes]")
        found = await self.run_rows(await self.rows_of(texts, request), request)
        return np.concatenate([each[LOGITS] for each in found]).astype(np.float32)

    def label(self, at: int) -> str:
        """The name of a class."""
        return self.labels.get(at, f"LABEL_{at}")

    def close(self) -> None:
        """End the tokenizer's thread."""
        self._tokenizing.shutdown(wait=False)


def problem_type(found: Artifact) -> str:
    """What config.json says that a classifier's logits are, "" where it says nothing."""
    config = next((path for path in found.assets if path.name == "config.json"), None)
    return str((json.loads(config.read_bytes()).get("problem_type") if config else None) or "")


def _longest(profiles: Sequence[Profile]) -> int | None:
    return max((profile["length"].max for profile in profiles if "length" in profile), default=None)


def softmax(logits: np.ndarray) -> Any:
    """Probabilities [.., classes]."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> Any:
    """Each number between 0 and 1."""
    return np.where(logits >= 0, 1 / (1 + np.exp(-np.abs(logits))), np.exp(-np.abs(logits)) / (1 + np.exp(-np.abs(logits))))
