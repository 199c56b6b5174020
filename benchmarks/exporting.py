"""Export the zoo as users do: `torch.onnx.export` with dynamic shapes, by each exporter and attention. One process a model.

What is on disk for the same versions and the same model stays; a refused export is written down with its reason. Every file
appears whole (written aside, then renamed), so that two runs may share the folder.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import zoo

FOLDER = Path("out/coverage")
# The default opset is 20 for both; 17 was TorchScript's for years, and is what most files of the past are.
EXPORTERS = ("dynamo-sdpa", "dynamo-eager", "torchscript-sdpa", "torchscript-eager", "torchscript17-eager")
TOOLS = ("torch", "transformers", "onnx", "onnxscript")
LIMIT = 600  # seconds for one model with all its exporters
# Several processes at once: threads of one that wait for each other would take the others' cores.
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@functools.cache
def versions() -> dict[str, str]:
    """The tools that an export depends on, local labels (`+cpu`) left out."""
    return {tool: importlib.metadata.version(tool).partition("+")[0] for tool in TOOLS}


@functools.cache
def key(name: str) -> str:
    """Everything that decides what the exports of a model are."""
    models = ast.dump(ast.parse(Path(__file__).with_name("zoo_models.py").read_bytes()))
    row = zoo.ROWS[name]
    decides = (versions(), row.model, row.config, row.settings, row.inputs, row.part, models)
    return hashlib.sha256(repr(decides).encode()).hexdigest()[:16]


def paths(name: str, exporter: str) -> tuple[Path, Path]:
    """(the ONNX file, what is known of it)."""
    return FOLDER / f"{name}.{exporter}.onnx", FOLDER / f"{name}.{exporter}.json"


def known(name: str, exporter: str) -> dict[str, Any] | None:
    """What a former run of the same versions wrote down, or None."""
    path = paths(name, exporter)[1]
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found if found.get("key") == key(name) else None


def runs(name: str, exporter: str) -> bool:
    """Whether the export is there and runs at sizes that the exporter did not see."""
    found = known(name, exporter) or {}
    return "reason" not in found and all(isinstance(each, float) for each in found.get("torch", {"": ""}).values())


def ensure(names: Sequence[str], jobs: int) -> None:
    """Export what is missing, `jobs` models at a time. A process that dies or hangs costs its own exports alone."""
    missing = [name for name in names if any(known(name, exporter) is None for exporter in EXPORTERS)]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for line in pool.map(_one, missing):
            print(line, flush=True)


def _one(name: str) -> str:
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.exporting", name]
    died = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=ALONE, check=False)
        if done.returncode:
            died = (
                f"the exporting process ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
    except subprocess.TimeoutExpired:
        died = f"not done after {LIMIT} s"
    for exporter in EXPORTERS:
        if died and known(name, exporter) is None:
            write(name, exporter, {"reason": died})
    good = sum("reason" not in (known(name, exporter) or {"reason": ""}) for exporter in EXPORTERS)
    return f"exported {name}: {good} of {len(EXPORTERS)} in {time.perf_counter() - start:.0f} s"


def write(name: str, exporter: str, what: Mapping[str, Any]) -> None:
    path = paths(name, exporter)[1]
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps({"key": key(name), "versions": versions(), **what}, indent=1), encoding="utf-8")
    aside.replace(path)


def export(name: str, exporter: str) -> None:
    """Export one model by one exporter to FOLDER, and write down inputs, distance from PyTorch, or why there is no file."""
    path = paths(name, exporter)[0]
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    start = time.perf_counter()
    try:
        found = _export(name, exporter, aside)
    except Exception as error:  # noqa: BLE001  the exporters raise whatever the model's code raises
        aside.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        return write(name, exporter, {"reason": short(error)})
    aside.replace(path)
    return write(name, exporter, {**found, "seconds": round(time.perf_counter() - start, 1)})


def _export(name: str, exporter: str, path: Path) -> dict[str, Any]:
    import onnx
    import torch

    from . import zoo_models

    kind, _, attention = exporter.partition("-")
    model = zoo_models.build(name, attention)
    given = zoo_models.given(name, model)
    axes = {n: {axis: d for axis, d in enumerate(each.dims) if isinstance(d, str)} for n, each in given.items()}
    made = zoo_models.example(given)
    with torch.no_grad():
        outputs = zoo_models.outputs(model, made)
        options: dict[str, Any] = {"input_names": list(made), "output_names": list(outputs), "verbose": False}
        if kind == "dynamo":
            torch.onnx.export(model, (), str(path), kwargs=made, dynamic_shapes=axes, external_data=False, **options)
        else:
            options |= {"dynamo": False, "dynamic_axes": axes, "opset_version": 17 if kind.endswith("17") else None}
            torch.onnx.export(zoo_models.Positional(model, list(made)).eval(), tuple(made.values()), str(path), **options)
    proto = onnx.load(path)
    inputs = {n: {"dtype": each.dtype, "dims": each.dims} for n, each in given.items()}
    padding = zoo_models.padding(model)
    fixed = _fixed(proto, axes)
    if fixed:
        raise RuntimeError(f"the exporter fixed what was declared dynamic: {fixed}")
    found = {"inputs": inputs, "padding": padding, "opset": proto.opset_import[0].version, "nodes": len(proto.graph.node)}
    return found | {"torch": _distance(model, path, given, padding)}


def _fixed(proto: Any, axes: Mapping[str, Mapping[int, str]]) -> str:
    """Dimensions that are constants in the file although they were declared dynamic, or inputs that are gone."""
    kept = {value.name: value.type.tensor_type.shape.dim for value in proto.graph.input}
    gone = [name for name in axes if name not in kept]
    wrong = [f"{n} axis {a} is {kept[n][a].dim_value}" for n in kept for a in axes.get(n, ()) if kept[n][a].HasField("dim_value")]
    return ", ".join([*wrong, *(f"{name} is no input any more" for name in gone)])


def _distance(model: Any, path: Path, given: Mapping[str, zoo.Input], padding: int) -> dict[str, float | str]:
    """The file in ONNX Runtime against PyTorch at a size the exporter did not see, by mask."""
    import torch

    from . import zoo_models
    from .comparing import distance, session

    found: dict[str, float | str] = {}
    for mask in zoo.MASKS:
        feeds = zoo.feeds(given, mask, padding=padding)
        with torch.no_grad():
            wanted = list(zoo_models.outputs(model, {n: torch.from_numpy(a) for n, a in feeds.items()}).values())
        try:
            got = session(path).run(None, feeds)
            found[mask] = distance(got, [value.numpy() for value in wanted], feeds)
        except Exception as error:  # noqa: BLE001  onnxruntime's exceptions share no public base class
            found[mask] = short(error)
    return found


def short(error: BaseException) -> str:
    """The first telling lines of a message; of its cause, where an exporter only says that it failed."""
    error = error.__cause__ if type(error).__name__ in ("TorchExportError", "ConversionError") and error.__cause__ else error
    lines = [line.strip() for line in re.sub("\x1b.[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:300]


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:]:
        for exporter in EXPORTERS:
            if known(name, exporter) is None:
                export(name, exporter)


if __name__ == "__main__":
    main()
