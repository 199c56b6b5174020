"""`make distilled`: minilm-3 from texts of this machine, built in three precisions, and what is lost from teacher to int8.

python -m benchmarks.distilled out/distilled
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import bertc
from benchmarks import texts
from bertc.core import Progress
from bertc.distill import Request, Settings, distill, judge

COUNT, LENGTH = 20_000, 48
BUILT = ("onnxruntime=fp32", "onnxruntime=fp16", "onnxruntime=int8-dynamic")
RESULTS = Path(__file__).parent / "results" / "distilled.md"
TURNS = 30  # timed turns, the contenders one after the other in each


def main() -> None:
    """Texts, student, artifacts, table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=COUNT, help="texts to learn from")
    parser.add_argument("--keep", action="store_true", help=f"the table goes into {RESULTS.name}, too, for benchmarks/README.md")
    arguments = parser.parse_args()
    out: Path = arguments.out
    from bertc.cli._output import progress

    data, log = out / "texts", progress()
    if not (data / "texts.txt").is_file():
        with log.stage("gather texts"):
            texts.write(data, arguments.count)
    student = out / "minilm-3"
    if not (student / "distillation.json").is_file():
        resume = (out / "minilm-3.training" / "checkpoint.pt").is_file()
        request = Request(("minilm",), data / "texts.txt", held_out=data / "held_out.txt", pairs=data / "pairs.jsonl")
        made = distill(request, student, Settings(layers=3, max_length=LENGTH), resume=resume, progress=log)
        log.say(made.document["summary"])
    os.environ["BERTC_MINILM_3"] = str(student.resolve())
    build(out, log)
    lines = table(out, data)
    for file in (out / "table.md", *([RESULTS] if arguments.keep else ())):
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def build(out: Path, log: Progress) -> None:
    """The teacher in float32 and the student in all of BUILT, each verified against its own source on held-out texts."""
    few = out / "verify.txt"
    few.write_text("".join((out / "texts" / "held_out.txt").read_text("utf-8").splitlines(keepends=True)[:200]), encoding="utf-8")
    for recipe, targets in (("minilm", BUILT[:1]), ("minilm-3", BUILT)):
        with log.stage(f"build {recipe}"):
            bertc.build(recipe, out / f"{recipe}-built", targets=targets, force=True)
        for verdict in bertc.verify(out / f"{recipe}-built", data=few, against=recipe):
            log.say(f"{verdict.path}: {verdict.summary()}")
    for verdict in bertc.verify(out / "minilm-3-built", data=few, teacher="minilm", budget={"max_drop": 0.2}):
        log.say(f"{verdict.path} against its teacher: {verdict.summary()}")


def table(out: Path, data: Path) -> list[str]:
    """Teacher fp32, student fp32, fp16, int8: time and size beside quality."""
    places = {"teacher fp32": _place(out / "minilm-built", "fp32")}
    places |= {f"student {mode}": _place(out / "minilm-3-built", mode) for mode in ("fp32", "fp16", "int8-dynamic")}
    runners = {name: bertc.load(place) for name, place in places.items()}
    held_out = (data / "held_out.txt").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text("utf-8").splitlines()]
    vectors = {name: _vectors(runner, held_out) for name, runner in runners.items()}
    places_of = judge.different(row["text_pair"] for row in rows)
    own = np.array([places_of[row["text_pair"]] for row in rows])
    ranks = {
        name: judge.reciprocal_ranks(_vectors(runner, [row["text"] for row in rows]), _vectors(runner, [*places_of]), own)
        for name, runner in runners.items()
    }
    times = _times(runners, held_out)
    lines = [
        "| | engine | ms a text | mean cosine | neighbour kept | Spearman | MRR@10 (drop) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, place in places.items():
        measures = judge.of_vectors(vectors[name], vectors["teacher fp32"])
        size = (place / "model.onnx").stat().st_size / 1e6
        drop = judge.drop_of("MRR", ranks[name], ranks["teacher fp32"])
        shown = " | ".join(f"{each.value:.3f}" for each in measures)
        mrr = f"{drop.artifact:.3f} ({drop.drop:+.3f})"
        lines.append(f"| {name} | {size:.0f} MB | {times[name]:.2f} | {shown} | {mrr} |")
    return lines


def _place(built: Path, mode: str) -> Path:
    return built if (built / "manifest.json").is_file() else built / f"onnxruntime-{mode}"


def _vectors(runner: Any, lines: list[str]) -> np.ndarray:
    """Of texts in the order of their lengths, a batch of 32 at a time."""
    order = sorted(range(len(lines)), key=lambda at: len(lines[at]))
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), 32):
        chunk = order[start : start + 32]
        given = runner.encode([lines[at] for at in chunk])
        found |= dict(zip(chunk, runner.run(given)["sentence_embedding"], strict=True))
    return np.stack([found[at] for at in range(len(lines))])


def _times(runners: dict[str, Any], lines: list[str]) -> dict[str, float]:
    """Milliseconds a text, the median of turns: one text at a time, each model in each turn."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for at in range(TURNS):
        for name, runner in runners.items():
            given = runner.encode([lines[at]])
            runner.run(given)
            began = time.perf_counter()
            runner.run(given)
            taken[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in taken.items()}


if __name__ == "__main__":
    main()
