"""Many models in one memory: heads over one encoder, and unrelated models under a budget

MiniLM (float32, target onnxruntime) with a Dense head [384, 128] of its own for each model, in the server of `bertc serve`, two
workers of one thread; every model answered texts before memory was read. Memory is Pss of /proc/PID/smaps_rollup, summed over
the server and its workers: a page that several hold counts once. Times are medians; other work on the machine makes them longer,
memory it does not touch.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import bertc
from bertc.artifact import GOLDENS, GRAPH, MANIFEST, goldens, manifest, open_artifact
from bertc.core import Progress
from bertc.serve import Server, ServingConfig
from bertc.serve.config import ModelConfig
from bertc.serve.cost import read_cost, write_cost
from bertc.serve.model import Request
from bertc.targets import onnxruntime

from .tools import MODEL, table

COUNTS = (1, 12, 36)
WIDTH = 128
WORKERS = 2
FIT = 8
REQUESTS = 10_000
TEXTS = ("two words", "a somewhat longer text that an encoder reads", "how do I reset my password? " * 6)


def run() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        heads, small = build_heads(folder), build_small(folder)
        parts = [ways(heads[0])]
        for artifacts, measure in ((heads, of_one_encoder), (small, under_budget)):
            asyncio.run(measure_once(artifacts))
            parts.append(asyncio.run(measure(artifacts)))
    return "\n\n".join(parts)


# --- artifacts ---------------------------------------------------------------------------------------------------------------


def build_heads(folder: Path) -> list[Path]:
    """MiniLM with Dense heads of seeded weights: the first is built from sentence-transformers."""
    first = folder / "head0"
    if not first.exists():
        bertc.build(
            sentence_transformer(MODEL, folder / "source", 384, head=True), first, precision="fp32", targets=["onnxruntime"]
        )
    is_head = {(384, WIDTH), (WIDTH, 384), (WIDTH,)}
    return variants(first, lambda array: array.shape in is_head)


def sentence_transformer(encoder: Path, out: Path, width: int, head: bool) -> Path:
    """A folder of sentence-transformers: an encoder, mean pooling, and a Dense where there is a `head`."""
    import torch
    from sentence_transformers import SentenceTransformer, models

    torch.manual_seed(0)
    modules = [models.Transformer(str(encoder)), models.Pooling(width, "mean")]
    modules += [models.Dense(width, WIDTH, activation_function=torch.nn.Tanh())] if head else []
    SentenceTransformer(modules=modules, device="cpu").save(str(out))
    return out


def build_small(folder: Path) -> list[Path]:
    """BERTs of two layers, every matrix of its own."""
    import torch
    import transformers

    first, random = folder / "small0", folder / "random"
    if not first.exists():
        torch.manual_seed(0)
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
        transformers.BertModel(transformers.BertConfig(vocab_size=30522, **sizes)).eval().save_pretrained(random)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(MODEL / file, random / file)
        source = sentence_transformer(random, folder / "small-source", 128, head=False)
        bertc.build(source, first, precision="fp32", targets=["onnxruntime"])
    return variants(first, lambda array: array.ndim >= 2 and array.size > 2)


def variants(first: Path, changed: Callable[[np.ndarray], bool]) -> list[Path]:
    """The artifact, and others as a build writes them, the float weights that `changed` names drawn anew, and their goldens."""
    stem = first.name.removesuffix("0")
    return [first, *(variant(first, first.with_name(f"{stem}{seed}"), changed, seed) for seed in range(1, max(COUNTS)))]


def variant(first: Path, out: Path, changed: Callable[[np.ndarray], bool], seed: int) -> Path:
    if out.exists():
        return out
    shutil.copytree(first, out, ignore=shutil.ignore_patterns("*.onnx", MANIFEST))
    rng = np.random.default_rng(seed)
    model = onnx.load(first / GRAPH)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and changed(array):
            drawn = (rng.standard_normal(array.shape) * (array.std() or 0.02)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(drawn, tensor.name))
    onnx.save(model, out / GRAPH)
    os.link(out / GRAPH, out / onnxruntime.MODEL)
    facts = {key: value for key, value in open_artifact(first).manifest.items() if key not in ("files", "format")}
    runner = onnxruntime.open_file(out / GRAPH, facts)
    samples, _ = goldens.load_goldens(out / GOLDENS)
    goldens.save_goldens(out / GOLDENS, samples, [runner.run(sample.feeds) for sample in samples])
    manifest.write_manifest(out, facts, {})
    return out


async def measure_once(artifacts: Sequence[Path]) -> None:
    """Times of batches, measured for one of the artifacts and kept beside all: their graphs are the same."""
    server = Server(config(artifacts[:1]), Progress())
    await server.start()
    await server.close()
    times, _ = read_cost(open_artifact(artifacts[0]))
    assert times is not None
    for path in artifacts[1:]:
        write_cost(open_artifact(path), times)


# --- what was chosen, and why ------------------------------------------------------------------------------------------------


def ways(artifact: Path) -> str:
    """Sessions of one file, held in the ways that ONNX Runtime offers: memory of the sixth, and whether answers stay."""
    import subprocess

    rows = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.many_sessions", str(artifact), way]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        rows.append([WAYS[way], *done.stdout.strip().splitlines()[-1].split("\t")])
    head = [
        "weights of 6 sessions in one process",
        "MiB, 1 session",
        "MiB each more",
        "load, s",
        "8 tokens, ms",
        "128 tokens, ms",
    ]
    return table([*head, "MiB of all 6 after batches of 1,000 tokens", "bits as ordinary"], rows)


WAYS = {
    "ordinary": "ordinary sessions",
    "initializers": "given as shared OrtValues (`add_initializer`)",
    "unpacked": "given as shared OrtValues, `session.disable_prepacking`",
    "mapped": "mapped, packed ones too; an arena each",
    "chosen": "mapped, packed ones too; no arena (chosen)",
}


# --- heads over one encoder --------------------------------------------------------------------------------------------------


async def of_one_encoder(heads: Sequence[Path]) -> str:
    rows, one = [], 0.0
    for share, counts in ((True, COUNTS), (False, COUNTS[:2])):
        for count in counts:
            found = await weigh(heads[:count], share)
            one = one or found.total
            wanted = "<= 1.5" if share and count == max(COUNTS) else ""
            rows.append([found.how, str(count), *found.cells(), f"{found.total / one:.2f}", wanted])
    head = ["weights", "models", "server, MiB", f"{WORKERS} workers, MiB", "together, MiB", "start, s", "to one model", "wanted"]
    return f"{max(COUNTS)} heads over one encoder:\n\n" + table(head, rows)


@dataclasses.dataclass(frozen=True)
class Weighed:
    how: str
    server: float
    workers: float
    start: float

    @property
    def total(self) -> float:
        return self.server + self.workers

    def cells(self) -> list[str]:
        return [f"{self.server:.0f}", f"{self.workers:.0f}", f"{self.total:.0f}", f"{self.start:.1f}"]


async def weigh(artifacts: Sequence[Path], share: bool) -> Weighed:
    """The server runs in a process of its own: this one has torch in it."""
    names = ["share" if share else "own", *map(str, artifacts)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.many_served", *names, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"many_served exited with {process.returncode}")
    server, workers, start = map(float, out.decode().strip().splitlines()[-1].split("\t"))
    return Weighed("equal ones once" if share else "each worker its own", server, workers, start)


def pss(process: int | str = "self") -> float:
    """MiB."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def config(artifacts: Sequence[Path], **options: Any) -> ServingConfig:
    models = {path.name: ModelConfig(str(path)) for path in artifacts}
    return ServingConfig(workers=WORKERS, threads=1, models=models, **options)


# --- unrelated models under a budget -----------------------------------------------------------------------------------------


async def under_budget(artifacts: Sequence[Path]) -> str:
    """Requests that cycle through the models in random order; answers are held against those of runners without a server."""
    truth = {path.name: answers(path) for path in artifacts}
    size = await size_of(artifacts[0])
    server = Server(config(artifacts, memory=str(int(size * (FIT + 0.5)))), Progress())
    await server.start()
    try:
        found = await cycle(server, truth)
        facts = server.describe()["memory"]
    finally:
        await server.close()
    rows = [
        [f"{len(artifacts)} unrelated models, a budget of {FIT}: requests, answered wrongly or not", *found.requests],
        ["largest number of models loaded", f"{found.most}", f"<= {FIT}"],
        ["models' bytes, budget, MB", f"{facts['bytes'] / 1e6:.0f}, {facts['budget'] / 1e6:.0f}", ""],
        ["loads in workers, unloads", f"{found.loads:,}, {found.unloads:,}", ""],
        ["workers' memory after 2,000 requests, MiB", f"{found.early:.0f}", ""],
        [f"workers' memory after {REQUESTS:,} requests, MiB", f"{found.late:.0f}", "no growth"],
        ["answer of a loaded model, ms, median", f"{found.warm * 1e3:.1f}", ""],
        ["answer of a model that was unloaded, ms, median (99th)", f"{found.cold * 1e3:.1f} ({found.worst * 1e3:.1f})", ""],
    ]
    return table(["what", "measured", "wanted"], rows)


def answers(path: Path) -> list[np.ndarray]:
    runner = bertc.load(path)
    return [runner.embed([text])[0] for text in TEXTS]


async def size_of(path: Path) -> int:
    """What one of the models takes, as the server weighs it."""
    server = Server(config([path]), Progress())
    await server.start()
    try:
        return server.pool.ledger.size(path.name)
    finally:
        await server.close()


@dataclasses.dataclass
class Cycled:
    requests: tuple[str, str] = ("", "")
    most: int = 0
    loads: int = 0
    unloads: int = 0
    early: float = 0.0
    late: float = 0.0
    warm: float = 0.0
    cold: float = 0.0
    worst: float = 0.0


async def cycle(server: Server, truth: Mapping[str, Sequence[np.ndarray]]) -> Cycled:
    found, wrong, times = Cycled(), 0, {True: [0.0], False: [0.0]}
    counts = count_moves(server)
    for done, (name, at) in enumerate(order(list(truth)), 1):
        was = name in server.pool.ledger.loaded
        start = time.perf_counter()
        vectors, _ = await server.models[name].embed([TEXTS[at]], Request(60.0, truncate=False), False, None)
        times[was].append(time.perf_counter() - start)
        wrong += not np.array_equal(vectors[0], truth[name][at])
        found.most = max(found.most, len(server.pool.ledger.loaded))
        if done in (REQUESTS // 5, REQUESTS):
            weight = sum(map(pss, server.pool.processes))
            found.early, found.late = found.early or weight, weight
    found.requests = (f"{REQUESTS:,}, {wrong} wrong", "0 wrong, bit for bit")
    found.loads, found.unloads = counts["loads"], counts["unloads"]
    found.warm, found.cold = (statistics.median(times[was][1:]) for was in (True, False))
    found.worst = float(np.quantile(times[False][1:], 0.99))
    return found


def count_moves(server: Server) -> dict[str, int]:
    counts = {"loads": 0, "unloads": 0}

    def loaded(name: str, seconds: float) -> None:
        counts["loads"] += 1

    def unloaded(name: str) -> None:
        counts["unloads"] += 1

    server.pool.on_load, server.pool.on_unload = loaded, unloaded
    return counts


def order(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Every third request is for the model of the one before."""
    rng = np.random.default_rng(0)
    last = names[0]
    for number in range(REQUESTS):
        last = last if number % 3 == 2 else names[int(rng.integers(len(names)))]
        yield last, int(rng.integers(len(TEXTS)))
