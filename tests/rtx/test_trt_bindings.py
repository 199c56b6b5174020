"""The adapter is run against TensorRT-RTX, but TensorRT 11 has to understand it too: every attribute it touches must be there.

A real TensorRT-RTX build is recorded, attribute by attribute, and the list is looked up in the bindings of TensorRT 11.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from trt_bindings import stand_in

from bertc.targets._tensorrt import worker as _trt_worker

pytestmark = pytest.mark.rtx

# Runs the worker's own code on a module that notes what is asked of it. Enum classes are wrapped, other classes patched.
RECORD = """
import json, sys
import tensorrt_rtx
from bertc.targets._tensorrt import worker as _trt_worker

seen = set()

def patch(cls):
    read, write = cls.__getattribute__, cls.__setattr__
    def note(name):
        if hasattr(cls, name) and not name.startswith("__"):
            seen.add((cls.__name__, name))
    def get(self, name):
        note(name)
        return read(self, name)
    def put(self, name, value):
        note(name)
        write(self, name, value)
    cls.__getattribute__, cls.__setattr__ = get, put

class Enum:
    def __init__(self, real):
        self.real = real
    def __getattr__(self, name):
        seen.add((self.real.__name__, name))
        return getattr(self.real, name)

class Module:
    def __getattr__(self, name):
        seen.add(("", name))
        value = getattr(tensorrt_rtx, name)
        return Enum(value) if hasattr(value, "__members__") else value

for value in list(vars(tensorrt_rtx).values()):
    if isinstance(value, type) and type(value).__name__ == "pybind11_type" and not hasattr(value, "__members__"):
        patch(value)
stages = []
for job in json.load(open(sys.argv[1])):
    try:
        _trt_worker.compile_job(Module(), job)
        stages.append("done")
    except _trt_worker.Refused as refused:
        stages.append(refused.stage)
with open(sys.argv[1] + ".log", "w") as file:
    logger, _ = _trt_worker._logger(Module(), file)
    plan = open(json.load(open(sys.argv[1]))[0]["plan"], "rb").read()
    stages.append("" if _trt_worker._inspect(Module(), logger, plan) else "not deserialised")
print(json.dumps({"seen": sorted(seen), "stages": stages}))
"""

LOOK_UP = """
import json, sys
import tensorrt_bindings as trt

def known(owner, name):
    return hasattr(trt, name) if not owner else hasattr(getattr(trt, owner, None), name)

absent = [pair for pair in json.load(open(sys.argv[1])) if not known(*pair)]
print(json.dumps({"version": trt.__version__, "absent": absent}))
"""

# What comes after an engine was deserialised cannot be recorded: that takes a GPU.
AFTER_DESERIALISING = {
    ("ICudaEngine", "create_engine_inspector"),
    ("EngineInspector", "get_engine_information"),
    ("", "LayerInformationFormat"),
    ("LayerInformationFormat", "ONELINE"),
}
GOOD = """<ir_version: 10, opset_import: ["": 20]>
good (float[batch, length, 32] x, float[32, 32] w) => (float[batch, length, 32] y) { y = MatMul(x, w) }"""
REFUSED = """<ir_version: 10, opset_import: ["": 20]>
refused (bool[batch] a, bool[batch] b) => (bool[batch] y) { y = Add(a, b) }"""


def job(folder: Path, name: str, text: str, shapes: dict[str, list[list[int]]]) -> dict[str, object]:
    onnx.save(onnx.parser.parse_model(text), folder / f"{name}.onnx")
    files = {"graph": f"{name}.onnx", "plan": f"{name}.plan", "log": f"{name}.log"}
    paths = {key: str(folder / file) for key, file in files.items()}
    return {
        "module": "tensorrt_rtx",
        "plugins": [],
        "sms": ["sm86", "sm89"],
        "workspace": 2**30,
        "profiles": [shapes],
        **paths,
        "timing_cache": str(folder / "timing.cache"),
    }


def run(script: str, argument: Path, environment: dict[str, str] | None = None) -> Any:
    path = {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    command = [sys.executable, "-P", "-c", script, str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **path, **(environment or {})}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_attribute_the_adapter_uses_is_in_tensorrt_11(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "good", GOOD, {"x": [[1, 2, 32], [4, 16, 32], [8, 64, 32]], "w": [[32, 32]] * 3}),
        job(tmp_path, "refused", REFUSED, {"a": [[1], [2], [4]], "b": [[1], [2], [4]]}),
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    recorded = run(RECORD, tmp_path / "jobs.json")
    assert recorded["stages"][:2] == ["done", "parse"]  # the third depends on whether this machine has a GPU
    seen = {(owner, name) for owner, name in recorded["seen"]}
    assert {("OnnxParser", "parse_from_file"), ("ParserError", "desc"), ("IBuilderConfig", "max_aux_streams")} <= seen
    assert {("IOptimizationProfile", "set_shape"), ("BuilderFlag", "TF32"), ("Runtime", "deserialize_cuda_engine")} <= seen
    assert seen >= _trt_worker.RTX_ONLY, "the list of exceptions names what the adapter does not use"
    asked = seen | AFTER_DESERIALISING | {("IBuilderConfig", "no_such_thing")}
    (tmp_path / "asked.json").write_text(json.dumps(sorted(asked)))
    looked_up = run(LOOK_UP, tmp_path / "asked.json", stand_in(tmp_path))
    assert looked_up["version"].startswith("11.")
    absent = {(owner, name) for owner, name in looked_up["absent"]}
    assert absent == _trt_worker.RTX_ONLY | {("IBuilderConfig", "no_such_thing")}
