"""A fleet: three models in three precisions, killed fleets, and many writers

Three models of real size, TensorRT-RTX engines for sm86, 89, 120 and 121 (one plan each) in three precisions, verification
included; int8 is quantised on 400 real texts and weighed against fp16. The serial sum is that of all stages' times with
`--jobs 1`, each stage made once; it and the run on all cores are interleaved.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from bertc.fleet import store_cleaning as cleaning
from bertc.fleet.store import Store

from .fleet_processes import kill, start, writers
from .real_text import sentences
from .tools import BERTC, table

MODELS = ("minilm", "bert-ranker", "student-12-to-3")
PRECISIONS = ("fp32", "fp16", "int8")
TEXTS = 400
PAIRS = 2
CORES = 2
MOMENTS = 20
WRITERS, ENTRIES = 8, 500
HEAD = 'gpus = {gpus}\nprecisions = {precisions}\nout = "{name}/out"\nstore = "{name}/store"\n{models}'
TINY = """
import sys, torch, transformers
torch.manual_seed(0)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
config = transformers.BertConfig(vocab_size=1000, **sizes)
model = transformers.BertModel(config, add_pooling_layer=False).eval()
with torch.no_grad():
    for value in model.parameters():
        value.add_(0.1 * torch.randn(value.shape) if value.ndim == 1 else 0)
model.save_pretrained(sys.argv[1])
"""


def fleet(folder: Path, name: str, gpus: tuple[str, ...], precisions: tuple[str, ...] = PRECISIONS, models: str = "") -> Path:
    """A fleet file with a store of its own."""
    path = folder / f"{name}.toml"
    models = models or "".join(f'[models.{model}]\nrecipe = "{model}"\ndata = "texts.txt"\nbudget = {{}}\n' for model in MODELS)
    listed = {"models": models, "gpus": json.dumps(gpus), "precisions": json.dumps(precisions)}
    path.write_text(HEAD.format(name=name, **listed), encoding="utf-8")
    return path


def build(path: Path, *words: str) -> tuple[float, list[str], float]:
    """(wall seconds of the whole command, what was made, the sum of the seconds that each made stage took)."""
    began = time.perf_counter()
    command = [*BERTC, "fleet", "build", str(path), "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr)
    document = json.loads(done.stdout)
    told = {**{s["slot"]: s["seconds"] for s in document["stages"]}, **{e["name"]: e["seconds"] for e in document["entries"]}}
    return wall, document["made"], sum(told[slot] for slot in document["made"])


def run() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [*speed(folder), *killed(folder), *many_writers(folder)]
    return table(["what", "measured", "wanted"], rows)


def speed(folder: Path) -> list[list[str]]:
    (folder / "texts.txt").write_text("\n".join(" ".join(text.split()) for text in sentences(TEXTS)), encoding="utf-8")
    sums, walls, ratios, idle, slower = [], [], [], [], []
    for pair in range(PAIRS):
        serial = build(fleet(folder, f"serial{pair}", ("l4",)), "--jobs", "1")
        slower.append(beside_each_other())
        wall, made, beside = build(fleet(folder, f"all{pair}", ("l4",)), "--jobs", str(CORES))
        sums.append(serial[2])
        walls.append(wall)
        ratios.append(wall / (serial[2] / CORES))
        idle.append(wall / (beside / CORES))
    path = folder / "all0.toml"
    again = [build(path) for _ in range(3)]
    covered = build(fleet(folder, "all0", ("l4", "rtx-4090", "rtx-pro-6000")))
    # float32 and int8 cannot be had for Turing.
    turing = 'exclude = [{ gpu = "t4", precision = "fp32" }, { gpu = "t4", precision = "int8" }]\n'
    wider = fleet(folder, "all0", ("l4", "t4"))
    wider.write_text(turing + wider.read_text("utf-8"), encoding="utf-8")
    more = build(wider)
    return [
        [
            f"{len(MODELS)} models x {', '.join(PRECISIONS)}: stages made",
            str(len(made)),
            f"{len(MODELS) * (3 + len(PRECISIONS))}",
        ],
        ["sum of the stages made one by one, s", _both(sums), ""],
        [f"wall time on {CORES} cores, s", _both(walls), ""],
        [f"wall time / (sum / {CORES}), each pair", _both(ratios), "<= 1.3"],
        [f"wall time / (sum of the same run's own stages / {CORES}): what scheduling loses", _both(idle), ""],
        [f"{CORES} loops of pure arithmetic at once, time of each / time alone, in between", _both(slower), "1.0: free cores"],
        ["second run, s (median of 3)", f"{statistics.median(w for w, _, _ in again):.2f}", "< 3"],
        ["stages made by the second runs", str(sum(len(made) for _, made, _ in again)), "0"],
        ["stages made after adding rtx-4090 and rtx-pro-6000 to l4", str(len(covered[1])), "0"],
        ["stages made after adding t4 (fp16)", ", ".join(more[1]), "one a model"],
    ]


LOOP = "import time; t = time.perf_counter(); sum(i * i for i in range(20_000_000)); print(time.perf_counter() - t)"


def beside_each_other() -> float:
    """How much slower a process gets when each core has one: more than 1 where somebody else uses the cores, too."""
    times = []
    for count in (1, CORES):
        loops = [subprocess.Popen([BERTC[0], "-c", LOOP], stdout=subprocess.PIPE, text=True) for _ in range(count)]
        times.append(statistics.mean(float(loop.communicate()[0]) for loop in loops))
    return times[1] / times[0]


def _both(values: list[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in values)


def killed(folder: Path) -> list[list[str]]:
    """Each moment: a fleet of its own is killed once, and run again to the end."""
    subprocess.run([BERTC[0], "-c", TINY, str(folder / "tiny")], check=True, capture_output=True)
    subprocess.run([*BERTC, "export", str(folder / "tiny"), "-o", str(folder / "export")], check=True, capture_output=True)
    models = f"[models.tiny]\nsource = {json.dumps(str(folder / 'export'))}\n"
    calm = fleet(folder, "calm", ("l4",), ("fp32", "fp16"), models)
    took, _, _ = build(calm)
    wanted = locked(calm)
    rng, same, whole, finished = random.Random(0), 0, 0, []
    for moment in range(MOMENTS):
        path = fleet(folder, f"killed{moment}", ("l4",), ("fp32", "fp16"), models)
        process = start(path)
        time.sleep(rng.uniform(0.05, 0.95) * took)
        kill(process)
        store = Store(folder / f"killed{moment}" / "store")
        finished.append(len(store.finished()))
        whole += not list(cleaning.damaged_stages(store))
        build(path)
        made = [line["key"] for line in store.journal()]
        same += locked(path) == wanted and len(made) == len(set(made))
    spread = ", ".join(f"{n}: {finished.count(n)}" for n in sorted(set(finished)))
    return [
        [f"killed at {MOMENTS} random moments: the store was whole", f"{whole} times", f"{MOMENTS}"],
        ["the next run ended with the same keys and hashes, no finished stage made again", f"{same} times", f"{MOMENTS}"],
        ["stages that were finished when it was killed (of 4): how often", spread, ""],
    ]


def locked(path: Path) -> dict[str, object]:
    """What a fleet's lock says, but for where its artifacts lie: each has a folder of its own."""
    found: dict[str, object] = json.loads(path.with_suffix(".lock.json").read_text("utf-8"))
    assert found.pop("out") == f"{path.stem}/out"
    return found


def many_writers(folder: Path) -> list[list[str]]:
    began = time.perf_counter()
    failed = 0
    for process in writers(folder / "many", WRITERS, ENTRIES):
        process.communicate()
        failed += process.returncode != 0
    seconds = time.perf_counter() - began
    store = Store(folder / "many")
    lost = ENTRIES - len(store.finished())
    damage = len(list(cleaning.damaged_stages(store)))
    twice = len(store.journal()) - ENTRIES
    return [
        [f"{WRITERS} writers of the same {ENTRIES} entries, s", f"{seconds:.1f}", ""],
        ["writers that failed, entries lost, damaged, made twice", f"{failed}, {lost}, {damage}, {twice}", "0, 0, 0, 0"],
    ]
