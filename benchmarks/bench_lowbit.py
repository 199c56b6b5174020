"""int8 and fp8 by architecture: what TensorRT-RTX compiles

The zoo of `coverage` (small models of random weights, exported by `torch.onnx.export` with dynamic shapes), each built for sm89
in fp16, int8 and fp8 with scales from made up data. "Asked": products whose operands both have a scale. How many of them read
int8 or fp8 is what the log of the builder says. Random models decide at random, so nothing is said of accuracy here.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import bertc
from bertc.core.errors import BertcError
from bertc.data import synthetic as data
from bertc.source.opening import open_source
from bertc.source.types import Source

from . import exporting, zoo
from .tools import table

EXPORTER, TARGET = "dynamo-sdpa", "tensorrt-rtx:sm89"
MODES = ("int8-static", "fp8")
SEEDS = 6  # of made up samples
JOBS = int(os.environ.get("COVERAGE_JOBS", max(1, (os.cpu_count() or 1) // 2)))
HEAD = ["model", "GEMMs", "read int8", "read fp8", "kernels fp16", "kernels int8", "kernels fp8"]
# By the end of a model's name: what its outputs decide, where they are too narrow for a cosine.
TASKS = {
    "classify": "sequence-classification",
    "pair": "sequence-classification",
    "answer": "question-answering",
    "tokens": "token-classification",
    "ctc": "ctc",
    "own": "sequence-classification",
}


def run() -> str:
    exporting.ensure(list(zoo.ROWS), JOBS)
    rows, refused = [], []
    for name in zoo.ROWS:
        if not exporting.runs(name, EXPORTER):
            refused.append(f"- `{name}`: the export itself is not there or does not run ({EXPORTER})")
            continue
        made, why = of_model(name)
        rows += [made] if made else []
        refused += why
        print(name, made, why, flush=True)
    said = "\n".join(refused) or "None."
    return f"{str(__doc__).partition(chr(10) * 2)[2].strip()}\n\n{table(HEAD, rows)}\n\nNot built:\n\n{said}"


def of_model(name: str) -> tuple[list[str] | None, list[str]]:
    """(the model's row, why something of it is not there)."""
    path = exporting.paths(name, EXPORTER)[0]
    task = TASKS.get(name.rpartition("-")[2])
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            samples = write(open_source(str(path)), Path(folder, "data.npz"))
            for mode in ("fp16", *MODES):
                options = {"task": task, "verify": False, "targets": [f"{TARGET}={mode}"]}
                (made,) = bertc.build(path, Path(folder, mode), **options, **({} if mode == "fp16" else {"data": samples}))
                facts[mode] = made.manifest["engine"]
        except BertcError as error:
            return None, [f"- `{name}`: {str(error).splitlines()[0][:300]}"]
    proven = [f"{facts[m]['gemms'].get(m.partition('-')[0], 0)} of {facts[m]['gemms'].get('asked', 0)} asked" for m in MODES]
    return [name, str(facts["fp16"]["gemms"]["total"]), *proven, *(str(each["kernels"]["count"]) for each in facts.values())], []


def write(source: Source, path: Path) -> Path:
    """Made up samples at sizes that the model takes, as a user's file."""
    samples = [sample for seed in range(SEEDS) for sample in data.synthetic_samples(source.graph, source.dims, seed)]
    np.savez(path, **{f"{n}/{name}": array for n, sample in enumerate(samples) for name, array in sample.feeds.items()})
    return path
