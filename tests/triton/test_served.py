"""What `bertc package --triton` writes, in a real tritonserver on the CPU: goldens over HTTP and gRPC, and configurations parsed.

make triton, or: pip install --target FOLDER nvidia-pytriton; BERTC_TRITON=FOLDER pytest tests/triton
"""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_models
import tritonserver

import bertc
from bertc import cli

if tritonserver.home() is None:
    pytest.skip("no tritonserver: BERTC_TRITON names the folder of nvidia-pytriton", allow_module_level=True)
sys.path.append(str(tritonserver.home()))  # behind everything else: tritonclient and what it needs
CLOSE = 1e-5


def packaged(out: Path, *arguments: str) -> None:
    assert cli.run(["package", *arguments, "--triton", str(out)]) == 0


def verified(folder: Path, running: tritonserver.Running, *options: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.append({str(tritonserver.home())!r}); sys.argv[0] = {str(folder / 'verify.py')!r}; "
    code += "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, "--http", running.http, "--grpc", running.grpc, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, tritonserver.Running]]:
    """Both small models by the Python backend."""
    out = tmp_path_factory.mktemp("triton") / "out"
    artifacts = f"embedder={served_models.embedder()[1]}", f"classifier={served_models.classifier('')[1]}"
    packaged(out, *artifacts, "--backend", "python")
    with tritonserver.serving(out / "repository", tmp_path_factory.mktemp("server")) as running:
        yield out, running


def ask(running: tritonserver.Running, model: str, feeds: dict[str, np.ndarray], timeout: int | None = None) -> dict[str, Any]:
    import tritonclient.grpc as client
    from tritonclient.utils import np_to_triton_dtype

    inputs = [client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)) for name, array in feeds.items()]
    for each, array in zip(inputs, feeds.values(), strict=True):
        each.set_data_from_numpy(array)
    with client.InferenceServerClient(running.grpc) as server:
        answer = server.infer(model, inputs)
        return {each.name: answer.as_numpy(each.name) for each in answer.get_response().outputs}


def test_goldens_over_both_protocols(python: tuple[Path, tritonserver.Running]) -> None:
    out, running = python
    found = verified(out, running)
    assert found.returncode == 0, found.stdout + found.stderr
    described = json.loads((out / "goldens" / "models.json").read_text())
    names = ("embedder", "embedder_tokenizer", "embedder_text", "classifier", "classifier_text", "classifier_pairs")
    assert {*names, "classifier_tokenizer", "classifier_tokenizer_pairs"} == set(described)
    for name in described:
        assert f"{name}: ok" in found.stdout
    assert "WRONG" not in found.stdout and "over grpc" in found.stdout and "over http" in found.stdout


def test_a_changed_golden_is_found(python: tuple[Path, tritonserver.Running]) -> None:
    out, running = python
    path = out / "goldens" / "embedder.npz"
    before = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    arrays["0/out/sentence_embedding"] = arrays["0/out/sentence_embedding"] + 1e-3
    np.savez(path, **arrays)
    try:
        found = verified(out, running, "--model", "embedder")
    finally:
        path.write_bytes(before)
    assert found.returncode == 1
    assert [line for line in found.stdout.splitlines() if "WRONG" in line and "sample 0" in line]
    assert verified(out, running, "--model", "other").returncode == 2


def test_requests_of_all_lengths_at_once_are_answered_as_alone(python: tuple[Path, tritonserver.Running]) -> None:
    runner = bertc.load(served_models.embedder()[1])
    texts = served_models.texts(60)
    feeds = [runner.encode([text]) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda each: ask(python[1], "embedder", each), feeds))
    for each, answer in zip(feeds, answers, strict=True):
        assert np.abs(answer["sentence_embedding"] - runner.run(each)["sentence_embedding"]).max() < CLOSE
    with urllib.request.urlopen(f"http://{python[1].http}/v2/models/embedder/stats") as answer:
        stats = json.loads(answer.read())["model_stats"][0]
    assert stats["execution_count"] < stats["inference_count"], "requests shared a call of the Python model"


def test_a_wrong_request_fails_alone(python: tuple[Path, tritonserver.Running]) -> None:
    runner = bertc.load(served_models.embedder()[1])
    good = runner.encode(["the cat"])
    wrong = good | {"input_ids": good["input_ids"] + 10_000}
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, python[1], "embedder", wrong if at % 3 == 0 else good) for at in range(12)]
    for at, each in enumerate(answers):
        assert (each.exception() is not None) == (at % 3 == 0), at


def test_texts_get_the_default_prompt_and_are_cut(python: tuple[Path, tritonserver.Running]) -> None:
    runner = bertc.load(served_models.embedder()[1])
    texts = ["the cat", "a mat " * 60]
    made = ask(python[1], "embedder_text", {"TEXT": np.array([[text.encode()] for text in texts], object)})
    assert np.abs(made["sentence_embedding"] - runner.embed(texts)).max() < CLOSE


def test_the_configuration_that_the_server_read(python: tuple[Path, tritonserver.Running]) -> None:
    with urllib.request.urlopen(f"http://{python[1].http}/v2/models/embedder/config") as answer:
        found = json.loads(answer.read())
    assert found["max_batch_size"] == 32 and found["backend"] == "python"
    assert all(each["allow_ragged_batch"] for each in found["input"])
    assert found["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 1024
    assert found["model_warmup"] and not found["response_cache"]["enable"]
    assert found["parameters"]["policy"]["string_value"] == "tokens"


def test_numpy_2_under_a_server_for_numpy_1_is_refused_by_its_name(tmp_path: Path) -> None:
    packaged(tmp_path / "out", f"embedder={served_models.embedder()[1]}", "--backend", "python", "--no-tokenizer")
    (tmp_path / "server").mkdir()
    server = tritonserver.serving(tmp_path / "out" / "repository", tmp_path / "server", numpy_1=False)
    with pytest.raises(AssertionError) as error, server:
        pass
    assert "numpy<2" in str(error.value)


def test_other_backends_are_parsed_and_not_run(tmp_path: Path) -> None:
    """ONNX Runtime's backend is not in the wheel: the server reads the configuration, and says that this alone is missing."""
    out = tmp_path / "out"
    packaged(out, f"embedder={served_models.embedder()[1]}")
    plan = out / "repository" / "embedder" / "config.pbtxt"
    assert 'backend: "onnxruntime"' in plan.read_text()
    (tmp_path / "server").mkdir()
    options = "--model-control-mode=explicit", "--load-model=embedder_tokenizer"
    with tritonserver.serving(out / "repository", tmp_path / "server", *options) as running:
        load = urllib.request.Request(f"http://{running.http}/v2/repository/models/embedder/load", b"{}")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(load)
        told = error.value.read().decode()
        found = verified(out, running, "--model", "embedder_tokenizer")
    assert "onnxruntime" in told and "backend" in told, told
    assert found.returncode == 0, found.stdout
    print("NOT RUN: the engine by ONNX Runtime's backend, which this server has not; its configuration was parsed")  # noqa: T201


def test_ragged_inputs_of_a_packed_engine_are_parsed_and_not_run(tmp_path: Path) -> None:
    """The server reads batch_input by its schema before it looks for the backend."""
    out = tmp_path / "out"
    (made,) = bertc.build(served_models.embedder()[0], tmp_path / "packed", targets=["onnxruntime"], packed=True, prove=False)
    packaged(out, f"packed={made.path}", "--no-tokenizer")
    config = out / "repository" / "packed" / "config.pbtxt"
    right = config.read_text()
    assert "BATCH_ITEM_SHAPE_FLATTEN" in right
    (tmp_path / "server").mkdir()

    def told(text: str) -> str:
        config.write_text(text)
        load = urllib.request.Request(f"http://{running.http}/v2/repository/models/packed/load", b"{}")
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(load)
        return error.value.read().decode()

    with tritonserver.serving(out / "repository", tmp_path / "server", "--model-control-mode=explicit") as running:
        missing = told(right)
        broken = told(right.replace("BATCH_ITEM_SHAPE_FLATTEN", "BATCH_NO_SUCH_KIND"))
    assert "onnxruntime" in missing and "backend" in missing, missing
    assert "unable to find backend library" not in broken, broken
    print("NOT RUN: ragged inputs in ONNX Runtime's backend, which this server has not; their configuration was parsed")  # noqa: T201
