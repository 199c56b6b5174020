"""The runner over onnxruntime-gpu and stand-ins: ONNX Runtime accepts what it asks. No number is read: kernels do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import fused
import pytest

from benchmarks import ort_gpu
from bertc import precision, targets
from bertc.graph.model import save_graph

SITE = ort_gpu.site()
pytestmark = pytest.mark.skipif(SITE is None, reason=ort_gpu.HOW)

RUN = """
import json, sys
import numpy as np
from pathlib import Path
from bertc.targets._model_file import ModelFile
from bertc.targets._onnxruntime_cuda import session

path = Path(sys.argv[1])
manifest = json.loads(path.with_name("manifest.json").read_text())
runner = session.CudaRunner(ModelFile(path, path.read_bytes(), {}), manifest)
shapes = []
for length in (8, 8, 8, 5, 16, 16, 7):
    feeds = {spec.name: np.ones((2, length), np.int64) for spec in runner.inputs}
    (made,) = runner.run(feeds).values()
    shapes.append([list(made.shape), str(made.dtype), len(runner._graphs)])
options = runner._session.get_provider_options()[session.PROVIDER]
kept = {name: options[name] for name in ("enable_cuda_graph", "gpu_mem_limit", "use_tf32", "arena_extend_strategy")}
print(json.dumps({"shapes": shapes, "options": kept, "cpu": session.nodes_on_cpu(runner._session)}))
"""


def artifact(folder: Path, **session: int) -> Path:
    """A typed encoder and what the runner reads of a manifest."""
    target = targets.get("onnxruntime-cuda")
    typed = precision.get("fp16").apply(target.lower(fused.encoder()), kernels=target.KERNELS).graph  # type: ignore[attr-defined]
    save_graph(typed, folder / "model.onnx")
    manifest = {
        "inputs": [spec.to_json() for spec in typed.inputs],
        "outputs": [spec.to_json() for spec in typed.outputs],
        "profiles": [{"batch": "1:2:4", "length": "1:8:16"}],
        "engine": {"session": session},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder / "model.onnx"


@pytest.mark.parametrize("graphs", [0, 1, 8])
def test_runs_of_any_shape_and_recorded_ones_of_the_buckets(graphs: int, tmp_path: Path) -> None:
    assert SITE is not None
    path = artifact(tmp_path, cuda_graphs=graphs, gpu_mem_limit=2**28)
    found = json.loads(ort_gpu.python(SITE, "-c", RUN, path).splitlines()[-1])
    shapes = [shape for shape, _, _ in found["shapes"]]
    assert shapes == [[2, fused.CLASSES]] * 7 and {dtype for _, dtype, _ in found["shapes"]} == {"float32"}
    recorded = [number for _, _, number in found["shapes"]]
    assert recorded == [min(graphs, most) for most in (1, 1, 1, 1, 2, 2, 2)], "8 and 16 are the profile's best and largest"
    assert found["options"] == {
        "enable_cuda_graph": str(int(graphs > 0)),
        "gpu_mem_limit": str(2**28),
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert found["cpu"] == []


def test_without_the_libraries_of_cuda_it_is_said_and_nothing_runs_on_the_cpu(tmp_path: Path) -> None:
    assert SITE is not None
    with pytest.raises(RuntimeError, match=r"Missing: .*CUDA 13"):
        ort_gpu.python(SITE, "-c", RUN, artifact(tmp_path), standins=False)


def test_a_node_without_a_kernel_is_named_when_it_is_loaded(tmp_path: Path) -> None:
    """As with an older onnxruntime-gpu than the table's: the library is asked, not the table."""
    import onnx

    assert SITE is not None
    path = artifact(tmp_path)
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        g (int64[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, length] y)
        { a = Cast <to = 1> (input_ids) b = Cast <to = 1> (attention_mask) c = Add (a, b) y = Sinh (c) }""")
    onnx.save(model, path)
    with pytest.raises(RuntimeError, match=r"BuildFailed: .*Sinh"):
        ort_gpu.python(SITE, "-c", RUN, path)


PROVIDER_OPTIONS = """
import json, sys
import onnxruntime as ort

name, options = json.loads(sys.argv[2])
try:
    ort.InferenceSession(sys.argv[1], providers=[(name, options)], enable_fallback=0)
except Exception as error:
    print(json.dumps(str(error)))
"""


def tensorrt_says(options: dict[str, str], path: Path) -> str:
    """What ONNX Runtime says of options of its TensorRT provider.

    It reads all of them first. The builder that it then asks for is none in the stand-in, which ends the process.
    """
    assert SITE is not None
    try:
        found = ort_gpu.python(SITE, "-c", PROVIDER_OPTIONS, path, json.dumps(["TensorrtExecutionProvider", options]))
    except RuntimeError as ended:
        return "taken" if "exit -11" in str(ended) else str(ended)
    return str(json.loads(found.splitlines()[-1]))


def test_the_tensorrt_provider_s_own_parser_takes_our_options_and_no_others(tmp_path: Path) -> None:
    from bertc.core import TensorSpec, profiles
    from bertc.targets._onnxruntime_cuda import tensorrt_options

    path = artifact(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    inputs = [TensorSpec.from_json(each) for each in manifest["inputs"]]
    given = {"enable": ["fp16", "bf16", "int8"], "max_workspace_size": 2**30, "cuda_graph": 1, "engine_cache": str(tmp_path)}
    chosen = tensorrt_options.checked_options(given, path)
    (_, options), (_, cuda) = tensorrt_options.provider_list(
        "0" * 64, chosen, inputs, profiles.profiles_from_json(manifest["profiles"])
    )
    assert tensorrt_says(options, path) == "taken" and cuda["use_tf32"] == "0"
    for name in ("trt_profile_min_shapes", "trt_engine_cache_path"):
        wrong = {f"{key}_" if key == name else key: value for key, value in options.items()}
        assert f"Invalid TensorRT EP option: {name}_" in tensorrt_says(wrong, path)
    assert "should be 'True' or 'False'" in tensorrt_says({**options, "trt_fp16_enable": "1"}, path)
