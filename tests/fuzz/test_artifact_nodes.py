"""Nodes in an artifact's graph that nobody would have built: plugins with other inputs, operators without their function, graphs
that ONNX Runtime loads and refuses only when it runs them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kinds
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rule import obey

OUT = "last_hidden_state"
WEIGHTS = {"W": np.ones((32, 96)), "WO": np.ones((32, 32)), "K": np.ones((7, 5, 3)), "five": np.array([5, 5, 5])}


def plugin(operator: str, inputs: Sequence[str], slots: Sequence[int], count: int, **attributes: Any) -> onnx.NodeProto:
    made = helper.make_node("anything", [*inputs], [OUT], domain="bertc.plugins", name="odd")
    meant = {"operator": operator, "slots": [*slots], "count": count, "attributes": attributes}
    entry = made.metadata_props.add()
    entry.key, entry.value = "bertc.plugin", json.dumps(meant)
    return made


NODES = {
    "a convolution of other channels, behind a plugin": plugin("FusedConv1dGelu", ["inner", "K"], [0, 1], 5, strides=[1]),
    "a convolution of other channels": helper.make_node("Conv", ["inner", "K"], [OUT], name="odd"),
    "a shape of another size": helper.make_node("Reshape", ["inner", "five"], [OUT], name="odd"),
    "heads that do not divide the width": plugin("FusedAttention", ["inner", "W", "WO"], [0, 2, 4], 6, num_heads=7),
    "no heads": plugin("FusedAttention", ["inner", "W", "WO"], [0, 2, 4], 6, num_heads=0),
    "a text for heads": plugin("FusedAttention", ["inner", "W", "WO"], [0, 2, 4], 6, num_heads="two"),
    "an input too few": plugin("FusedBiasGelu", ["inner"], [0], 1),
    "an input too many": plugin("FusedGelu", ["inner"] * 3, [0, 1, 2], 3),
    "no operator of ours": plugin("os.system", ["inner"], [0], 1),
    "an operator without its function": helper.make_node("FusedGelu", ["inner"], [OUT], domain="bertc", name="odd"),
    "packed attention of one input": helper.make_node("PackedAttention", ["inner"], [OUT], domain="com.microsoft", name="odd"),
}
COMMANDS = {
    "verify": lambda art: ["verify", art],
    "layers": lambda art: ["verify", art, "--layers", "--against", art],
    "bench": lambda art: ["bench", art, "--rounds", "1", "--shapes", "1x4", "--threads", "1"],
    "inspect": lambda art: ["inspect", art],
}


def artifact(folder: Path, node: onnx.NodeProto, target: str) -> Path:
    """A copy of a built artifact with the node before its output; hashes and the manifest say that it was built so."""
    art = folder / "art"
    shutil.copytree(kinds.artifact() / "art", art)
    model = onnx.load(art / "graph.onnx")
    for each in model.graph.node:
        for names in (each.input, each.output):
            names[:] = ["inner" if name == OUT else name for name in names]
    model.graph.node.append(node)
    arrays = ((name, a if a.dtype == np.int64 else a.astype(np.float32)) for name, a in WEIGHTS.items())
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays)
    model.opset_import.extend(helper.make_opsetid(name, 1) for name in ("bertc.plugins", "bertc", "com.microsoft"))
    manifest = json.loads((art / "manifest.json").read_text())
    manifest["target"]["name"] = target
    for name in ("graph.onnx", "model.onnx"):
        data = model.SerializeToString()
        (art / name).write_bytes(data)
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (art / "manifest.json").write_text(json.dumps(manifest))
    return art


@pytest.mark.parametrize("target", ["null", "onnxruntime"])
@pytest.mark.parametrize("name", NODES)
def test_an_odd_node_is_named_with_its_artifact(name: str, target: str, tmp_path: Path) -> None:
    art = artifact(tmp_path, NODES[name], target)
    codes = {command: obey(words(art), art) for command, words in COMMANDS.items()}
    assert codes["verify"] in (1, 2), f"{name} is taken for what was built: {codes}"
