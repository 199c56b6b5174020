"""A server as its own process, and clients against it: closed loops that keep it full, and Poisson arrivals at a rate."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from .real_text import sentences

Bodies = Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Answered:
    """What clients saw: seconds of each answer, statuses, the time from the first request to the last answer, and the
    processor time of the clients, who share the cores with the server here."""

    latency: np.ndarray
    statuses: dict[int, int]
    seconds: float
    own: float = 0.0

    @property
    def throughput(self) -> float:
        return len(self.latency) / self.seconds

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latency, share))


@contextlib.contextmanager
def server(*arguments: str, log: Path) -> Iterator[tuple[str, int]]:
    """(URL, process id) of `bertc serve ARGUMENTS`, stopped at the end."""
    command = [sys.executable, "-m", "bertc", "serve", *arguments, "--port", "0"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield _url(process, log), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _url(process: subprocess.Popen[bytes], log: Path, patience: float = 300) -> str:
    start = time.monotonic()
    while time.monotonic() - start < patience:
        found = re.search(r"serving at (http://\S+)", log.read_text("utf-8", "replace"))
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start:\n{log.read_text('utf-8', 'replace')}")


def closed(url: str, route: str, bodies: Bodies, clients: int) -> Answered:
    """Every body once, `clients` at a time: each client sends the next when it has its answer."""
    return asyncio.run(_closed(url, route, bodies, clients))


async def _closed(url: str, route: str, bodies: Bodies, clients: int) -> Answered:
    waiting, collect = iter(bodies), _Collector()

    async def client(session: aiohttp.ClientSession) -> None:
        for body in waiting:
            await collect.post(session, url + route, body)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return collect.answered(time.perf_counter() - start)


def arriving(url: str, route: str, bodies: Bodies, rate: float, seed: int = 0) -> Answered:
    """Every body once, at Poisson arrivals of `rate` a second, whatever the answers take."""
    return asyncio.run(_arriving(url, route, bodies, rate, seed))


async def _arriving(url: str, route: str, bodies: Bodies, rate: float, seed: int) -> Answered:
    collect = _Collector()
    times = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, len(bodies)))
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        tasks = []
        for at, body in zip(times, bodies, strict=True):
            await asyncio.sleep(max(0.0, at - (time.perf_counter() - start)))
            tasks.append(asyncio.create_task(collect.post(session, url + route, body)))
        await asyncio.gather(*tasks)
        return collect.answered(time.perf_counter() - start)


class _Collector:
    def __init__(self) -> None:
        self.latency: list[float] = []
        self.statuses: dict[int, int] = {}
        self.began = time.process_time()

    async def post(self, session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> None:
        start = time.perf_counter()
        async with session.post(url, json=body) as answer:
            await answer.read()
        self.latency.append(time.perf_counter() - start)
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1

    def answered(self, seconds: float) -> Answered:
        return Answered(np.asarray(self.latency), self.statuses, seconds, time.process_time() - self.began)


def texts(count: int, tokens: Callable[[str], int], mean: float = 30, longest: int = 256, seed: int = 0) -> list[str]:
    """`count` real texts whose tokens are about log-normal (sigma 0.75), of 3 to `longest`: runs of words of real sentences."""
    words = " ".join(sentences(1500)).split()
    draws = np.random.default_rng(seed).lognormal(math.log(mean) - 0.75**2 / 2, 0.75, count)
    rate = tokens(" ".join(words[:100])) / 100  # few enough that no tokenizer cuts them
    places = np.random.default_rng([seed, 1]).integers(0, len(words) - longest, count)
    made = []
    for wanted, at in zip(np.clip(draws, 3, longest), places, strict=True):
        made.append(" ".join(words[at : at + max(1, round((wanted - 2) / rate))]))
    return made


def pss(pid: int) -> int:
    """Bytes of memory of a process and its children, shared pages shared out."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    own = int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) * 1024  # type: ignore[index]
    return own + sum(pss(int(child)) for child in children if os.path.exists(f"/proc/{child}"))
