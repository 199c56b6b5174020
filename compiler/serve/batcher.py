"""Batches for a server that is there already: its handlers await, and rows of all requests are batched together."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ..artifact import open_artifact
from ..core import DataError, Feeds, InputError, Outputs, Progress, did_you_mean
from ..data import Text
from .batches import Batching, joined
from .cost import CostModel
from .errors import TooLong, Unavailable
from .measure import measure
from .model import Request, ServedModel
from .planner import POLICIES, Policy
from .pool import ThreadPool
from .scheduler import Lane, Scheduler
from .trial import try_padding

if TYPE_CHECKING:
    from ..runtime import Runner

LOG = logging.getLogger("bertc.serve")
NAME = "model"
# Of one token, before anything is measured: only ratios matter to `tokens`, and Retry-After is a guess that says so.
GUESS = CostModel(np.array([1]), np.array([1]), np.array([[1e-4]]))


class Batcher:
    """A loaded runner behind the planner of `bertc serve`, for asyncio: `infer`, `embed` and `logits`, in one event loop.

    `policy`: of the planner; without one `cost` where times are known (`cost=`, `measure`), else `tokens`, as `notes` and the log
    say. `threads`: batches that run at once; more than one only for engines that allow it (ONNX Runtime).
    `deadline` in seconds. `truncate`: cut texts that are too long; otherwise TooLong is raised.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        cost: CostModel | None = None,
        policy: str = "",
        max_rows: int = 32,
        max_wait: float = 0.005,
        budget: int = 512,
        target: float = math.inf,
        threads: int = 1,
        queue: int = 1024,
        deadline: float = math.inf,
        truncate: bool = False,
    ) -> None:
        if policy and policy not in POLICIES:
            raise InputError(f"no policy {policy!r}{did_you_mean(policy, POLICIES)}")
        for name, value in (("max_rows", max_rows), ("budget", budget), ("threads", threads), ("queue", queue)):
            if value < 1:
                raise InputError(f"{name} is {value}; it is 1 or more")
        self.runner = runner
        self.notes: list[str] = []
        self._pool = ThreadPool({NAME: runner}, threads)
        self._scheduler = Scheduler(self._pool)
        self._model = ServedModel.of_runner(NAME, runner, self._scheduler)
        self._request = Request(deadline, truncate, rows=queue)
        self._chosen, self._cost, self._queue, self._threads = policy, cost, queue, threads
        self._policy = Policy(policy or "cost", self._most_rows(max_rows), max_wait, budget, target)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def policy(self) -> str:
        """The policy in use."""
        if self._chosen == "cost" or not self._chosen:
            return "cost" if self._cost is not None else "tokens"
        return self._chosen

    async def infer(self, feeds: Feeds) -> Outputs:
        """Arrays in, arrays out, as `Runner.run`; rows are batched with those of other requests.

        Raises as `Runner.run`, and Overloaded, DeadlinePassed or Unavailable (bertc.serve.errors).
        """
        rows = self._rows(feeds)
        await self._ready()
        return joined(await self._model.run_rows(rows, self._request))

    async def embed(
        self, texts: Sequence[str], *, normalize: bool = False, truncate_dim: int | None = None, prompt_name: str | None = None
    ) -> np.ndarray:
        """Vectors float32 [texts, width], as `Runner.embed`. Raises as `infer`, and TooLong or Refused."""
        self._check_text()
        await self._ready()
        request = dataclasses.replace(self._request, prompt_name=prompt_name)
        return (await self._model.embed(texts, request, normalize, truncate_dim))[0]

    async def logits(self, texts: Sequence[Text]) -> np.ndarray:
        """float32 [texts, classes] of texts or pairs of texts: a classifier's, or a ranker's scores. Raises as `embed`."""
        self._check_text()
        await self._ready()
        return await self._model.logits(texts, self._request)

    async def measure(self, artifact: Path) -> CostModel:
        """Time batches of the runner, which is of this artifact, and batch by these times from now on.

        Takes about 15 s, more on a busy machine; requests of the meantime wait among what is timed.
        """
        await self._ready()
        cost = await measure(open_artifact(Path(artifact)), self._pool, NAME, self._threads, 1, Progress())
        self._cost = cost
        self.notes = [note for note in self.notes if not note.startswith("times of batches")]
        self._scheduler.lanes[NAME].cost, self._scheduler.lanes[NAME].policy = cost, self._now()
        return cost

    async def close(self) -> None:
        """Answer what waits, then end the threads. Requests from now on raise Unavailable."""
        self._closed = True
        if self._starting is not None:
            self._check_loop()
            await asyncio.wait([self._starting])
            await self._scheduler.drain()
        self._pool.close()
        self._model.close()

    async def __aenter__(self) -> Batcher:
        await self._ready()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()

    async def _ready(self) -> None:
        """Started, open, and in the event loop of the first call."""
        if self._closed:
            raise Unavailable("this Batcher is closed")
        self._check_loop()
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        if not self._starting.done():
            await asyncio.shield(self._starting)
        self._starting.result()

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise InputError(
                "this Batcher belongs to another event loop, the one of its first call; make one Batcher in each event loop "
                "(they may share a runner), or call this one by asyncio.run_coroutine_threadsafe"
            )

    async def _start(self) -> None:
        self._model.batching = await self._batching()
        if self._cost is None:
            self._say(f"times of batches are not known (cost=, or await batcher.measure(artifact)): policy {self.policy}")
        cost = self._cost or GUESS
        self._scheduler.add(Lane(NAME, self._model.batching, cost, self._now(), self._queue))

    def _now(self) -> Policy:
        return dataclasses.replace(self._policy, name=self.policy)

    async def _batching(self) -> Batching:
        """How rows may share a batch, tried on this runner: padding changes the rows of some models."""
        found = self._model.batching
        if self._policy.max_rows == 1:
            return found
        found, note = await asyncio.to_thread(try_padding, self.runner, found, self._model.encoder)
        if note:
            self._say(note)
        return found

    def _most_rows(self, asked: int) -> int:
        """Not more rows than the engine takes."""
        most = min(asked, self._model.batching.most_rows(self.runner.profiles) or asked)
        if most < asked:
            self._say(f"a batch has up to {most} rows, not {asked}: the engine takes no more")
        return most

    def _rows(self, feeds: Feeds) -> list[Feeds]:
        """Each row as the engine takes it; what is wrong fails here, and not the batch that it would share with others."""
        arrays = {name: np.asarray(array) for name, array in feeds.items()}
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
        if self._model.batching.whole:
            rows = [self.runner.check(arrays)]
        elif len(set(counts.values())) != 1 or 0 in counts.values():
            found = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
            raise DataError(f"inputs need as many rows as each other, one or more; got {found}")
        else:
            rows = [
                self.runner.check({n: array[at : at + 1] for n, array in arrays.items()}) for at in range(max(counts.values()))
            ]
        if len(rows) > self._queue:
            raise TooLong(f"{len(rows)} rows; {self._queue} may wait at once (queue): send them in several requests")
        for row in rows:
            self._check_bounds(row)
        return rows

    def _check_bounds(self, row: Feeds) -> None:
        for name, size in self.runner.index_bounds.items():
            found = row.get(name)
            if found is not None and found.size and not (int(found.min()) >= 0 and int(found.max()) < size):
                raise DataError(f"input {name!r} has values from {found.min()} to {found.max()}; its table has {size} rows")

    def _check_text(self) -> None:
        if self._model.encoder is None:
            raise DataError("this artifact has no tokenizer: its source had none, or takes no text; give arrays to `infer`")

    def _say(self, note: str) -> None:
        self.notes.append(note)
        LOG.warning("%s", note)
