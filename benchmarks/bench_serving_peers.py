"""Serving: other servers and their policies on the same artifact

all-MiniLM-L6-v2 in float32 on ONNX Runtime's CPU provider, two workers of one thread each, the requests of `serving`: one text of
log-normal length, 64 clients in closed loops on the same two cores. LitServe and Ray Serve batch by count as their pages show it
(8 requests or 5 ms). The policy of text-embeddings-inference over ONNX Runtime (core/src/queue.rs, backends/ort/src/lib.rs): what
waits, in order, up to 16,384 padded tokens and 8 requests, without a wait, in one session of all cores; `bertc serve` runs it
here, as its own server is no package. Rounds are interleaved; medians of the ratios of a round, with their range.

BERTC_SERVING_PEERS names a Python that has litserve, ray[serve] and bertc.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import bertc

from . import serving_load as load
from .bench_serving import CLIENTS, WORKERS, ratios
from .tools import MODEL, table

VARIABLE = "BERTC_SERVING_PEERS"
ROUNDS, REQUESTS, ROWS, WAIT = 3, 300, 8, 0.005
PEERS = {"LitServe, count 8": "litserve", "Ray Serve, count 8": "ray"}
ABOUT = __doc__.split("\n", 2)[2].strip()
CORES = f"workers = {WORKERS}\nthreads = 1\n"
TEI = "text-embeddings-inference's policy"
OURS = {
    "none": f'policy = "none"\n{CORES}',
    "cost": f'policy = "cost"\n{CORES}',
    "count 8": f'{CORES}policy = "count"\nmax_rows = {ROWS}\nmax_wait_ms = {WAIT * 1e3}\n',
    TEI: 'policy = "count"\nmax_rows = 8\nmax_wait_ms = 0.0\nworkers = 1\nthreads = 2\n',
}


def lacking() -> str:
    """What is not at hand, '' for nothing."""
    return "" if os.environ.get(VARIABLE) else f"{VARIABLE}: a Python with litserve and ray[serve]"


def empty() -> str:
    """The table without figures."""
    return f"{ABOUT}\n\n" + table(["server", "requests/s"], [[n, ""] for n in (*OURS, *PEERS)])


def run() -> str:
    if missing := lacking():
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(3)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        for form in ("padded", "packed"):
            bertc.build(str(MODEL), folder / form, precision="fp32", targets=["onnxruntime"], packed=form == "packed")
        urls = {title: stack.enter_context(ours(folder, "padded", settings)) for title, settings in OURS.items()}
        urls["packed, cost"] = stack.enter_context(ours(folder, "packed", OURS["cost"]))
        urls |= {title: stack.enter_context(peer(folder, module)) for title, module in PEERS.items()}
        runner = bertc.load(folder / "padded")
        texts = load.texts(REQUESTS, lambda text: runner.encode([text])["input_ids"].shape[1])
        bodies = [{"inputs": text} for text in texts]
        found: dict[str, list[load.Answered]] = {title: [] for title in urls}
        for number in range(-1, ROUNDS):
            for title, url in urls.items():
                each = load.closed(url, "/embed", bodies, CLIENTS)
                if set(each.statuses) != {200}:
                    raise RuntimeError(f"{title} answered {each.statuses}")
                if number >= 0:
                    found[title].append(each)
    rates = {title: [each.throughput for each in runs] for title, runs in found.items()}
    rows = [
        [
            title,
            f"{np.median(rates[title]):.0f}",
            ratios(rates[title], rates["none"]),
            *(f"{np.median([each.percentile(p) for each in runs]) * 1e3:.0f}" for p in (50, 99)),
        ]
        for title, runs in found.items()
    ]
    return f"{ABOUT}\n\n" + table(["server", "requests/s", "over none", "p50, ms", "p99, ms"], rows)


@contextlib.contextmanager
def ours(folder: Path, form: str, settings: str) -> Iterator[str]:
    """`bertc serve` of an artifact with a configuration."""
    path = folder / f"{len(list(folder.iterdir()))}.toml"
    path.write_text(settings, "utf-8")
    with load.server(str(folder / form), "--config", str(path), log=folder / f"{len(list(folder.iterdir()))}.log") as (url, _):
        yield url


@contextlib.contextmanager
def peer(folder: Path, module: str) -> Iterator[str]:
    """Another server over the padded artifact, stopped at the end with all of its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ[VARIABLE], "-m", f"benchmarks.peers.{module}_server", folder / "padded", port, ROWS, WAIT]
    log = (folder / f"{module}.log").open("w")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen([str(each) for each in command], stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield answering(process, f"http://127.0.0.1:{port}", folder / f"{module}.log")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def answering(process: subprocess.Popen[bytes], url: str, log: Path, patience: float = 120) -> str:
    """The URL, once a text is answered."""
    asked = urllib.request.Request(f"{url}/embed", b'{"inputs": "two words"}', {"content-type": "application/json"})
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                answer.read()
                return url
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer:\n{log.read_text('utf-8', 'replace')[-2000:]}")
