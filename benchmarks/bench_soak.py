"""Serving: a soak of 100,000 requests with faults

A small BERT (2 layers, width 64) with pooling, four workers of one thread, 32 clients in closed loops: of a hundred requests one
is malformed, one has a text that is too long, and every 10 seconds a worker is killed. Every answer is compared with
`bertc.load`, every fault with its own status. Memory is that of the server and its workers (Pss).
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

import bertc

from . import serving_load as load
from .tools import MODEL, table

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "100000"))
CLIENTS, WORKERS, KILL_EVERY, TEXTS = 32, 4, 10.0, 500
LONG = "word " * 600
BAD = (b"{", b'{"inputs": 3}', b'{"input": "x"}', b'{"inputs": []}', b"[[[[", b'{"inputs": "x", "dimensions": -1}')


def run() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = small(folder)
        runner = bertc.load(artifact)
        texts = load.texts(TEXTS, lambda text: runner.encode([text])["input_ids"].shape[1], longest=100)
        wanted = [runner.embed([text], normalize=True)[0] for text in texts]
        settings = (str(artifact), "--workers", str(WORKERS), "--threads", "1")
        with load.server(*settings, log=Path(os.environ.get("SOAK_LOG", folder / "server.log"))) as (url, pid):
            found = asyncio.run(soak(url, pid, texts, wanted))
            left = asyncio.run(answered(url))
    return found.text() + f"\n\nAfterwards the server answers: {left}."


def small(folder: Path) -> Path:
    """A sentence encoder of seeded weights with MiniLM's tokenizer."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    base = folder / "base"
    BertModel(BertConfig(**shape)).save_pretrained(base)
    AutoTokenizer.from_pretrained(MODEL, model_max_length=256).save_pretrained(base)
    word = models.Transformer(str(base), max_seq_length=256)
    SentenceTransformer(modules=[word, models.Pooling(64)]).save(str(folder / "source"))
    bertc.build(str(folder / "source"), folder / "small", precision="fp32", targets=["onnxruntime"])
    return folder / "small"


class Soak:
    """What came back."""

    def __init__(self) -> None:
        self.statuses: collections.Counter[tuple[str, int]] = collections.Counter()
        self.wrong: list[str] = []
        self.worst = 0.0
        self.kills = 0
        self.memory: list[tuple[float, int]] = []
        self.seconds = 0.0

    def text(self) -> str:
        rows = [[kind, str(status), str(count)] for (kind, status), count in sorted(self.statuses.items())]
        third = len(self.memory) // 3
        first, last = (np.median([m for _, m in part]) / 2**20 for part in (self.memory[third : 2 * third], self.memory[-third:]))
        return (
            f"{sum(self.statuses.values())} requests in {self.seconds:.0f} s, {self.kills} workers killed; wrong answers: "
            f"{len(self.wrong)} ({'; '.join(self.wrong[:3]) or 'none'}), farthest from `bertc.load` {self.worst:.1e}; memory "
            f"{first:.0f} MiB in the second third, {last:.0f} MiB in the last.\n\n"
            + table(["request", "status", "answers"], rows)
        )


async def soak(url: str, pid: int, texts: list[str], wanted: list[np.ndarray]) -> Soak:
    found, numbers = Soak(), iter(range(REQUESTS))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            await one(session, number)

    async def one(session: aiohttp.ClientSession, number: int) -> None:
        kind = {17: "malformed", 53: "too long"}.get(number % 100, "good")
        at = number % len(texts)
        body: Any = {"inputs": LONG if kind == "too long" else texts[at]}
        sent = {"data": BAD[number // 100 % len(BAD)]} if kind == "malformed" else {"json": body}
        async with session.post(f"{url}/embed", **sent) as answer:
            data = await answer.json()
        found.statuses[kind, answer.status] += 1
        if kind == "good" and answer.status == 200:
            off = float(np.abs(np.asarray(data[0]) - wanted[at]).max())
            found.worst = max(found.worst, off)
            if off > 1e-4:
                found.wrong.append(f"text {at} is {off:.1e} off")

    async def trouble() -> None:
        while True:
            for _ in range(int(KILL_EVERY)):
                await asyncio.sleep(1)
                found.memory.append((time.monotonic(), await asyncio.to_thread(load.pss, pid)))
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if children:
                os.kill(int(children[found.kills % len(children)]), signal.SIGKILL)
                found.kills += 1

    start = time.monotonic()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        disturbing = asyncio.create_task(trouble())
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
        disturbing.cancel()
    found.seconds = time.monotonic() - start
    return found


async def answered(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/embed", json={"inputs": "still there"}) as answer:
        return answer.status
