"""Who runs batches: worker processes, replaced when they die, or threads of this process."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..artifact import MANIFEST
from ..core import BertcError, Feeds, Missing, Outputs, hash_file
from .errors import Unavailable, WorkerDied
from .frames import SIZES, Head, pack, unpack_arrays, unpack_head

if TYPE_CHECKING:
    from ..runtime import Runner

LOG = logging.getLogger("bertc.serve")
PAUSES = (0.5, 30.0)  # seconds before another start, after the first that failed and at most
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
    alive: bool = True


class ProcessPool:
    """Worker processes. A batch whose worker dies raises WorkerDied, and another worker takes its place."""

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads = size, threads
        self.on_free: Callable[[], None] = lambda: None
        self.on_death: Callable[[], None] = lambda: None
        self.models: dict[str, Path] = {}
        self.limits: dict[str, list[Any]] = {}
        self._idle: collections.deque[_Worker] = collections.deque()
        self._workers: list[_Worker] = []
        self.hashes: dict[str, str] = {}  # of the manifests: a worker that comes later loads the same artifact or none
        self._wanted: collections.deque[asyncio.Future[_Worker]] = collections.deque()
        self._jobs = 0
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

    async def start(self, models: Mapping[str, Path]) -> None:
        """Start the workers, one after the other: they load the same files. BertcError where an artifact cannot be loaded."""
        self.models = dict(models)
        self.hashes = {name: hash_file(path / MANIFEST) for name, path in models.items()}
        for _ in range(self.size):
            await self._add()

    async def _add(self) -> None:
        worker, loaded = await self._spawn(), set[str]()
        try:
            while more := [name for name in self.models if name not in loaded]:  # a reload may add one meanwhile
                await self._load(worker, more[0], self.models[more[0]])
                loaded.add(more[0])
        except BaseException:
            worker.writer.close()
            worker.process.kill()
            worker.process.wait()
            raise
        self._workers.append(worker)
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

    async def _load(self, worker: _Worker, name: str, path: Path) -> None:
        head, _ = await self._ask(worker, Head("load", model=name, facts={"path": str(path), "hash": self.hashes.get(name)}))
        self.limits[name] = head.facts["profiles"]
        LOG.info("loaded %s in worker %d: %.2f s", name, worker.process.pid, head.facts["seconds"])

    async def replace(self, name: str, path: Path, other: str) -> None:
        """Load an artifact under the name `other` in every worker, beside the one that is there."""
        self.hashes[other] = hash_file(path / MANIFEST)
        self.models[other] = path  # a worker that starts meanwhile loads it too
        try:
            for worker in tuple(self._workers):
                with contextlib.suppress(WorkerDied):  # its successor loads it
                    await self._load(worker, other, path)
            if other not in self.limits:
                raise WorkerDied("no worker lives")
        except BaseException:
            await self.drop(other)
            raise
        LOG.info("%s: every worker has %s", name, path)

    async def drop(self, name: str) -> None:
        """Unload a model in every worker."""
        self.models.pop(name, None)
        for worker in tuple(self._workers):
            with contextlib.suppress(WorkerDied):
                await self._ask(worker, Head("unload", model=name))

    async def run(self, model: str, feeds: Feeds) -> tuple[Outputs, float]:
        """The outputs of a batch, and the seconds it took. WorkerDied where its process ended, BertcError for a refused batch."""
        worker = self._idle.popleft() if self._idle else await self._take()
        try:
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
        try:
            worker.writer.writelines(pack(head, arrays))
            found = await answer
        finally:
            worker.answers.pop(head.job, None)
        if found[0].op == "failed":
            raise ERRORS[found[0].facts["kind"]](found[0].facts["error"])
        return found

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
                answer.set_exception(WorkerDied())
        if known and not self._closing:
            self.on_death()
            self._keep(asyncio.create_task(self._revive(worker)))

    async def _revive(self, dead: _Worker) -> None:
        """Start another worker, again and again with longer pauses: what is wrong may be mended while the server runs."""
        code = await asyncio.to_thread(_end, dead.process)
        LOG.warning("worker %d ended (exit %d); another is started", dead.process.pid, code)
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


def _end(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
