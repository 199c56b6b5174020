"""Serving: `bertc serve` against bare sessions, against itself without batching, and against its own simulation

all-MiniLM-L6-v2 in float32 on ONNX Runtime's CPU provider, two workers of one thread; requests of one text of log-normal length
(mean 30 tokens, 3 to 256) over HTTP on loopback, the clients on the same two cores. `bare` are two processes that run the same
rows one after the other, tokenized before, without a server. Rounds are interleaved; medians of the ratios of a round, with the
smallest and the largest.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import bertc
from bertc.artifact import open_artifact
from bertc.serve import simulate
from bertc.serve.cost import read_cost
from bertc.serve.planner import Policy
from bertc.serve.pool import ProcessPool

from . import serving_load as load
from .tools import MODEL, table

ROUNDS, REQUESTS, CLIENTS, WORKERS = 5, 600, 64, 2
FORMS = {
    "none": ("padded", "none"),
    "count": ("padded", "count"),
    "cost": ("padded", "cost"),
    "packed, none": ("packed", "none"),
    "packed, cost": ("packed", "cost"),
}
SHARES = (0.5, 0.8)
STARTS = 5
PADDED = "one padded batch, two threads"
COLD = """import sys, time
from pathlib import Path
from bertc.artifact import open_artifact
from bertc.data import Encoder
found = open_artifact(Path(sys.argv[1]))
names = [spec.name for spec in found.inputs]
times = [time.perf_counter()]
encoder = Encoder.from_directory(found.tokenizer, None, names, found.index_bounds.get("input_ids"))
for text in ("a first text that asks for a vector", "another one of the same length, about"):
    times.append(time.perf_counter())
    encoder.encode([text])
times.append(time.perf_counter())
print(*(after - before for before, after in zip(times, times[1:])))
"""


def run() -> str:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for form in ("padded", "packed"):
            bertc.build(str(MODEL), folder / form, precision="fp32", targets=["onnxruntime"], packed=form == "packed")
        runner = bertc.load(folder / "padded")
        texts = load.texts(REQUESTS, lambda text: runner.encode([text])["input_ids"].shape[1])
        encoder = runner.encoder()
        lengths = [int(encoder.encode([text])["input_ids"].shape[1]) for text in texts]
        bodies = [{"inputs": text, "truncate": True} for text in texts]
        servers = {}
        for title, (form, policy) in FORMS.items():
            settings = (str(folder / form), "--policy", policy, "--workers", str(WORKERS), "--threads", "1")
            servers[title], _ = stack.enter_context(load.server(*settings, log=folder / f"{title}.log"))
        parts = [
            saturated(folder, servers, bodies, texts, runner),
            latencies(folder, servers, bodies, lengths),
            reranking(folder),
            starts(folder),
        ]
    return f"{np.mean(lengths):.0f} tokens a text in the mean.\n\n" + "\n\n".join(parts)


def saturated(folder: Path, servers: dict[str, str], bodies: load.Bodies, texts: list[str], runner: Any) -> str:
    """Requests a second of each form with CLIENTS clients, over those of bare sessions and of the server without batching."""
    feeds = [runner.encode([text]) for text in texts]
    rates: dict[str, list[float]] = {name: [] for name in ("bare", *servers)}
    clients: list[float] = []
    with bare_sessions(folder / "padded") as bare:
        for number in range(-1, ROUNDS):
            found = {"bare": bare(feeds)}
            runs = {name: load.closed(url, "/embed", bodies, CLIENTS) for name, url in servers.items()}
            found |= {name: each.throughput for name, each in runs.items()}
            clients.append(np.mean([each.own for each in runs.values()]) / len(bodies))
            for name, rate in found.items():
                if number >= 0:
                    rates[name].append(rate)
    rows = []
    for name, each in rates.items():
        over = [ratios(each, rates[base]) for base in ("bare", "none")]
        told = predicted(folder, name, texts, runner, float(np.median(clients))) if name in FORMS else None
        off = "-" if told is None else f"{told:.0f} ({told / np.median(each) - 1:+.0%})"
        rows.append([name, f"{np.median(each):.0f}", *over, off])
    note = "wanted: `cost` at least 0.9 of bare; `packed, cost` at least 1.3 times `none`; predictions within 10 %"
    return f"Saturated, {CLIENTS} clients ({note}):\n\n" + table(
        ["form", "requests/s", "over bare", "over none", "predicted requests/s"], rows
    )


def with_clients(cost: Any, client: float) -> Any:
    """The times of a server whose clients work on its cores, as they do here: what they take is added to its own work."""
    return dataclasses.replace(cost, per_row=cost.per_row + client)


def ratios(ours: list[float], theirs: list[float]) -> str:
    found = np.asarray(ours) / np.asarray(theirs)
    return f"{np.median(found):.2f} ({found.min():.2f} to {found.max():.2f})"


def cost_of(folder: Path, form: str) -> Any:
    found, why = read_cost(open_artifact(folder / form))
    if found is None:
        raise RuntimeError(why)
    return found


def predicted(folder: Path, name: str, texts: list[str], runner: Any, client: float) -> float:
    """What the simulation says of the same requests. `client`: seconds of the same cores that a client takes for one."""
    form, policy = FORMS[name]
    lengths = [[int(runner.encode([text])["input_ids"].shape[1])] for text in texts]
    cost = with_clients(cost_of(folder, form), client)
    return float(simulate.simulate(simulate.Load(lengths, clients=CLIENTS), cost, Policy(policy), WORKERS).throughput)


@contextlib.contextmanager
def bare_sessions(artifact: Path) -> Iterator[Any]:
    """A function that runs rows one by one in WORKERS processes, and returns rows a second."""
    loop = asyncio.new_event_loop()
    pool = ProcessPool(WORKERS, 1)
    loop.run_until_complete(pool.start({"m": artifact}))

    async def rows(feeds: list[Any]) -> float:
        waiting = iter(feeds)

        async def one() -> None:
            for each in waiting:
                await pool.run("m", each)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(WORKERS)))
        return len(feeds) / (time.perf_counter() - start)

    yield lambda feeds: loop.run_until_complete(rows(feeds))
    loop.run_until_complete(pool.close())
    loop.close()


def latencies(folder: Path, servers: dict[str, str], bodies: load.Bodies, lengths: list[int]) -> str:
    """p50 and p99 at shares of the capacity without batching, and what the simulation says of them."""
    capacity = load.closed(servers["none"], "/embed", bodies, CLIENTS).throughput
    rows = []
    for share in SHARES:
        for name in ("none", "cost", "packed, cost"):
            runs = [load.arriving(servers[name], "/embed", bodies, share * capacity, seed) for seed in range(3)]
            form, policy = FORMS[name]
            cost = with_clients(cost_of(folder, form), float(np.mean([each.own for each in runs])) / len(bodies))
            told = [
                simulate.simulate(
                    simulate.Load([[n] for n in lengths], share * capacity, seed=seed), cost, Policy(policy), WORKERS
                )
                for seed in range(3)
            ]
            p50, p99 = (np.median([each.percentile(p) for each in runs]) * 1e3 for p in (50, 99))
            rows.append(
                [f"{share:.0%}", name, f"{p50:.0f}", f"{p99:.0f}", f"{np.median([t.percentile(99) for t in told]) * 1e3:.0f}"]
            )
    note = "wanted: p99 of `cost` no worse than of `none`; predictions within 25 %"
    return f"Poisson arrivals at shares of {capacity:.0f} requests/s, three runs of {len(bodies)} ({note}):\n\n" + table(
        ["load", "form", "p50, ms", "p99, ms", "predicted p99, ms"], rows
    )


def reranking(folder: Path) -> str:
    """One query with 100 candidates: the route against one padded batch on two threads, and candidates in their own order."""
    from .serving_rankers import rankers

    built = rankers(folder)
    runner = two_threads(built["padded"])
    candidates = load.texts(100, lambda text: runner.encode([text])["input_ids"].shape[1], mean=40, longest=200, seed=5)
    query = "how to install the package from source"
    pairs = [(query, each) for each in candidates]
    whole = runner.encode(pairs)
    wanted = runner.run(whole)["logits"][:, 0]
    body = {"query": query, "texts": candidates, "raw_scores": True, "truncate": True}
    settings = ("--workers", str(WORKERS), "--threads", "1")
    found: dict[str, list[float]] = {}
    off = 0.0
    with contextlib.ExitStack() as stack:
        routes = {}
        for form, path in built.items():
            log = folder / f"ranker-{form}.log"
            routes[f"route, {form}"], _ = stack.enter_context(load.server(str(path), *settings, log=log))
        forms: dict[str, Any] = {name: functools.partial(load.closed, url, "/rerank", [body], 1) for name, url in routes.items()}
        forms[PADDED] = lambda: runner.run(whole)
        forms["padded, in their order, 16 at a time"] = lambda: [
            runner.run(runner.encode(pairs[at : at + 16])) for at in range(0, 100, 16)
        ]
        for url in routes.values():
            off = max(off, float(np.abs(asyncio.run(_scores(url, body)) - wanted).max()))
        for _ in range(ROUNDS):
            for name, call in forms.items():
                found.setdefault(name, []).append(_seconds(call))
    rows = [[name, f"{np.median(each) * 1e3:.0f}", ratios(found[PADDED], each)] for name, each in found.items()]
    fill = float(whole["attention_mask"].mean())
    return (
        f"100 candidates, fill {fill:.2f} in one batch; scores from {wanted.min():.2f} to {wanted.max():.2f}, largest difference "
        f"{off:.1e} (wanted: one padded batch takes at least 2 times the route):\n\n"
        + table(["form", "ms", "one padded batch over it"], rows)
    )


def two_threads(artifact: Path) -> Any:
    """A session on both cores, whatever OMP_NUM_THREADS says: what one padded batch gets without a server."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(WORKERS)
    try:
        return bertc.load(artifact)
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def starts(folder: Path) -> str:
    """From the command to the first answer, its times known, and what a tokenizer costs that no process has loaded before."""
    found: dict[str, list[float]] = {}
    body = [{"inputs": "a first text that asks for a vector"}]
    for number in range(STARTS):
        began = time.perf_counter()
        settings = (str(folder / "padded"), "--workers", str(WORKERS), "--threads", "1")
        with load.server(*settings, log=folder / f"start{number}.log") as (url, _):
            found.setdefault("`bertc serve` until it listens", []).append(time.perf_counter() - began)
            for name in ("its first answer", "its second answer"):
                found.setdefault(name, []).append(float(load.closed(url, "/embed", body, 1).latency[0]))
        told = subprocess.run([sys.executable, "-c", COLD, folder / "padded"], capture_output=True, text=True, check=True).stdout
        for name, seconds in zip(("tokenizer: loaded", "its first text", "its second text"), told.split(), strict=True):
            found.setdefault(name, []).append(float(seconds))
    rows = [[name, f"{np.median(each) * 1e3:.1f}"] for name, each in found.items()]
    return f"Starts, medians of {STARTS}:\n\n" + table(["step", "ms"], rows)


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


async def _scores(url: str, body: dict[str, Any]) -> np.ndarray:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.post(f"{url}/rerank", json=body) as answer:
        ranked = await answer.json()
    return np.asarray([each["score"] for each in sorted(ranked, key=lambda each: each["index"])])
