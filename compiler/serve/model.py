"""A served model as the front of the server sees it: texts to rows, limits, and what its outputs mean. No session is here."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import Artifact
from ..core import ArtifactError, Feeds, Outputs, Profile, TensorSpec, read_json
from ..data import Encoder, Labels, Text
from .batches import Batching, joined
from .errors import Refused, TooLong

if TYPE_CHECKING:
    from ..runtime import Runner
    from .scheduler import Scheduler

EMBEDDING, LOGITS = "sentence_embedding", "logits"
MOST_TOKENS = 8192  # of a text, for a model that has no limit of its own: attention takes their square
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
        self.bounds: dict[str, int] = {}  # ids below them have a row in the model's tables
        self.multi_label = multi_label  # each class by itself: sigmoid, not softmax
        self.batching = Batching.of(inputs, outputs, encoder.pad_id if encoder else 0)
        # One thread, and never beside the event loop: truncation is a state of the tokenizer.
        self._tokenizing = concurrent.futures.ThreadPoolExecutor(1, f"bertc-tokenize-{name}")
        self._in_thread = self._users = 0

    @staticmethod
    def of_artifact(
        name: str,
        found: Artifact,
        profiles: Sequence[Profile],
        scheduler: Scheduler,
        encoders: MutableMapping[Hashable, Encoder] | None = None,
    ) -> ServedModel:
        """The front of an artifact. `profiles`: the sizes that its loaded runner is bound to. `encoders`: those of other models,
        to share where the files and limits are equal: a tokenizer takes some megabytes."""
        encoder = None
        names = [spec.name for spec in found.inputs]
        if found.tokenizer is not None:
            bounds = (_longest(profiles), tuple(names), found.index_bounds.get("input_ids"))
            files = {file: entry["sha256"] for file, entry in found.manifest["files"].items() if file.startswith("tokenizer/")}
            key = (tuple(sorted(files.items())), bounds)
            encoder = encoders.get(key) if encoders is not None else None
            if encoder is None:
                encoder = Encoder.from_directory(found.tokenizer, *bounds)
                encoder = dataclasses.replace(encoder, max_length=encoder.max_length or MOST_TOKENS)
            if encoders is not None:
                encoders[key] = encoder
        multi = problem_type(found) == "multi_label_classification"
        names_of = dict(Labels.from_assets(found.task, found.assets).names)
        made = ServedModel(name, found.inputs, found.outputs, encoder, scheduler, names_of, multi)
        made.bounds = dict(found.index_bounds)
        made.batching = Batching.of(found.inputs, found.outputs, encoder.pad_id if encoder else 0, found.masks)
        return made

    @staticmethod
    def of_runner(name: str, runner: Runner, scheduler: Scheduler) -> ServedModel:
        """The front of a loaded runner."""
        encoder = runner.encoder() if runner.tokenizer else None
        made = ServedModel(name, runner.inputs, runner.outputs, encoder, scheduler)
        made.batching = Batching.of(runner.inputs, runner.outputs, encoder.pad_id if encoder else 0, runner.masks)
        return made

    def output(self, *names: str) -> TensorSpec | None:
        """The output of one of these names."""
        return next((spec for name in names for spec in self.outputs if spec.name == name), None)

    async def rows_of(self, texts: Sequence[Text], request: Request) -> list[Feeds]:
        """The feeds of each text, [1, its own length]. TooLong where one would be cut and may not be, Refused for no texts."""
        if self.encoder is None:
            raise Refused(f"model {self.name!r} has no tokenizer: it takes arrays alone (/v2/models/{self.name}/infer)")
        if len(texts) > request.rows:
            raise TooLong(f"{len(texts)} texts; a request has up to {request.rows} (limits.rows)")
        size = sum(len(part) for text in texts for part in (text if isinstance(text, tuple) else (text,)))
        if size <= INLINE and not self._in_thread:
            return self._tokenize(texts, request)
        work = asyncio.get_running_loop().run_in_executor(self._tokenizing, self._tokenize, texts, request)
        self._in_thread += 1
        work.add_done_callback(self._tokenized)
        return await asyncio.shield(work)  # a caller that goes away must not make a thread that is busy look idle

    def _tokenized(self, work: asyncio.Future[list[Feeds]]) -> None:
        self._in_thread -= 1
        if not work.cancelled():
            work.exception()  # seen: its caller may have gone away

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1

    async def unused(self) -> None:
        """Wait until nobody asks this model anything: what a reload puts away."""
        while self._users:
            await asyncio.sleep(0.01)

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
        self._check_ids(feeds)
        rows = self.batching.rows(feeds)
        if len(rows) > request.rows:
            raise TooLong(f"{len(rows)} rows; a request has up to {request.rows} (limits.rows)")
        longest, limit = max(map(self.batching.tokens, rows)), self.encoder.max_length if self.encoder else None
        if limit is not None and longest > limit:
            raise TooLong(f"a row of {longest} tokens; model {self.name!r} takes {limit}")
        with self._used():
            return joined(await self.run_rows(rows, request))

    def _check_ids(self, feeds: Feeds) -> None:
        """Refused for an id without a row in the model's table: the engine would fail on it, or read what lies beyond."""
        for name, bound in self.bounds.items():
            if name in feeds and feeds[name].size and (feeds[name].min() < 0 or feeds[name].max() >= bound):
                raise Refused(f"input {name!r} has {feeds[name].min()}..{feeds[name].max()}; the model's table has {bound} rows")

    async def embed(self, texts: Sequence[str], request: Request, normalize: bool, width: int | None) -> tuple[np.ndarray, int]:
        """(vectors float32 [texts, width], the tokens that were read)."""
        spec = self.output(EMBEDDING)
        if spec is None:
            raise Refused(f"model {self.name!r} gives {', '.join(s.name for s in self.outputs)}, no {EMBEDDING}")
        whole = spec.dims[-1]
        if width is not None and not (1 <= width <= (whole if isinstance(whole, int) else math.inf)):
            raise Refused(f"dimensions {width}: the vectors of {self.name!r} have {whole}")
        with self._used():
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
        with self._used():
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
    return str((read_json(config, dict[str, Any], error=ArtifactError).get("problem_type") if config else None) or "")


def _longest(profiles: Sequence[Profile]) -> int | None:
    return max((profile["length"].max for profile in profiles if "length" in profile), default=None)
