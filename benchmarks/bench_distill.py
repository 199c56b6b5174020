"""Distillation: MiniLM of 6 layers to 3 and to 2, what each loss and each choice of layers gives

python -m benchmarks.bench_distill --only ci        # one row, appended to benchmarks/results/distill.jsonl
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

from benchmarks import texts
from benchmarks.tools import bar_cell, interval, ranking

RESULTS = Path(__file__).parent / "results" / "distill.jsonl"
WHOLE = RESULTS.with_name("distilled.md")  # of `python -m benchmarks.distilled OUT --keep`
LENGTH = 48  # tokens of a text
TINYBERT = {"embedding": 1.0, "hidden": 1.0, "attention": 0.1, "cosine": 1.0}
BARS = {"ci": {"mean cosine": 0.78}} | {
    f"{name}-seed-{seed}": {"mean cosine": cosine, "Spearman": spearman}
    for name, cosine, spearman in (("3-layers", 0.91, 0.86), ("2-layers", 0.86, 0.79), ("2-layers-4-epochs", 0.86, 0.79))
    for seed in range(3)
}
MRR_BAR = 0.02  # the student's MRR@10 is at most this below the teacher's


@dataclasses.dataclass(frozen=True)
class Row:
    """One training: how many texts, and what differs from the default settings."""

    texts: int
    settings: Mapping[str, Any]


def _row(count: int, **settings: Any) -> Row:
    return Row(count, {"layers": 3, "max_length": LENGTH, **settings})


SMALL = {"epochs": 2.0}
ROWS: Mapping[str, Row] = {
    "ci": _row(3000, **SMALL),
    **{f"{layers}-layers-seed-{seed}": _row(20_000, layers=layers, seed=seed) for layers in (3, 2) for seed in range(3)},
    "loss similarity": _row(3000, **SMALL, losses={"similarity": 1.0}),
    "loss cosine and similarity": _row(3000, **SMALL, losses={"cosine": 1.0, "similarity": 1.0}),
    "loss cosine and 0.1 x similarity": _row(3000, **SMALL, losses={"cosine": 1.0, "similarity": 0.1}),
    "loss cosine and relations": _row(3000, **SMALL, losses={"cosine": 1.0, "relations": 1.0}),
    "loss of TinyBERT": _row(3000, **SMALL, losses=TINYBERT),
    **{f"layers {rule}": _row(3000, **SMALL, layer_map=rule) for rule in ("first", "last", "search")},
    **{
        f"{layers} layers, {name}": _row(20_000, layers=layers, **chosen)
        for layers in (3, 2)
        for name, chosen in (
            ("losses of TinyBERT", {"losses": TINYBERT}),
            ("layers by search", {"layer_map": "search"}),
            ("both", {"losses": TINYBERT, "layer_map": "search"}),
        )
    },
    # Some 13 minutes: what two layers need to keep the ranking.
    **{f"2-layers-4-epochs-seed-{seed}": _row(20_000, layers=2, seed=seed, epochs=4.0, losses=TINYBERT) for seed in range(3)},
    "width 256": _row(3000, **SMALL, width=256),
    "60 minutes": _row(60_000, epochs=6.0, learning_rate=6e-4, losses=TINYBERT),
}


def measure(name: str, *, data: Path | None = None) -> dict[str, Any]:
    """Train one row; returns what was measured, and appends it to RESULTS."""
    import torch

    from bertc.core import Progress
    from bertc.distill import Request, Settings, distill

    row = ROWS[name]
    with tempfile.TemporaryDirectory(prefix="bertc-distill-") as made:
        folder = data or Path(made)
        if not (folder / "texts.txt").is_file():
            texts.write(folder, max(row.texts, 20_000))
        few = Path(made) / "learned.txt"
        lines = (folder / "texts.txt").read_text("utf-8").splitlines()
        few.write_text("\n".join(lines[: row.texts]) + "\n", encoding="utf-8")
        request = Request(("minilm",), few, held_out=folder / "held_out.txt", pairs=folder / "pairs.jsonl")
        log, cpu = Progress(), time.process_time()
        document = distill(request, Path(made) / "student", Settings(**row.settings), progress=log).document
        seconds = time.process_time() - cpu
    found = {
        "row": name,
        "texts": document["texts"]["learned"],
        "steps": document["training"]["steps"],
        "cpu_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "untrained": {each["name"]: each["value"] for each in document["quality"]["untrained"]},
        "student": {each["name"]: [each["value"], each["low"], each["high"]] for each in document["quality"]["student"]},
        "mrr": document["quality"]["tasks"][0],
        "layers": document["layers"],
        "settings": dict(row.settings),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def misses(found: Mapping[str, Any]) -> list[str]:
    """The bars that a row did not reach."""
    bars = BARS.get(found["row"], {})
    said = [f"{name} {found['student'][name][0]:.3f} < {bar}" for name, bar in bars.items() if found["student"][name][0] < bar]
    if "seed" in found["row"] and found["mrr"]["drop"] > MRR_BAR:
        said.append(f"MRR {found['mrr']['drop']:.3f} below the teacher's")
    return said


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last measurement of each row, as Markdown."""
    last = {each["row"]: each for each in rows}
    lines = [
        "| training | texts | CPU s | mean cosine (untrained) | neighbour kept | Spearman | MRR@10 (drop, 95 % interval) | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in filter(last.__contains__, ROWS):
        each = last[name]
        cosine, near, rank = (each["student"][key] for key in ("mean cosine", "neighbour kept", "Spearman"))
        mrr = each["mrr"]
        cells = [
            name,
            f"{each['texts']:,}",
            f"{each['cpu_seconds']:.0f}",
            f"{interval(*cosine)} ({each['untrained']['mean cosine']:.3f})",
            interval(*near),
            interval(*rank),
            ranking(mrr["student"], mrr),
            bar_cell(misses(each), name in BARS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run() -> str:
    """Measure every row that has no result yet, and show all. Delete benchmarks/results/distill.jsonl to begin again."""
    with tempfile.TemporaryDirectory(prefix="bertc-texts-") as made:
        known = {each["row"] for each in read()}
        for name in (each for each in ROWS if each not in known):
            print(f"{name}: {measure(name, data=Path(made))['student']}", flush=True)
    return text()


def text() -> str:
    """The section of benchmarks/README.md, of what was measured so far."""
    rows = read()
    teachers = sorted({f"{each['mrr']['teacher']:.3f}" for each in {each["row"]: each for each in rows}.values()})
    whole = WHOLE.read_text("utf-8") if WHOLE.is_file() else "not measured"
    return (
        "all-MiniLM-L6-v2 (6 layers) teaches students that begin as some of its layers. Texts: sentences of docstrings, package "
        f"descriptions and licences, at most {LENGTH} tokens, judged on those of other files (2,000 texts; MRR@10 on pairs of a "
        f"docstring's summary and its next paragraph, teacher {' or '.join(teachers)}: what packages are there "
        "differs). One thread, bfloat16 where the CPU has it; CPU "
        "seconds of the whole command, intervals of 95 %. Rows are measured one by one: `python -m benchmarks.bench_distill "
        f"--only ROW`.\n\n{table(rows)}\n\nFrom the teacher to the student in int8, by `make distilled` (ONNX Runtime on one "
        f"thread, one text at a time, every model in every turn):\n\n{whole}"
    )


def read() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []


def main() -> None:
    """Single rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ROWS, required=True)
    parser.add_argument("--data", type=Path, help="a folder that python -m benchmarks.texts wrote")
    arguments = parser.parse_args()
    for name in arguments.only:
        found = measure(name, data=arguments.data)
        print(json.dumps(found, indent=1))
        print("; ".join(misses(found)) or "bars kept")


if __name__ == "__main__":
    main()
