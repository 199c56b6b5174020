"""Real TensorRT-RTX builds of small seeded graphs, on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bertc.core import files
from bertc.core.errors import BuildFailed, InputError, Missing, RecipeError
from bertc.core.profiles import Range
from bertc.core.tensors import TensorSpec
from bertc.graph import model as graph_
from bertc.graph.model import Graph
from bertc.targets import BuildRequest, tensorrt, tensorrt_rtx
from bertc.targets._tensorrt import adapter as _trt
from bertc.targets._tensorrt import kernel_log as _kernels
from bertc.targets._tensorrt import weight_check as _weights

pytestmark = pytest.mark.rtx

HEADER = '<ir_version: 10, opset_import: ["": 23]>\n'
WIDTH = 64
MLP = "g (T[batch, length, 64] x) => (T[batch, length, 64] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"
ATTENTION = """g (T[batch, length, 64] x, float[batch, 1, 1, length] mask) => (T[batch, length, 64] y) {
    heads = Constant<value = int64[4] {0, 0, 2, 32}>()
    flat = Constant<value = int64[3] {0, 0, 64}>()
    q0 = MatMul(x, w0) q1 = Reshape(q0, heads) q = Transpose<perm = [0, 2, 1, 3]>(q1)
    k0 = MatMul(x, w1) k1 = Reshape(k0, heads) k = Transpose<perm = [0, 2, 3, 1]>(k1)
    v0 = MatMul(x, w2) v1 = Reshape(v0, heads) v = Transpose<perm = [0, 2, 1, 3]>(v1)
    s = MatMul(q, k) s32 = Cast<to = 1>(s) m = Add(s32, mask) p32 = Softmax<axis = -1>(m) p = CastLike(p32, x)
    c0 = MatMul(p, v) c1 = Transpose<perm = [0, 2, 1, 3]>(c0) c = Reshape(c1, flat)
    y = MatMul(c, w3)
}"""
CRASHES = "g (float[batch, 8, length, 64] x) => (float[batch, 8, length, 64] y) { y = Attention(x, x, x) }"
PROFILE = {"batch": Range(1, 4, 8), "length": Range(2, 16, 64)}


def make(folder: Path, body: str, kind: str = "float", weights: int = 4) -> Path:
    """Write a graph of 64-wide weights w0, w1 ... of an ONNX type; every node is named after its output."""
    model = onnx.parser.parse_model(HEADER + body.replace("T[", f"{kind}["))
    rng = np.random.default_rng(0)
    dtype = {"float": np.float32, "float16": np.float16}[kind]
    for name in (f"w{i}" for i in range(weights) if f"w{i}" in body):
        values = rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    path = folder / "graph.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def request(path: Path, precision: str = "fp32", sms: tuple[str, ...] = ("sm89",), out: str = "out") -> BuildRequest:
    directory = path.parent / out
    directory.mkdir()
    return BuildRequest(graph_.load_graph(path), path, directory, precision, sms, (PROFILE,))


def test_builds_an_engine_and_says_what_is_in_it(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP))
    built = tensorrt_rtx.build(asked)
    plan = asked.directory / "engine.plan"
    assert [p.name for p in asked.directory.iterdir()] == ["engine.plan"]
    assert built.files == {"engine.plan": files.hash_file(plan)}
    facts = built.facts
    assert facts["sms"] == ["sm89"]
    assert facts["tf32"] is False
    assert facts["engine_bytes"] == plan.stat().st_size
    assert facts["kernels"]["count"] == len(facts["kernels"]["rows"]) == facts["kernels"]["rest"] > 0
    assert facts["gemms"] == {"total": 2, "half": 0}
    assert facts["initializer_bytes"] == 2 * WIDTH * WIDTH * 4
    assert 1 <= facts["constant_ratio"] < 1.01
    assert built.notes == ()


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path) -> None:
    path = make(tmp_path, MLP)
    first, second = (tensorrt_rtx.build(request(path, out=name)) for name in ("first", "second"))
    assert first.files == second.files


def test_one_plan_for_several_sms_and_the_default(tmp_path: Path) -> None:
    path = make(tmp_path, MLP, "float16")
    several = tensorrt_rtx.build(request(path, "fp16", ("sm86", "sm89"), out="several"))
    assert several.facts["sms"] == ["sm86", "sm89"]
    default = tensorrt_rtx.build(request(path, "fp16", (), out="default"))
    assert default.facts["sms"] == list(tensorrt_rtx.DEFAULT_SMS)
    assert default.files != several.files


@pytest.mark.parametrize("sm", ["sm75", "sm80", "sm120"])
def test_fp16_attention_is_proven_half_around_a_float_softmax(tmp_path: Path, sm: str) -> None:
    built = tensorrt_rtx.build(request(make(tmp_path, ATTENTION, "float16"), "fp16", (sm,)))
    assert built.facts["gemms"] == {"total": 6, "half": 6}
    assert any(row["name"].startswith("_gemm_mha") for row in built.facts["kernels"]["rows"])
    assert bool(built.notes) == (sm == "sm80")


def test_float_gemms_are_caught(tmp_path: Path) -> None:
    """A graph typed fp16 against the log of a float32 engine of the same graph: what a builder that cheats would leave."""
    single, half = tmp_path / "single", tmp_path / "half"
    for folder in (single, half):
        folder.mkdir()
    log = log_of(request(make(single, ATTENTION)), tmp_path)
    typed = graph_.load_graph(make(half, ATTENTION, "float16"))
    with pytest.raises(BuildFailed, match=r"fp16 was requested, 6 of 6 GEMMs are Float: node_q0 \(MatMul\).* and 1 more"):
        _kernels.check_gemms(typed, _kernels.parse_kernels(log), "fp16")


def test_a_gemm_that_no_kernel_names_is_caught(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP, "float16"), "fp16")
    kernels = [k for k in _kernels.parse_kernels(log_of(asked, tmp_path)) if "node_y" not in k.onnx_nodes]
    with pytest.raises(BuildFailed, match=r"no engine layer names 1 of 2 GEMMs.*node_y"):
        _kernels.check_gemms(asked.graph, kernels, "fp16")


def test_a_precision_that_never_reached_the_graph_is_caught(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP), "fp16")
    with pytest.raises(BuildFailed, match="all 2 GEMMs of the graph are float32"):
        tensorrt_rtx.build(asked)
    assert list(asked.directory.iterdir()) == []


def test_lost_weights_are_caught(tmp_path: Path) -> None:
    """The graph says two different weights, the file that was compiled uses the first one twice."""
    path = make(tmp_path, MLP)
    asked = request(path)
    model = onnx.load(path)
    model.graph.node[-1].input[1] = "w0"
    onnx.save(model, path)
    with pytest.raises(BuildFailed, match=r"32768 bytes of weights, the engine \d+ \(50\.\d%\)"):
        tensorrt_rtx.build(asked)


def test_the_profile_reaches_the_builder(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP))
    short = {"batch": Range(1, 1, 2), "length": Range(4, 8, 16)}
    log = log_of(dataclasses.replace(asked, profiles=(PROFILE, short)), tmp_path)
    assert "MinShape: [1,2,64], OptShape: [4,16,64], MaxShape: [8,64,64]" in log
    assert "MinShape: [1,4,64], OptShape: [1,8,64], MaxShape: [2,16,64]" in log
    kernels = _kernels.parse_kernels(log)
    assert {k.profile for k in kernels} == {0, 1}
    assert _weights.check_constants(asked.graph, kernels, 2**40)["constant_ratio"] < 1.01


def test_too_small_a_workspace_says_what_to_do(tmp_path: Path) -> None:
    body = "g (T[batch, length, 64] x) => (T[batch, length, 64] y) { a = MatMul(x, w0) b = Softmax(a) y = MatMul(b, w1) }"
    with pytest.raises(BuildFailed, match=r"(?s)sm89. failed to build:.*lower the profile's maximum"):
        _trt.build("tensorrt_rtx", request(make(tmp_path, body)), workspace=1)


def test_a_profile_beyond_the_model_says_what_to_do(tmp_path: Path) -> None:
    body = """g (T[batch, length, 64] x) => (T[batch, length, 64] y) {
        shape = Shape<start = 1, end = 2>(x) none = Constant<value = int64[1] {0}>() axis = Constant<value = int64[1] {0}>()
        some = Slice(w0, none, shape, axis) a = Add(x, some) y = Relu(a)
    }"""
    asked = request(make(tmp_path, body))
    long = {"batch": Range(1, 4, 8), "length": Range(2, 65, 65)}
    tensorrt_rtx.build(asked)
    with pytest.raises(BuildFailed, match=r"(?s)failed to build:.*lower the profile's maximum"):
        tensorrt_rtx.build(dataclasses.replace(asked, profiles=(long,)))


def test_what_the_parser_refuses_is_named_with_a_remedy(tmp_path: Path) -> None:
    body = "g (bool[batch, length] x, bool[batch, length] y) => (bool[batch, length] z) { z = Add(x, y) }"
    with pytest.raises(BuildFailed, match=r"(?s)cannot read the graph:.*node 'node_z' \(Add\).*turn it into a float mask"):
        tensorrt_rtx.build(request(make(tmp_path, body)))


def test_a_compiler_that_crashes_is_an_error_not_a_crash(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 segfaults on Attention of one tensor with itself."""
    asked = request(make(tmp_path, CRASHES))
    with pytest.raises(BuildFailed, match=r"crashed: its process was ended by SIG(SEGV|ABRT).*Last messages: \[VERBOSE\]"):
        tensorrt_rtx.build(asked)
    assert list(asked.directory.iterdir()) == []


def test_a_killed_compiler_is_an_error(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP))
    killer = threading.Thread(target=lambda: os.kill(worker_of(os.getpid()), signal.SIGKILL))
    killer.start()
    with pytest.raises(BuildFailed, match="ended by SIGKILL"):
        tensorrt_rtx.build(asked)
    killer.join()
    assert list(asked.directory.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_compiler_dies_with_the_process_that_asked(tmp_path: Path, how: signal.Signals) -> None:
    """SIGINT is Ctrl-C, which Python sees; SIGKILL nobody sees, so the kernel has to do it. The worker is stopped to be slow."""
    path = make(tmp_path, MLP)
    script = "import runpy, sys; from pathlib import Path; mine = runpy.run_path(sys.argv[1])\n"
    script += "mine['tensorrt_rtx'].build(mine['request'](Path(sys.argv[2])))"
    (tmp_path / "left").mkdir()  # what a killed process cannot remove
    paths = {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), "TMPDIR": str(tmp_path / "left")}
    environment = {**os.environ, **paths}
    command = [sys.executable, "-c", script, __file__, str(path)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    worker = worker_of(parent.pid)
    wait_until(lambda: "libtensorrt" in Path(f"/proc/{worker}/maps").read_text())  # past the start of its main()
    os.kill(worker, signal.SIGSTOP)
    parent.send_signal(how)
    errors = parent.communicate(timeout=20)[1]
    wait_until(lambda: not running(worker))
    assert not (tmp_path / "out" / "engine.plan").exists()
    assert parent.returncode == -how
    assert how != signal.SIGINT or "KeyboardInterrupt" in errors


def test_refuses_what_turing_cannot_do(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP))
    for precision in ("bf16", "fp32"):
        with pytest.raises(InputError, match=f"{precision} on sm75.*use --fp16"):
            tensorrt_rtx.build(dataclasses.replace(asked, sms=("sm75",), precision=precision))
    with pytest.raises(RecipeError, match=r"sm75 and sm86 .*in one engine"):
        tensorrt_rtx.build(dataclasses.replace(asked, sms=("sm75", "sm86"), precision="fp16"))
    with pytest.raises(RecipeError, match="cannot build for 'sm90'"):
        tensorrt_rtx.build(dataclasses.replace(asked, sms=("sm90",)))


@pytest.mark.parametrize("target", [tensorrt_rtx, tensorrt])
def test_refuses_nodes_that_the_parser_would_misread(tmp_path: Path, target: object) -> None:
    graph = graph_.load_graph(make(tmp_path, MLP))
    lower: Callable[[Graph], Graph] = target.lower  # type: ignore[attr-defined]
    assert lower(graph) is graph
    foreign = graph.copy()
    foreign.model.graph[0].domain = "com.microsoft"
    with pytest.raises(BuildFailed, match=r"1 nodes are not ONNX operators: 'node_a' \(com.microsoft.MatMul\)"):
        lower(foreign)


def test_refuses_local_functions() -> None:
    """Six calls of one function once got the weights of the first."""
    text = HEADER.replace('["": 23]', '["": 23, "local": 1]')
    text += "g (float[64] x) => (float[64] y) { y = local.twice(x) }\n"
    text += '<domain: "local", opset_import: ["": 23]> twice (a) => (b) { b = Add(a, a) }'
    model = ir.from_proto(onnx.parser.parse_model(text))
    call, inlined = Graph(model), Graph(model.clone())
    with pytest.raises(BuildFailed, match=r"1 nodes are not ONNX operators: .*local\.twice"):
        tensorrt_rtx.lower(call)
    inlined.model.graph.remove(list(inlined.model.graph))
    with pytest.raises(BuildFailed, match=r"local functions: local\.twice"):
        tensorrt_rtx.lower(inlined)


def test_a_runner_takes_the_first_profile_that_fits() -> None:
    spec = TensorSpec("x", "float32", ("batch", "length", 64))
    assert _trt._fits(spec, (8, 64, 64), PROFILE)
    assert not _trt._fits(spec, (9, 64, 64), PROFILE)
    assert not _trt._fits(spec, (1, 1, 64), PROFILE)


def test_refuses_two_nodes_of_one_name(tmp_path: Path) -> None:
    asked = request(make(tmp_path, MLP))
    asked.graph.model.graph[0].name = "node_y"
    with pytest.raises(BuildFailed, match="two nodes are named 'node_y'"):
        tensorrt_rtx.build(asked)


def test_says_what_is_missing_to_run_or_to_build(tmp_path: Path) -> None:
    """On a machine with such a GPU these run instead: tests/gpu."""
    able = tensorrt_rtx.available()
    assert able.build
    if not able.run:
        with pytest.raises(Missing, match=r"cannot run here: .*GPU.*; run it on a machine with one of sm75, "):
            tensorrt_rtx.load(tmp_path, {})
    asked = request(make(tmp_path, MLP), sms=())
    if not tensorrt.available().build:
        with pytest.raises(Missing, match=r"target tensorrt cannot build here: .*bertc\[trt\]'  \(on a host with the GPU\)"):
            tensorrt.build(asked)


def test_a_library_that_does_not_load_is_told_from_a_package_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    able = tensorrt.available()
    assert not able.build
    assert "installed but its library does not load: ImportError: libnvinfer.so.11: cannot open" in able.reason


def log_of(asked: BuildRequest, folder: Path) -> str:
    log: str = _trt._compile("tensorrt_rtx", asked, None, folder)[1]
    return log


def worker_of(parent: int) -> int:
    """The pid of the worker that a process has started."""
    found: list[int] = []

    def look() -> bool:
        tasks = Path(f"/proc/{parent}/task").iterdir()
        children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        found.extend(pid for pid in children if b"_tensorrt.worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return bool(found)

    wait_until(look)
    return found[0]


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(done: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds} s for nothing"
        time.sleep(0.002)
