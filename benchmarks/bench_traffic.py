"""Length buckets for real traffic, and MiniLM against its source

What `bertc profile` and `bertc bench` do, on real text.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bertc
from bertc.bench import interleaved as bench
from bertc.bench import timings
from bertc.bench.timings import Timing
from bertc.core import profiles
from bertc.core.profiles import Profile, Shape
from bertc.data.tokenizer import Encoder
from bertc.serve import buckets, traffic
from bertc.source import GivenSource

from .real_text import sentences
from .tools import MODEL, table

TEXTS, SOME, PASSES, BUCKETS = 2500, 200, 7, 5
DISTINCT, REQUESTS, MOST = 8192, 1_000_000, 8
SHAPES = ((1, 16), (1, 128), (8, 16), (8, 128))
ROUNDS = 100


def run() -> str:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        requests = place / "requests.jsonl"
        requests.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(TEXTS)), encoding="utf-8")
        parts = [speed(place), waste(requests), padding(place), against(place)]
    return "\n\n".join(parts)


def speed(folder: Path) -> str:
    """Every length from 1 to 8192, a million requests."""
    rng = np.random.default_rng(0)
    drawn = np.minimum(rng.lognormal(6.5, 1.0, REQUESTS - DISTINCT).astype(np.int64) + 1, DISTINCT)
    lengths = np.concatenate([drawn, np.arange(1, DISTINCT + 1)])
    path = folder / "lengths.txt"
    path.write_text("\n".join(map(str, lengths.tolist())) + "\n", encoding="utf-8")
    read, found = timed(lambda: traffic.read_traffic(path))
    chosen, _ = timed(lambda: buckets.plan_buckets(found, MOST))
    assert len(found.longest) == DISTINCT
    rows = [["read the file", f"{read:.2f}"], [f"best bounds for 1 to {MOST} buckets", f"{chosen:.2f}"]]
    return f"{REQUESTS:,} requests of {DISTINCT:,} different lengths:\n\n" + table(["step", "seconds, median of 3"], rows)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        found = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), found


def waste(requests: Path) -> str:
    """Tokens wasted on real text by number of buckets."""
    found = traffic.read_traffic(requests, None, Encoder.from_directory(MODEL, 512))
    plan = buckets.plan_buckets(found, 6, 8, 512)
    head = ["buckets", "tokens computed", "wasted", "bounds"]
    rows = [
        [str(n), f"{c.computed:,}", f"{plan.waste(c):.1%}", " ".join(map(str, c.bounds))] for n, c in enumerate(plan.choices, 1)
    ]
    return f"{TEXTS:,} real texts, {plan.tokens:,} tokens, bounds multiples of 8:\n\n" + table(head, rows)


def padding(folder: Path) -> str:
    """Times of padded over unpadded passes, beside the tokens that each computes, and the memory of both."""
    out = folder / "buckets"
    bertc.build(MODEL, out, targets=["onnxruntime=fp32"])
    rows = [padded_row(out, batch, folder / f"{batch}.jsonl") for batch in (1, 8)]
    head = ["batch", "buckets", "tokens padded / own", "time padded / own (95 %)", "peak MiB, own length", "peak MiB, padded"]
    said = f"ONNX Runtime on the CPU, {SOME} texts in their order, at their own length or padded to the best {BUCKETS} buckets"
    how = f"{PASSES} whole passes of each in turns; memory is the peak of a process of its own"
    return f"{said}; {how}:\n\n" + table(head, rows)


def padded_row(out: Path, batch: int, requests: Path) -> list[str]:
    runner = bertc.load(out)
    texts = sentences(SOME)
    batches = [texts[i : i + batch] for i in range(0, SOME, batch)]
    requests.write_text("".join(json.dumps({"texts": each}) + "\n" for each in batches), encoding="utf-8")
    found = traffic.read_traffic(requests, None, Encoder.from_directory(MODEL, 512))
    bounds = buckets.plan_buckets(found, BUCKETS, 8, 512).choices[-1].bounds
    runner.buckets = buckets.bucket_profiles(found, bounds, traffic.TrafficModel(longest=512))
    feeds = [runner.encode(each) for each in batches]
    own = sum(each["input_ids"].size for each in feeds)
    computed = sum(runner.bucket(each)["input_ids"].size for each in feeds)
    seconds = passes([lambda f=f: runner.run(f) for f in feeds], [lambda f=f: runner.run_padded(f) for f in feeds])
    ratio = timings.time_ratio(*(Timing(name, Shape(()), np.array(taken)) for name, taken in zip("ab", seconds, strict=True)))
    peaks = [f"{peak(out, batch, runner.buckets, name):.0f}" for name in ("run", "run_padded")]
    said = f"{ratio.ratio:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return [str(batch), " ".join(map(str, bounds)), f"{computed / own:.2f}", said, *peaks]


def passes(first: Sequence[Callable[[], Any]], second: Sequence[Callable[[], Any]]) -> tuple[list[float], list[float]]:
    """Seconds of whole passes, in turns; the first pair warms up."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(PASSES + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            for call in (first, second)[which]:
                call()
            taken[which].append(time.perf_counter() - start)
    return taken[0][1:], taken[1][1:]


def peak(out: Path, batch: int, made: Sequence[Profile], method: str) -> float:
    """Peak memory in MiB of a process that runs the texts once; its own, without what it was forked from."""
    code = (
        "import bertc; from bertc.core import profiles_from_json; from benchmarks.real_text import sentences\n"
        f"r = bertc.load({str(out)!r}); t = sentences({SOME})\n"
        f"r.buckets = profiles_from_json({profiles.profiles_to_json(made)!r})\n"
        f"for i in range(0, {SOME}, {batch}): r.{method}(r.encode(t[i:i + {batch}]))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def against(folder: Path) -> str:
    """`bertc bench` of MiniLM against its source."""
    out = folder / "minilm"
    made = bertc.build(MODEL, out, targets=["onnxruntime=fp32"], profiles=["batch=1:8:32,length=1:128:256"])
    shapes = tuple(Shape((("batch", batch), ("length", length))) for batch, length in SHAPES)
    result = bench.time_artifact(made[0], bench.BenchRequest((GivenSource(str(MODEL)),), shapes, ROUNDS))
    ratios = {(r.shape, r.contender): r for r in result.ratios}
    rows = []
    for each in result.timings:
        facts, found = each.to_json(), ratios.get((str(each.shape), each.contender))
        times = ["-" if facts[key] is None else f"{facts[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms", "iqr_ms")]
        said = f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})" if found else "-"
        rows.append([str(each.shape), each.contender.replace("minilm", "bertc"), *times, f"{facts['tokens_per_s']:,.0f}", said])
    head = ["shape", "contender", "p50, ms", "p90", "p99", "IQR", "tokens/s", "time / bertc's (95 %)"]
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in result.notes)
    skipped = "".join(f" {name} was not timed: {reason}." for name, reason in result.skipped.items())
    said = f"`bertc bench` of all-MiniLM-L6-v2, float32: {bench.conditions_line(result)}.{notes}{skipped}"
    return f"{said}\n\n" + table(head, rows)
