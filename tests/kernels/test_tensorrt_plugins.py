"""Kernels as plugins of TensorRT, in its official bindings: registered, shapes and types, tactics, PTX, grid and scalars.

Where this stops: the bindings stand over TensorRT-RTX's libraries (`trt_bindings.stand_in`), which have no builder for such
plugins. What a builder gives to the functions is given by hand, with expressions of sizes that compute numbers; no kernel runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from trt_bindings import stand_in

PACKAGES = ("tensorrt_rtx_libs", "tensorrt_bindings")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)),
    reason="needs the packages tensorrt-rtx and tensorrt-cu13-bindings: pip install --group test",
)

# In a process of its own: the module is named tensorrt there. Prints one JSON line a plugin.
SCRIPT = """
import json, sys
from pathlib import Path
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
import tensorrt_bindings.plugin as trtp
sys.modules["tensorrt.plugin"] = trtp
from tensorrt_bindings.plugin import _tensor, _lib
from bertc.plugins.kernels import launches
from bertc.plugins.kernels._tensorrt import Plugin

class Number(trt.IDimensionExpr):
    '''An expression that is a number. The class of the bindings is made by a builder only: no constructor is called.'''
    def is_constant(self): return True
    def get_constant_value(self): return self.number

class Builder:
    def constant(self, number):
        made = Number.__new__(Number)
        made.number = number
        return made
    def operation(self, op, a, b):
        a, b = a.number, b.number
        names = {"SUM": a + b, "SUB": a - b, "PROD": a * b}
        return self.constant(a // b if op.name == "FLOOR_DIV" else -(-a // b) if op.name == "CEIL_DIV" else names[op.name])

for job in json.loads(sys.argv[1]):
    launch = launches()[job["launch"]]
    plugin = Plugin(launch, job["present"], job["sm"], types=job["types"], folder=Path(sys.argv[2]))
    plugin.register(trtp)
    definition = _lib.QDP_REGISTRY[plugin.id]
    _tensor.SymIntExpr._exprBuilder = Builder()
    described = []
    for tensor in plugin.inputs:
        shape, kind = job["inputs"][tensor.name]
        each = trtp.TensorDesc(trtp.ShapeExprs.from_tuple(tuple(shape)), getattr(trt.DataType, kind))
        each.shape = trtp.Shape(tuple(-1 if size in job.get("dynamic", ()) else size for size in shape))
        described.append(each)
    attributes = launch.attributes_with(job["attributes"])
    try:
        outputs = definition.register_func(*described, **attributes)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        (combination,) = definition.autotune_func(*described, *attributes.values(), outputs)
    except ValueError as refused:
        print(json.dumps({"id": plugin.id, "refused": str(refused)}))
        continue
    name, ptx, params, scalars = definition.aot_impl_func(*described, *attributes.values(), outputs, job.get("tactic", 1))
    number = lambda each: each._expr.number
    print(json.dumps({
        "id": plugin.id, "inputs": definition.input_tensor_names, "attributes": list(definition.input_attrs),
        "outputs": [[[number(d) for d in o.shape_expr], o.dtype.name] for o in outputs],
        "types": [[t.name for t in c.types] for c in combination._get_combinations()], "tactics": list(combination._tactics),
        "name": name, "ptx": ptx, "grid": [number(each) for each in (params.grid_x, params.grid_y, params.grid_z)],
        "block": number(params.block_x), "shared": number(params.shared_mem), "scalars": [number(each) for each in scalars],
        "kinds": [type(each).__name__ for each in scalars],
    }))
"""


def asked(folder: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    (folder / "bindings").mkdir()
    environment = stand_in(folder / "bindings")
    path = os.pathsep.join([environment["PYTHONPATH"], *(each or os.getcwd() for each in sys.path)])
    command = [sys.executable, "-P", "-c", SCRIPT, json.dumps(jobs), str(folder / "kept")]
    given = {**os.environ, **environment, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def job(launch: str, sm: int, outputs: list[str], attributes: dict[str, Any] | None = None, **inputs: Any) -> dict[str, Any]:
    made = {"launch": launch, "sm": sm, "inputs": inputs, "present": [*inputs, *outputs], "attributes": attributes or {}}
    return {**made, "types": {"q": "i8"} if "quantised" in outputs else {}}


def test_a_plugin_is_what_its_launch_says(tmp_path: Path) -> None:
    from bertc.plugins.kernels import launches

    half = {"x": [[35, 48], "HALF"], "skip": [[35, 48], "HALF"], "gamma": [[48], "HALF"]}
    attention = {"qkv": [[300, 3, 4, 32], "HALF"], "cu_seqlens": [[6], "INT32"]}
    hidden = {"qkv": [[300, 3, 4, 32], "HALF"], "cu_seqlens": [[6], "INT64"], "keys": [[300], "HALF"]}
    found = asked(
        tmp_path,
        job(
            "skip_layernorm",
            86,
            ["y", "total", "quantised"],
            {"epsilon": 1e-12},
            **half,
            beta=[[48], "HALF"],
            scale=[[1], "FLOAT"],
        ),
        job("skip_layernorm", 86, ["y"], {"rms": True}, **half),
        job("embeddings", 90, ["out"], ids=[[3, 7], "INT64"], word=[[11, 48], "BF16"], gamma=[[48], "BF16"]),
        {**job("packed_attention", 90, ["out"], **attention), "tactic": 3, "dynamic": [300, 6]},
        {**job("packed_attention", 80, ["out"], {"scale": 1.0}, **hidden), "dynamic": [300, 6]},
        job("conv1d_gelu", 86, ["out"], {"stride": 5}, x=[[2, 1, 163], "HALF"], w=[[10, 1, 33], "HALF"]),
        job("conv1d_statistics", 86, ["statistics"], {"stride": 5}, x=[[2, 1, 163], "HALF"], w=[[10, 1, 33], "HALF"]),
    )
    norm, rms, embeddings, attended, by_key, conv, statistics = found
    assert norm["id"] == "bertc::skip_layernorm_without_bias" and rms["id"].endswith(
        "_bias_without_beta_without_scale_without_total_without_quantised"
    )
    assert norm["inputs"] == ["x", "skip", "gamma", "beta", "scale"] and norm["attributes"] == ["epsilon", "rms"]
    assert norm["outputs"] == [[[35, 48], "HALF"], [[35, 48], "HALF"], [[35, 48], "INT8"]]
    assert norm["types"] == [["HALF", "HALF", "HALF", "HALF", "FLOAT", "HALF", "HALF", "INT8"]] and norm["tactics"] == [1, 2, 3]
    assert (norm["grid"], norm["block"], norm["scalars"], norm["kinds"]) == ([18, 1, 1], 128, [35], ["SymInt32"])
    assert (
        embeddings["outputs"] == [[[3, 7, 48], "BF16"]] and embeddings["scalars"] == [21, 7] and embeddings["grid"] == [11, 1, 1]
    )
    assert attended["outputs"] == [[[300, 4, 32], "HALF"]] and attended["scalars"] == [5]
    assert attended["grid"] == [300 // 64 + 5, 4, 1] and attended["tactics"] == [1, 3, 4]
    assert by_key["id"] == "bertc::packed_attention_without_bias" and by_key["types"] == [["HALF", "INT64", "HALF", "HALF"]]
    assert by_key["outputs"] == attended["outputs"] and by_key["scalars"] == [5] and by_key["grid"] == attended["grid"]
    assert conv["outputs"] == [[[2, 33, 31], "HALF"]] and conv["grid"] == [1, 1, 2] and conv["scalars"] == [163, 31]
    assert statistics["outputs"] == [[[2, 33, 2], "FLOAT"]] and statistics["grid"] == [3, 2, 1]
    for each in found:
        assert f".visible .entry {each['name']}(" in each["ptx"] and f".reqntid {each['block']}" in each["ptx"]
        assert each["ptx"][: each["ptx"].index(")")].count(".param") == sum(map(len, each["types"])) + len(each["scalars"])
        assert each["shared"] <= 48 * 1024
    assert launches()["skip_layernorm"].variants[0].tiles == {"ROWS": 2}  # 18 programs for 35 rows


def test_a_plugin_refuses_what_its_kernel_cannot(tmp_path: Path) -> None:
    half = {"x": [[35, 48], "HALF"], "skip": [[35, 48], "HALF"]}
    mixed, dynamic, fp8 = asked(
        tmp_path,
        job("skip_layernorm", 86, ["y"], **half, gamma=[[48], "FLOAT"]),
        {**job("bias_gelu", 86, ["out"], x=[[35, 48], "HALF"], bias=[[48], "HALF"]), "dynamic": [48]},
        {
            **job("skip_layernorm", 86, ["y", "quantised"], **half, gamma=[[48], "HALF"], scale=[[1], "FLOAT"]),
            "types": {"q": "fp8e4nv"},
        },
    )
    assert "gamma is fp32, other tensors of its kind are fp16" in mixed["refused"]
    assert "N is dynamic" in dynamic["refused"]
    assert "float8 needs sm89" in fp8["refused"]


WORKER = """
import json, sys
import tensorrt_bindings as trt
sys.modules["tensorrt"] = trt
import tensorrt_bindings.plugin as trtp
sys.modules["tensorrt.plugin"] = trtp
from tensorrt_bindings.plugin import _lib
from bertc.targets._tensorrt import worker
made = worker.register_plugins(trtp, {"sm": "sm90", "plugins": json.loads(sys.argv[1])})
known = [[list(_lib.QDP_REGISTRY[each["plugin"]].input_tensor_names), each] for each in made]
flags = trt.NetworkDefinitionCreationFlag
print(json.dumps({"known": known, "flags": worker._flags(trt, True) == sum(1 << int(flag) for name, flag in
    flags.__members__.items() if name in ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS"))}))
"""


def test_the_worker_registers_what_a_graph_uses_under_the_names_of_its_nodes(tmp_path: Path) -> None:
    """Here it stops: no builder that takes such plugins is at hand, so no engine is made of the graph."""
    import fused

    from bertc.packing import pack
    from bertc.targets import tensorrt
    from bertc.targets._tensorrt import plugin_nodes

    encoder = tuple(name for name in plugin_nodes.KNOWN if name != "conv1d_gelu")
    graphs = [tensorrt.lower(pack(fused.encoder()).graph, plugins=encoder)]
    graphs += [tensorrt.lower(fused.convolution(norm), plugins=("conv1d_gelu",)) for norm in ("none", "layer")]
    used = [each for graph in graphs for each in plugin_nodes.used(graph)]
    assert {each["launch"] for each in used} == set(plugin_nodes.TENSORS)
    nodes = [node for graph in graphs for node in graph.model.graph if node.domain == "bertc.plugins"]
    wanted = {node.op_type: len(node.inputs) for node in nodes}
    (tmp_path / "bindings").mkdir()
    environment = stand_in(tmp_path / "bindings")
    path = os.pathsep.join([environment["PYTHONPATH"], *(each or os.getcwd() for each in sys.path)])
    command = [sys.executable, "-P", "-c", WORKER, json.dumps(used)]
    given = {**os.environ, **environment, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {facts["plugin"]: len(names) for names, facts in found["known"]} == {f"bertc::{k}": v for k, v in wanted.items()}
    assert all(facts["sm"] == "sm90" and len(facts["source_sha256"]) == 64 and facts["triton"] for _, facts in found["known"])
    assert found["flags"]


def test_nodes_name_the_tensors_of_their_launches() -> None:
    from bertc.plugins.kernels import launches
    from bertc.targets._tensorrt import plugin_nodes

    for name, tensors in plugin_nodes.TENSORS.items():
        assert tuple(launches()[name].tensors()) == tensors
