"""What the server itself does for a row: reading HTTP, tokenizing, planning, writing the answer. It takes cores from the workers.

Real requests come over loopback from another process, and the processor time of this one is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import json
import socket
import sys
import time
import urllib.parse
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

from ...artifact import open_artifact
from ...core import BertcError, Feeds, Progress, allowed_cores
from ...data import synthetic
from ..config import ServingConfig
from ..cost import CostModel, read_cost, write_cost
from ..errors import WorkerDied
from ..measure import sizes_of
from ..metrics import Metrics
from ..model import EMBEDDING, LOGITS, ServedModel
from ..server import Server
from .app import uvicorn_over
from .oip import NAMES

TEXT = "A request of thirty tokens or so, as people send them to a search page: which of the packages reads audio files best?"
REQUESTS, CLIENTS = 120, 8
FEWEST = 10
SECONDS = 3.0  # a slow model is asked less often


async def measured(config: ServingConfig, log: Progress) -> CostModel:
    """The times of the one artifact of a config, from beside it or measured now with its workers and threads."""
    ((name, each),) = config.models.items()
    cost, _ = read_cost(open_artifact(Path(each.artifact)))
    if cost is not None and cost.per_row is not None and (cost.workers, cost.threads) == config.cores():
        return cost
    server = Server(config, log)
    try:
        await server.start()
        await measure_own_work(server)
        return server.scheduler.lanes[name].cost
    finally:
        await server.close()


async def measure_own_work(server: Server) -> None:
    """Give the times of every model of a started server their `per_row`, where it is not known, and keep them.

    Models of the same times (their graphs differ in weights alone) are measured once. Where the workers leave a core free the
    server has that one, and a row costs them nothing.
    """
    free = len(allowed_cores()) > server.workers * server.threads
    known: dict[int, float | None] = {}
    for name, model in server.models.items():
        lane = server.scheduler.lanes[model.lane]
        if lane.cost.per_row is not None:
            continue
        if (same := id(lane.cost)) not in known:
            try:
                known[same] = 0.0 if free else await _own_work(server, model)
            except (BertcError, WorkerDied, OSError) as error:
                known[same] = None
                server.log.note(f"{name}: the server's own work for a row is not measured, and left out of predictions: {error}")
        lane.cost = dataclasses.replace(lane.cost, per_row=known[same])
        with contextlib.suppress(BertcError):  # the server has said that times cannot be kept here
            write_cost(server.artifacts[name], lane.cost)


async def _own_work(server: Server, model: ServedModel) -> float:
    """Seconds of this process for a row, without what its batch takes: the times of batches have that."""
    body, path = _request(server, model)
    count = _Batches()
    watch, server.scheduler.watch = server.scheduler.watch, count
    try:
        async with _listening(server) as url:
            await _knock(url, path, body, 2 * CLIENTS)  # to warm up
            count.batches, start = 0, time.process_time()
            answered = await _knock(url, path, body, REQUESTS)
            whole = time.process_time() - start
    finally:
        server.scheduler.watch = watch
    return max(whole - count.batches * await _dispatch(server, model), 0.0) / answered


class _Batches:
    """What the scheduler tells, instead of /metrics: these are nobody's requests."""

    batches = 0

    def batch(self, model: str, rows: int, tokens: int, computed: int, seconds: float) -> None:
        self.batches += 1

    def waited(self, model: str, seconds: float) -> None:
        return


async def _dispatch(server: Server, model: ServedModel) -> float:
    """Seconds of this process for handing a batch of one row to a worker and taking its answer."""
    feeds = _row(server, model)
    start, before = time.perf_counter(), time.process_time()
    runs = 0
    while runs < FEWEST or (runs < REQUESTS and time.perf_counter() - start < SECONDS / 2):
        await server.pool.run(model.lane, feeds)
        runs += 1
    return (time.process_time() - before) / runs


def _request(server: Server, model: ServedModel) -> tuple[bytes, str]:
    """(a body, the path) of a request of one row, by the route that users of such a model call."""
    query = "?" + urllib.parse.urlencode({"model": model.name})
    logits = model.output(LOGITS)
    if model.encoder is not None and model.output(EMBEDDING) is not None:
        return json.dumps({"inputs": TEXT, "truncate": True}).encode(), "/embed" + query
    if model.encoder is not None and logits is not None and len(logits.dims) == 2:
        return json.dumps({"inputs": TEXT, "truncate": True}).encode(), "/predict" + query
    tensors = [
        {"name": name, "shape": array.shape, "datatype": NAMES[array.dtype.name], "data": array.ravel().tolist()}
        for name, array in _row(server, model).items()
    ]
    return json.dumps({"inputs": tensors}).encode(), f"/v2/models/{urllib.parse.quote(model.name)}/infer"


def _row(server: Server, model: ServedModel) -> Feeds:
    """Feeds of one row of about 32 tokens."""
    found = server.artifacts[model.name]
    length, batch = sizes_of(found)
    limits = found.dims[length]
    sizes = {length: min(max(32, limits.min), limits.max or 32)} | ({batch: 1} if batch else {})
    return synthetic.sample_at(found.graph(mapped=True), found.dims, sizes, 7).feeds


@contextlib.asynccontextmanager
async def _listening(server: Server) -> AsyncIterator[str]:
    """The application at a port of its own on loopback, its requests not counted in /metrics."""
    beside = copy.copy(server)
    beside.metrics = Metrics()
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        runner = uvicorn_over(beside)
        task = asyncio.create_task(runner.serve([bound]))
        try:
            yield "http://{}:{}".format(*bound.getsockname())
        finally:
            runner.should_exit = True
            await task


async def _knock(url: str, path: str, body: bytes, requests: int) -> int:
    """How many of `requests` another process has sent, CLIENTS at a time, within SECONDS. BertcError where one is refused."""
    facts = json.dumps({"url": url, "path": path, "requests": requests, "clients": CLIENTS, "seconds": SECONDS}).encode()
    command = (sys.executable, "-m", "bertc.serve.http.knock")
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    out, said = await process.communicate(facts + b"\n" + body)
    if process.returncode:
        why = said.decode(errors="replace").strip() or f"exit {process.returncode}"
        raise BertcError(f"requests to its own port failed: {why}")
    return int(out)
