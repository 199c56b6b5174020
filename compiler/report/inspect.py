"""What is in an artifact or an ONNX file: io, operators and their precision, kernels by layer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifact import manifest as artifact
from ..core import ArtifactError, counted
from ..graph import Graph
from ..graph import model as graph

if TYPE_CHECKING:
    from rich.console import Console


def inspect_path(path: Path) -> dict[str, Any]:
    """Everything `bertc inspect` shows, as plain data; hashes of an artifact are checked."""
    if path.is_file():
        return {"path": str(path), "kind": "onnx", **describe_graph(_inferred(path))}
    found = [artifact.open_artifact(each) for each in artifact.find_artifacts(path)]
    if len(found) > 1:
        return {"path": str(path), "kind": "artifacts", "artifacts": [inspect_path(each.path) for each in found]}
    if not found:
        raise ArtifactError(f"no artifact in {path}")
    each = found[0]
    return {"path": str(path), "kind": "artifact", **describe_graph(each.graph()), "manifest": dict(each.manifest)}


def _inferred(path: Path) -> Graph:
    """A file's graph, with the types that it leaves to inference."""
    from ..source import infer_types

    model = graph.load_graph(path)
    infer_types(model)
    return model


def describe_graph(model: Graph) -> dict[str, Any]:
    """Inputs, outputs, opset, op counts, dtypes by op, and bytes of weights of a graph."""
    return {
        "inputs": [spec.to_json() for spec in model.inputs],
        "outputs": [spec.to_json() for spec in model.outputs],
        "opset": model.opset,
        "nodes": sum(model.op_counts().values()),
        "ops": model.op_counts(),
        "precision_by_op": precision_by_op(model),
        "initializer_bytes": model.initializer_bytes,
        "functions": len(model.model.functions),
    }


def precision_by_op(model: Graph) -> dict[str, dict[str, int]]:
    """{op: {dtype of its first output: count}}; a value without a type counts as "unknown"."""
    table: dict[str, Counter[str]] = {}
    for node in model.model.graph.all_nodes():
        dtype = node.outputs[0].dtype if node.outputs else None
        name = node.op_type if not node.domain else f"{node.domain}.{node.op_type}"
        table.setdefault(name, Counter())[dtype.name.lower() if dtype else "unknown"] += 1
    return {op: dict(counts) for op, counts in sorted(table.items())}


def show(found: dict[str, Any], console: Console, kernels: bool = False) -> None:
    """Print what `examine` found."""
    if "artifacts" in found:
        for each in found["artifacts"]:
            show(each, console, kernels)
        return

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    manifest = found.get("manifest")
    say(found["path"])
    if manifest:
        sms = ",".join(manifest["target"]["sms"])
        say(f"  target {manifest['target']['name']}{':' + sms if sms else ''}, precision {manifest['precision']['mode']}")
        source = manifest["source"]
        say(f"  source {source['reference']} ({source['task']}), sha256 {source['sha256'][:12]}")
        if checked := manifest.get("inputs_check"):
            reason = checked.get("reason")
            say("  inputs " + (f"not compared: {reason}" if reason else f"{checked.get('compared')} as {checked.get('against')}"))
    for kind in ("inputs", "outputs"):
        for spec in found[kind]:
            say(f"  {kind[:-1]} {spec['name']}: {spec['dtype']}[{', '.join(map(str, spec['dims']))}]")
    say(f"  opset {found['opset']}, {found['nodes']} nodes, {found['initializer_bytes'] / 2**20:.1f} MiB of weights")
    if manifest:
        for island in manifest["precision"]["islands"]:
            say(f"  float32 island {island['node']} ({island['op']}): {island['reason']}")
    _show_ops(found, console)
    if manifest and "kernels" in manifest["engine"]:
        _show_kernels(manifest["engine"], console, kernels)


def _show_ops(found: dict[str, Any], console: Console) -> None:
    from .layout import Table

    rows = Table("operator", "count", "precision", wrap=("precision",))
    for op, count in found["ops"].items():
        rows.add(op, str(count), ", ".join(f"{n} {dtype}" for dtype, n in found["precision_by_op"][op].items()))
    console.print(rows)


def _show_kernels(engine: dict[str, Any], console: Console, every: bool) -> None:
    from .layout import Table

    listed = engine["kernels"]
    layers = ", ".join(map(str, listed["layers"]))
    console.print(
        f"  {counted(listed['count'], 'kernel')}; by transformer layer: {layers}; rest: {listed['rest']}", highlight=False
    )
    if not every:
        return
    rows = Table("kernel", "type", "dtype", "layer", "ONNX nodes", wrap=("ONNX nodes",), drop=("type", "ONNX nodes"))
    for row in listed["rows"]:
        rows.add(row["name"], row["type"], row["dtype"], str(row["layer"]), ", ".join(row["onnx_nodes"]))
    console.print(rows)
