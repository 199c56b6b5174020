"""Who runs batches: worker processes, replaced when they die, or threads of this process."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..artifact import MANIFEST, Stamps
from ..core import BertcError, Feeds, Missing, Outputs, hash_file
from . import memory
from .deaths import WINDOW, Recent, reason
from .errors import Unavailable, WorkerDied
from .frames import SIZES, Head, pack, unpack_arrays, unpack_head

if TYPE_CHECKING:
    from ..runtime import Runner

LOG = logging.getLogger("bertc.serve")
PAUSES = (0.5, 30.0)  # seconds before another start, after the first that failed and at most
LOADS = 10  # times the patience for a batch: to load or prepare a model
FOREVER = 1e7  # seconds
SETTLE = 0.1  # seconds after a death: what killed one worker may have killed the next, and that is not heard yet
ERRORS: Mapping[str, type[Exception]] = {"missing": Missing, "ours": BertcError, "": RuntimeError}


class Pool(Protocol):
    """Runs batches; `free` says how many more it would start at once, `on_free` is called when that grows."""

    on_free: Callable[[], None]

    @property
    def free(self) -> int: ...
    async def run(self, model: str, feeds: Feeds) -> tuple[Outputs, float]: ...


class ThreadPool:
    """Runners of this process, each batch in a thread: what computes lets Python go on."""

    def __init__(self, runners: Mapping[str, Runner], threads: int = 1) -> None:
        self.runners = runners
        self.on_free: Callable[[], None] = lambda: None
        self.size, self.busy = threads, 0
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, "bertc-batch")

    @property
    def free(self) -> int:
        return self.size - self.busy

    async def run(self, model: str, feeds: Feeds) -> tuple[Outputs, float]:
        """The outputs of a batch, and the seconds it took."""
        loop = asyncio.get_running_loop()
        self.busy += 1
        try:
            start = loop.time()
            outputs = await loop.run_in_executor(self._threads, self.runners[model].run, feeds)
            return outputs, loop.time() - start
        finally:
            self.busy -= 1
            self.on_free()

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()


@dataclasses.dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answers: dict[int, asyncio.Future[tuple[Head, dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    loaded: set[str] = dataclasses.field(default_factory=set)
    alive: bool = True
    why: str = ""  # it was ended


class ProcessPool:
    """Worker processes. A batch whose worker dies raises WorkerDied, and another worker takes its place.

    Every worker has every model, or, under a budget of memory, loads what its batches need. `share`: whether equal weights are
    held once for all of them. `patience`: seconds in which a worker answers a batch, or is ended as one that hangs.
    """

    def __init__(
        self, size: int, threads: int, budget: int | None = None, share: bool = True, patience: float = math.inf
    ) -> None:
        self.patience = patience
        self.size, self.threads, self.share = size, threads, share
        self.on_free: Callable[[], None] = lambda: None
        self.on_death: Callable[[], None] = lambda: None
        self.on_load: Callable[[str, float], None] = lambda name, seconds: None
        self.on_unload: Callable[[str], None] = lambda name: None
        self.limits: dict[str, list[Any]] = {}
        self.ledger = memory.Ledger(budget, size)
        self.models: dict[str, dict[str, Any]] = {}  # how each is loaded: the fields of preparing.Prepared
        self.store: Path | None = None
        self._closers = contextlib.ExitStack()
        self._moving = asyncio.Lock()  # models are loaded and unloaded one at a time
        self._idle: collections.deque[_Worker] = collections.deque()
        self._workers: list[_Worker] = []
        self._wanted: collections.deque[asyncio.Future[_Worker]] = collections.deque()
        self._jobs, self._deaths = 0, Recent()
        self._closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def free(self) -> int:
        return len(self._idle)

    @property
    def alive(self) -> int:
        """How many workers are ready or at work."""
        return len(self._workers)

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    async def start(self, models: Mapping[str, Path], seen: Mapping[str, Stamps] | None = None) -> None:
        """Start the workers, one after the other: they load the same files.

        `seen`: the stamps of files that were hashed. BertcError where an artifact cannot be loaded.
        """
        if self.share and self.size * len(models) > 1:
            self.store = self._closers.enter_context(memory.folder())
        try:
            await self._prepare(models, seen or {})
            for _ in range(self.size):
                await self._add()
        except BaseException:
            await self.close()
            raise

    async def _prepare(self, models: Mapping[str, Path], seen: Mapping[str, Stamps]) -> None:
        """Open and weigh artifacts, and write what they share, in a process that ends then: what that took is given back."""
        if self.store is None and self.ledger.budget is None:
            for name, path in models.items():
                self._know(name, {"path": str(path), "digest": hash_file(path / MANIFEST), "seen": dict(seen.get(name, {}))})
            return
        worker = await self._spawn()
        try:
            for name, path in models.items():
                asked = {"path": str(path), "folder": str(self.store or ""), "seen": dict(seen.get(name, {}))}
                made, _ = await self._ask(worker, Head("prepare", model=name, facts=asked))
                self._know(name, made.facts | {"seen": asked["seen"]})
        except WorkerDied as error:
            raise BertcError(f"the process that loads {name} from {path} ended ({worker.process.wait()})") from error
        finally:
            worker.writer.close()
            await asyncio.to_thread(_end, worker.process)

    def _know(self, name: str, facts: dict[str, Any]) -> None:
        self.ledger.know(name, memory.Need(facts.get("weights", {}), facts.get("private", 0)))
        self.models[name] = facts
        self.limits[name] = facts.get("profiles", [])

    async def _add(self) -> None:
        worker = await self._spawn()
        try:
            async with self._moving:  # a reload that adds one waits
                for name in tuple(self.models) if self.ledger.budget is None else ():
                    self.ledger.use(name)
                    await self._load(worker, name)
                self._workers.append(worker)
        except BaseException:
            worker.writer.close()
            worker.process.kill()
            worker.process.wait()
            raise
        self._release(worker)

    def _release(self, worker: _Worker) -> None:
        """A worker that has nothing to do: for who waits for one, else for the scheduler."""
        while self._wanted:
            asker = self._wanted.popleft()
            if not asker.done():
                asker.set_result(worker)
                return
        self._idle.append(worker)
        self.on_free()

    async def _take(self) -> _Worker:
        """An idle worker, waited for where there is none."""
        while not self._idle:
            if self._closing:
                raise Unavailable("the server is stopping", 1.0)
            asker: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
            self._wanted.append(asker)
            try:
                worker = await asker
            except asyncio.CancelledError:
                if asker.done() and not asker.cancelled() and asker.result().alive:
                    self._release(asker.result())
                raise
            if worker.alive:
                return worker
        return self._idle.popleft()

    async def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "bertc.serve.worker", str(theirs.fileno()), str(os.getpid())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment)
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=2**24)
        worker = _Worker(process, reader, writer)
        self._keep(asyncio.create_task(self._listen(worker)))
        return worker

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, worker: _Worker, name: str) -> None:
        asked = {key: value for key, value in self.models[name].items() if key in ("path", "saved", "digest", "seen")}
        head, _ = await self._ask(worker, Head("load", model=name, facts=asked))
        worker.loaded.add(name)
        self.limits[name] = head.facts["profiles"]
        self.on_load(name, head.facts["seconds"])
        LOG.info("loaded %s in worker %d: %.2f s", name, worker.process.pid, head.facts["seconds"])

    async def _unload(self, name: str) -> None:
        """Wait until no worker has a model. What a worker was asked before, it does before."""
        for worker in [each for each in self._workers if name in each.loaded]:
            worker.loaded.discard(name)
            with contextlib.suppress(WorkerDied):  # its memory is gone with it
                await self._ask(worker, Head("unload", model=name))
        self.on_unload(name)
        LOG.info("unloaded %s", name)

    async def _ready(self, worker: _Worker, name: str) -> None:
        """A worker that is about to run a model has it. Nothing is awaited between the last look and the return."""
        if name in worker.loaded and name in self.ledger.loaded:
            self.ledger.use(name)
            return
        async with self._moving:
            for old in self.ledger.use(name):
                await self._unload(old)
            try:
                if name not in worker.loaded:
                    await self._load(worker, name)
            except (WorkerDied, BertcError, RuntimeError):
                if not any(name in each.loaded for each in self._workers):
                    self.ledger.loaded.pop(name, None)
                raise

    async def replace(self, name: str, path: Path, other: str, seen: Stamps) -> None:
        """Load an artifact under the name `other` in every worker, beside the one that is there."""
        await self._prepare({other: path}, {other: seen})
        try:
            if self.ledger.budget is None:
                await self._load_everywhere(other)
        except BaseException:
            await self.drop(other)
            raise
        LOG.info("%s: the workers have %s", name, path)

    async def _load_everywhere(self, name: str) -> None:
        async with self._moving:
            self.ledger.use(name)
            for worker in tuple(self._workers):
                with contextlib.suppress(WorkerDied):  # its successor loads it
                    await self._load(worker, name)
            if not any(name in worker.loaded for worker in self._workers):
                raise WorkerDied("no worker lives")

    async def drop(self, name: str) -> None:
        """Unload a model in every worker, and forget it."""
        async with self._moving:
            await self._unload(name)
            alone = self.ledger.forget(name)
            self.models.pop(name, None)
            self.limits.pop(name, None)
            if self.store is not None:
                memory.Store(self.store).remove(name, alone)

    async def run(self, model: str, feeds: Feeds) -> tuple[Outputs, float]:
        """The outputs of a batch, and the seconds it took. WorkerDied where its process ended, BertcError for a refused batch."""
        worker = self._idle.popleft() if self._idle else await self._take()
        try:
            await self._ready(worker, model)
            head, outputs = await self._ask(worker, Head("run", model=model), feeds)
            return outputs, float(head.facts["seconds"])
        except WorkerDied:
            await asyncio.sleep(SETTLE)
            raise
        finally:
            if worker.alive:
                self._release(worker)

    async def _ask(self, worker: _Worker, head: Head, arrays: Feeds | None = None) -> tuple[Head, dict[str, Any]]:
        self._jobs += 1
        head.job = self._jobs
        answer: asyncio.Future[tuple[Head, dict[str, Any]]] = asyncio.get_running_loop().create_future()
        if not worker.alive:
            raise WorkerDied
        worker.answers[head.job] = answer
        patience = self.patience if head.op == "run" else LOADS * self.patience
        watch = (
            asyncio.get_running_loop().call_later(patience, self._hangs, worker, head, patience) if patience < FOREVER else None
        )
        try:
            worker.writer.writelines(pack(head, arrays))
            found = await answer
        finally:
            worker.answers.pop(head.job, None)
            if watch is not None:
                watch.cancel()
        if found[0].op == "failed":
            raise ERRORS[found[0].facts["kind"]](found[0].facts["error"])
        return found

    def _hangs(self, worker: _Worker, head: Head, seconds: float) -> None:
        worker.why = f"no answer within {seconds:g} s"
        LOG.error("worker %d is ended: no answer to %s of %s within %g s", worker.process.pid, head.op, head.model, seconds)
        worker.process.kill()  # its end is heard as any other's

    async def _listen(self, worker: _Worker) -> None:
        """Hand on a worker's answers until it hangs up."""
        try:
            while True:
                head_bytes, data_bytes = SIZES.unpack(await worker.reader.readexactly(SIZES.size))
                head = unpack_head(await worker.reader.readexactly(head_bytes))
                arrays = unpack_arrays(head, await worker.reader.readexactly(data_bytes))
                answer = worker.answers.get(head.job)
                if answer is not None and not answer.done():
                    answer.set_result((head, arrays))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except Exception:  # what a worker says cannot be read: it is ended, and another one started
            LOG.exception("worker %d answered something that is no answer", worker.process.pid)
            worker.process.kill()
        self._died(worker)

    def _died(self, worker: _Worker) -> None:
        worker.alive = False
        worker.writer.close()
        known = worker in self._workers
        if known:
            self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        for answer in worker.answers.values():
            if not answer.done():
                answer.set_exception(WorkerDied(worker.why))
        if known and not self._closing:
            self.on_death()
            self._keep(asyncio.create_task(self._revive(worker)))

    async def _revive(self, dead: _Worker) -> None:
        """Start another worker, again and again with longer pauses: what is wrong may be mended while the server runs."""
        often = self._deaths.count(asyncio.get_running_loop().time())
        why = reason(await asyncio.to_thread(_end, dead.process))
        LOG.warning("worker %d ended (%s), %d within %g s; another is started", dead.process.pid, why, often, WINDOW)
        pause, most = PAUSES
        while not self._closing:
            try:
                await self._add()
                return
            except (WorkerDied, BertcError, RuntimeError, OSError) as error:
                LOG.error("a new worker failed (%d live; the next try is in %g s): %s", self.alive, pause, error or "it ended")
                await asyncio.sleep(pause)
                pause = min(2 * pause, most)

    async def close(self) -> None:
        """Hang up on the workers and wait for them to end."""
        self._closing = True
        for asker in self._wanted:
            asker.cancel()
        for worker in tuple(self._workers):
            worker.writer.close()
        await asyncio.gather(*(asyncio.to_thread(_end, worker.process) for worker in self._workers))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._closers.close()


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
