"""Where ONNX Runtime's CUDA provider runs a model: nodes by provider, on a machine without a GPU

`make placement` unpacks onnxruntime-gpu into out/ort-gpu and runs this. The partition is the library's own, over stand-ins of the
CUDA libraries (`ort_gpu`); nothing is computed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import bertc
from bertc import packing, precision, recipe, targets
from bertc.core import BertcError, InputError
from bertc.graph import Graph, save_graph

from . import golden, ort_gpu
from .tools import table

CPU, CUDA, PACKED = "onnxruntime", "onnxruntime-cuda", "packed"
MODEL = "model.onnx"


def typed(graph: Graph, target: str, mode: str = "fp16") -> Graph:
    """A fused graph as a target's build would type it, without data."""
    module: Any = targets.get(target)
    kernels = {"kernels": module.KERNELS} if hasattr(module, "KERNELS") else {}
    return precision.get(mode).apply(module.lower(graph), **kernels).graph


def family(path: Path, folder: Path, mode: str = "fp16") -> dict[str, Path]:
    """The golden graph of a family for both targets, as files. BuildFailed where a node has no CUDA kernel."""
    found = golden.fused(path)
    graph = golden.open_graph(path)[0] if isinstance(found, str) else found.graph
    made = {name: typed(graph, name, mode) for name in (CPU, CUDA)}
    targets.get(CUDA).placement.require_kernels(made[CUDA])  # type: ignore[attr-defined]
    for name, each in made.items():
        (folder / name).mkdir(parents=True)
        save_graph(each, folder / name / MODEL)
    return {name: folder / name / MODEL for name in made}


def packed(path: Path, folder: Path, mode: str = "fp16") -> Path:
    """The golden graph of a family without padding, for CUDA. InputError where it has no such form."""
    found = golden.fused(path)
    if isinstance(found, str):
        raise InputError(f"--packed: {found}")
    made = typed(packing.pack(found.graph).graph, CUDA, mode)
    targets.get(CUDA).placement.require_kernels(made)  # type: ignore[attr-defined]
    (folder / "packed").mkdir(parents=True)
    save_graph(made, folder / "packed" / MODEL)
    return folder / "packed" / MODEL


def of_recipe(name: str, folder: Path) -> dict[str, Path]:
    """A recipe in fp16 for both targets, built and verified."""
    found = bertc.build(name, folder / name, targets=[f"{CPU}=fp16", f"{CUDA}=fp16"])
    made = {each.target: each.path / MODEL for each in found}
    with contextlib.suppress(BertcError):
        (alone,) = bertc.build(name, folder / f"{name}-packed", targets=[f"{CUDA}=fp16"], packed=True)
        made[PACKED] = alone.path / MODEL
    return made


def run() -> str:
    site = ort_gpu.site()
    if site is None:
        raise SystemExit(ort_gpu.HOW)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, made in files(Path(folder)):
            if isinstance(made, str):
                rows.append([name, made, "", "", "", "", ""])
                continue
            placed = {target: ort_gpu.place(site, path)[0] for target, path in made.items()}
            without = counts(placed[PACKED]) if PACKED in placed else ["no such form", ""]
            rows.append([name, *counts(placed[CPU]), *counts(placed[CUDA]), *without])
            print(*rows[-1], flush=True)
    version, beside = ort_gpu.kernels(site)["onnxruntime"], "on the CPU; copies"
    text = f"onnxruntime-gpu {version}, fp16. Nodes after its optimiser (casts); what is on the CPU; copies between the two.\n\n"
    return text + table(["model", CPU, beside, CUDA, beside, "--packed", beside], rows)


def counts(placed: Mapping[str, Any]) -> list[str]:
    """[nodes (casts), on the CPU with what they are, Memcpy]."""
    on_cpu = placed["providers"].get("CPU", {})
    listed = ", ".join(f"{count} {op}" for op, count in on_cpu.items())
    return [f"{placed['nodes']} ({placed['ops'].get('Cast', 0)})", f"{listed or 'none'}; {placed['memcpy']}"]


def files(folder: Path) -> Iterator[tuple[str, dict[str, Path] | str]]:
    """(name, model.onnx of each target, or why there is none) of all recipes and families, or of those named in ONLY."""
    wanted = os.environ.get("ONLY", "").split(",")
    chosen = [path for path in sorted(golden.FOLDER.glob("*.onnxtxt*")) if any(each in path.name for each in wanted)]
    for name in recipe.names():
        if any(each in name for each in wanted):
            yield name, _tried(lambda name=name: of_recipe(name, folder / "recipes"))  # type: ignore[misc]
    for path in chosen:
        name = golden.name_of(path)
        found = _tried(lambda path=path, name=name: family(path, folder / name))  # type: ignore[misc]
        if not isinstance(found, str):
            with contextlib.suppress(BertcError):
                found[PACKED] = packed(path, folder / name)
        yield name, found


def _tried(make: Any) -> dict[str, Path] | str:
    try:
        made: dict[str, Path] = make()
    except BertcError as error:
        return str(error).partition(":")[2].strip()[:160]
    return made
