"""Rows of requests to the workers: a queue a model, the planner's decisions, fair turns between models, one second try."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ..core import BertcError, Feeds, Outputs
from . import planner
from .batches import Batching
from .cost import CostModel
from .deaths import Deadly
from .errors import DeadlinePassed, Overloaded, Poisonous, Refused, TooLong, Unavailable, WorkerDied
from .planner import Policy, Row
from .pool import Pool

LOG = logging.getLogger("bertc.serve")
TRIES = 2  # of a batch whose worker died


class Watch(Protocol):
    """Told of every batch and refusal: what /metrics counts."""

    def batch(self, model: str, rows: int, tokens: int, computed: int, seconds: float) -> None: ...
    def waited(self, model: str, seconds: float) -> None: ...


@dataclasses.dataclass
class _Waiting:
    row: Row
    feeds: Feeds
    answer: asyncio.Future[Outputs]
    tries: int = 0


@dataclasses.dataclass
class Lane:
    """The queue of one model. `used`: the seconds of workers it had, by which turns are fair."""

    name: str
    batching: Batching
    cost: CostModel
    policy: Policy
    limit: int = 1024
    waiting: dict[int, _Waiting] = dataclasses.field(default_factory=dict)
    used: float = 0.0
    running: int = 0

    def wait_estimate(self, workers: int) -> float:
        """Seconds until what waits now is done, by the measured times: what Retry-After says."""
        tokens = np.array([each.row.tokens for each in self.waiting.values()], np.int64)
        return float(self.cost.seconds(np.ones_like(tokens), tokens, tokens).sum()) / max(workers, 1)


class Scheduler:
    """Queues for models over one pool. Everything runs in the event loop; only batches run elsewhere."""

    def __init__(self, pool: Pool, watch: Watch | None = None) -> None:
        self.pool, self.watch = pool, watch
        self.lanes: dict[str, Lane] = {}
        self.pool.on_free = self._turn
        self._keys = itertools.count()
        self._wake: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = 0  # batches that have a worker each, and have not asked the pool for it yet
        self._open = 0  # requests that are not answered
        self._deadly = Deadly()
        self.stopped = False

    @property
    def free(self) -> int:
        """How many batches can start now."""
        return self.pool.free - self._starting

    def add(self, lane: Lane) -> None:
        """Take requests for a model; a new lane starts level with the others."""
        lane.used = min((each.used for each in self.lanes.values()), default=0.0)
        self.lanes[lane.name] = lane

    async def submit(self, model: str, rows: Sequence[Feeds], deadline: float = math.inf) -> list[Outputs]:
        """The outputs of each row. `deadline`: seconds from now.

        Raises TooLong, Overloaded, DeadlinePassed, Poisonous, Unavailable, BertcError.

        Rows of a request that is given up, by its deadline or because the caller went away, leave the queue.
        """
        lane = self.lanes[model]
        loop = asyncio.get_running_loop()
        if self.stopped:
            raise Unavailable("the server is stopping", 1.0)
        if len(rows) > lane.limit:
            raise TooLong(f"{len(rows)} rows; {lane.limit} may wait at once (limits.queue): send them in several requests")
        if len(lane.waiting) + len(rows) > lane.limit:
            raise Overloaded(
                f"{len(lane.waiting)} rows wait for {model!r}, {len(rows)} more are over the limit of {lane.limit}",
                lane.wait_estimate(self.free + lane.running),
            )
        now = loop.time()
        if any(self._deadly.holds(lane.name, feeds, now) for feeds in rows):
            raise Poisonous(f"{TRIES} workers crashed on this request a short while ago; {model!r} does not run it again")
        made = [self._enqueue(lane, feeds, now, deadline, loop.create_future()) for feeds in rows]
        answers = [each.answer for each in made]
        self._open += 1
        try:
            self._turn()
            async with asyncio.timeout(None if math.isinf(deadline) else deadline):
                return list(await asyncio.gather(*answers))
        except TimeoutError as error:
            raise DeadlinePassed(f"not answered within {deadline:g} s") from error
        finally:
            self._open -= 1
            for each in made:
                lane.waiting.pop(each.row.key, None)
                each.answer.cancel()

    def _enqueue(self, lane: Lane, feeds: Feeds, now: float, deadline: float, answer: asyncio.Future[Outputs]) -> _Waiting:
        key = next(self._keys)
        row = Row(key, lane.batching.tokens(feeds), now, now + deadline, lane.batching.group(feeds))
        made = _Waiting(row, feeds, answer)
        if not lane.waiting and not lane.running:
            self._level(lane)
        lane.waiting[key] = made
        return made

    def _level(self, lane: Lane) -> None:
        """A model that was idle has no claim on the time that it did not use."""
        busy = [each.used for each in self.lanes.values() if each is not lane and (each.waiting or each.running)]
        lane.used = max(lane.used, min(busy, default=lane.used))

    def _turn(self) -> None:
        """Start what can be started. The model that had the least of the workers' time is asked first."""
        now = asyncio.get_running_loop().time()
        soonest = math.inf
        for lane in sorted((each for each in self.lanes.values() if each.waiting), key=lambda each: each.used):
            while self.free > 0 and lane.waiting:
                oldest = [each.row for each in itertools.islice(lane.waiting.values(), planner.WINDOW)]
                found = planner.plan(oldest, now, lane.cost, lane.policy)
                if not found.run:
                    soonest = min(soonest, found.wait)
                    break
                self._start(lane, [lane.waiting.pop(key) for key in found.run], now)
                if len(self.lanes) > 1:
                    break
        again = len(self.lanes) > 1 and self.free > 0 and any(each.waiting for each in self.lanes.values())
        self._wake_in(0.0 if again and math.isinf(soonest) else soonest)

    def _wake_in(self, seconds: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if not math.isinf(seconds):
            self._wake = asyncio.get_running_loop().call_later(seconds, self._turn)

    def _start(self, lane: Lane, rows: list[_Waiting], now: float) -> None:
        lane.running += 1
        self._starting += 1
        lane.used += lane.cost.one([each.row.tokens for each in rows])
        if self.watch is not None:
            for each in rows:
                self.watch.waited(lane.name, now - each.row.arrived)
        task = asyncio.create_task(self._run(lane, rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, lane: Lane, rows: list[_Waiting]) -> None:
        feeds = [each.feeds for each in rows]
        self._starting -= 1  # the pool is asked before anything else happens: stack does not wait
        try:
            outputs, seconds = await self.pool.run(lane.name, lane.batching.stack(feeds))
            for each, found in zip(rows, lane.batching.split(outputs, feeds), strict=True):
                _settle(each, found)
            self._tell(lane, rows, seconds)
        except WorkerDied as error:
            for each in rows:
                each.tries += 1
            for each in rows:
                if each.tries >= TRIES:
                    self._give_up(lane, each, str(error))
            self._again(lane, rows)
        except Exception as error:  # whatever went wrong in a row is the answer of its request; the scheduler goes on
            if len(rows) > 1:
                LOG.info("a batch of %d rows of %s failed, and its rows run one by one: %s", len(rows), lane.name, error)
                self._again(lane, rows)
                return
            if not isinstance(error, (BertcError, Refused)):
                LOG.exception("a batch of %s failed", lane.name)
            _settle(rows[0], error)
        finally:
            lane.running -= 1
            self._turn()

    def _give_up(self, lane: Lane, waiting: _Waiting, why: str) -> None:
        """`why`: we ended the worker, as one that hangs. The machine may have stood still; a crash is the request's."""
        if not why:
            self._deadly.add(lane.name, waiting.feeds, asyncio.get_running_loop().time())
        told = f": {why}" if why else ""
        LOG.error("%d workers ended while they ran a request for %s%s", TRIES, lane.name, told or ", which is not run again")
        _settle(waiting, Unavailable(f"{TRIES} workers ended while they ran this request{told}"))

    def _again(self, lane: Lane, rows: list[_Waiting]) -> None:
        """Back into the queue, before what came later. Each runs by itself now: one may be at fault, the others are not."""
        back = [each for each in rows if not each.answer.done()]
        for each in back:
            each.row = dataclasses.replace(each.row, group=-1 - each.row.key)
        lane.waiting = dict(sorted(({each.row.key: each for each in back} | lane.waiting).items()))

    def _tell(self, lane: Lane, rows: list[_Waiting], seconds: float) -> None:
        if self.watch is None:
            return
        lengths = [each.row.tokens for each in rows]
        computed = sum(lengths) if lane.cost.packed else len(lengths) * max(lengths)
        self.watch.batch(lane.name, len(rows), sum(lengths), computed, seconds)

    async def empty(self, name: str) -> None:
        """Wait until a model has no request left, and forget it."""
        lane = self.lanes[name]
        while lane.waiting or lane.running:
            await asyncio.sleep(0.01)
        del self.lanes[name]

    async def drain(self) -> None:
        """Take no more requests, and answer those that are here. A batch that nobody waits for any more is not waited for."""
        self.stopped = True
        while self._open:
            await asyncio.sleep(0.01)


def _settle(waiting: _Waiting, found: Any) -> None:
    if waiting.answer.done():
        return
    if isinstance(found, BaseException):
        waiting.answer.set_exception(found)
    else:
        waiting.answer.set_result(found)
