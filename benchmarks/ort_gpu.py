"""onnxruntime-gpu without a GPU: its own list of CUDA kernels, and where it places the nodes of a model.

`onnxruntime-gpu` and `onnxruntime` own one folder, so the former lies unpacked in a folder of its own (BERTC_ORT_GPU) and runs in
a process of its own, over the stand-ins of `standin_cuda`. This file is that process, too: `python ort_gpu.py kernels`,
`python ort_gpu.py place MODEL...`.
"""

from __future__ import annotations

import collections
import functools
import json
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VARIABLE = "BERTC_ORT_GPU"
HOW = f"{VARIABLE} names no folder with onnxruntime-gpu: pip install --no-deps --target DIR onnxruntime-gpu (make placement)"
FATBIN, PTX = 0xBA55ED50, 1


def site() -> Path | None:
    """The folder that onnxruntime-gpu is unpacked in, None where there is none."""
    named = os.environ.get(VARIABLE)
    return Path(named).resolve() if named and (Path(named) / "onnxruntime" / "capi").is_dir() else None


def kernels(folder: Path) -> dict[str, Any]:
    """The table of `compiler/targets/_onnxruntime_cuda`, made of the library itself."""
    table = json.loads(_process(folder, "kernels"))
    return table | {"sms": images(folder)[0]}


def place(folder: Path, *models: Path) -> list[dict[str, Any]]:
    """Each model after ONNX Runtime's optimiser: {"nodes", "providers": {name: {op: count}}, "cpu": [names], "memcpy", "ops"}."""
    return [json.loads(line) for line in _process(folder, "place", *models).splitlines()]


def _process(folder: Path, *words: object) -> str:
    return python(folder, __file__, *words)


def python(folder: Path, *words: object, standins: bool = True, sm: int = 90) -> str:
    """What a Python with onnxruntime-gpu prints; RuntimeError with what it says where it fails."""
    path = os.pathsep.join([str(folder), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])
    variables = {**os.environ, "PYTHONPATH": path, "STANDIN_SM": str(sm)}
    if standins:
        variables["LD_LIBRARY_PATH"] = str(_standins(folder))
    command = [sys.executable, "-P", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=variables)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:4])}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


@functools.cache
def _standins(folder: Path) -> Path:
    from .standin_cuda import make

    return make(folder / "onnxruntime" / "capi", Path(tempfile.mkdtemp(prefix="standin-cuda-")))


def images(folder: Path) -> tuple[list[int], list[int]]:
    """(SMs of the machine code, SMs of PTX) in the CUDA provider, read from its fatbin section."""
    library = folder / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    found: dict[bool, set[int]] = {True: set(), False: set()}
    listed = subprocess.run(["readelf", "-SW", str(library)], capture_output=True, text=True, check=True).stdout
    section = re.search(r"\.nv_fatbin\s+\w+\s+[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+)", listed)
    assert section is not None, "no .nv_fatbin"
    at, end = int(section[1], 16), int(section[1], 16) + int(section[2], 16)
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while at < end - 16:
            magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
            if magic != FATBIN:
                at += 8
                continue
            image, at = at + header, at + header + size
            while image < at - 32:
                kind, _, own, bytes_ = struct.unpack_from("<HHIQ", data, image)
                if not 0 < own <= 4096:
                    break
                found[kind == PTX].add(struct.unpack_from("<I", data, image + 28)[0])
                image += own + bytes_
    return sorted(found[False]), sorted(found[True])


def _write_kernels() -> None:
    from onnxruntime.capi import _pybind_state as state

    def short(names: Any) -> list[str]:
        return sorted(re.sub(r"^tensor\((\w+)\)$", r"\1", name) for name in names)

    made: dict[str, set[str]] = collections.defaultdict(set)
    for each in state.get_all_opkernel_def():
        if each.provider == "CUDAExecutionProvider":
            types = {name: short(allowed) for name, allowed in sorted(each.type_constraints.items())}
            made[f"{each.domain}::{each.op_name}"].add(json.dumps([*each.version_range, types], sort_keys=True))
    table = {name: [json.loads(text) for text in sorted(rows)] for name, rows in sorted(made.items())}
    formal: dict[str, Any] = {}
    for schema in state.get_all_operator_schema():
        name = f"{schema.domain}::{schema.name}"
        if schema.domain == "com.microsoft" and name in table:
            formal[name] = [[each.typeStr for each in side] for side in (schema.inputs, schema.outputs)]
    import onnxruntime

    made_of = {"onnxruntime": onnxruntime.__version__, "kernels": table, "formal": dict(sorted(formal.items()))}
    sys.stdout.write(json.dumps(made_of))


def _place(model: str) -> dict[str, Any]:
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        before = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            ort.InferenceSession(model, options, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
        finally:
            os.dup2(before, 2)
        log.seek(0)
        text = log.read().decode(errors="replace")
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    where, names = "", []
    placed: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for line in text[text.rfind("Node placements") :].splitlines():
        if provider := re.search(r"placed on \[(\w+)\]", line):
            where = provider[1].removesuffix("ExecutionProvider")
        elif node := re.search(r"\]\s+(\w+) \((.*?)\)\s*$", line):
            placed[where][node[1]] += 1
            names += [f"{node[1]} {node[2]}"] if where == "CPU" else []
    ops = collections.Counter(node.op_type for node in graph.node)
    return {
        "model": model,
        "nodes": len(graph.node),
        "providers": placed,
        "cpu": names,
        "memcpy": sum(count for op, count in ops.items() if op.startswith("Memcpy")),
        "without_kernel": re.findall(r"CUDA kernel not found in registries for Op type: (\w+)", text),
        "ops": dict(ops.most_common()),
    }


if __name__ == "__main__":
    if sys.argv[1] == "kernels":
        _write_kernels()
    for name in sys.argv[2:]:
        sys.stdout.write(json.dumps(_place(name)) + "\n")
        sys.stdout.flush()
