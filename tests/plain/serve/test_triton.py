"""config.pbtxt of packages: what the manifest and serving.toml say stands in Triton's own schema, and what gets lost is said."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
import tiny

import bertc
from bertc import cli
from bertc.core import InputError, Missing, hash_file

FOLDER = os.environ.get("BERTC_TRITON")
if FOLDER and importlib.util.find_spec("tritonclient") is None:
    sys.path.append(FOLDER)
NEEDS = pytest.mark.skipif(
    importlib.util.find_spec("tritonclient") is None, reason="no tritonclient: pip install 'bertc[triton]'"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    out = folder / "tiny"
    profiles = ("batch=1:4:8,length=1:8:16", "batch=1:4:8,length=16:24:32")
    bertc.build(tiny.encoder(folder / "m.onnx", tokenizer=True), out, targets=["onnxruntime"], profiles=profiles)
    return out


def as_target(artifact: Path, out: Path, target: str, **changes: Any) -> Path:
    """The artifact as if it were another target's: its manifest says so, and a file stands where the plan would."""
    shutil.copytree(artifact, out)
    (out / "engine.plan").write_bytes(f"the plan of {out.name}".encode())
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["target"] = {"name": target, "sms": []}
    manifest["engine"] = {"builder_version": "11.4.0.1"}
    manifest["files"]["engine.plan"] = {"sha256": hash_file(out / "engine.plan"), "bytes": 1}
    (out / "manifest.json").write_text(json.dumps(manifest | changes))
    return out


def packaged(out: Path, *arguments: object) -> dict[str, list[str]]:
    assert cli.run(["package", *map(str, arguments), "--triton", str(out)]) == 0
    found: dict[str, list[str]] = json.loads((out / "manifest.json").read_text())["notes"]
    return found


def config_of(out: Path, model: str) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as schema

    return text_format.Parse((out / "repository" / model / "config.pbtxt").read_text(), schema.ModelConfig())


@NEEDS
def test_plans_of_several_gpus_are_one_model(artifact: Path, tmp_path: Path) -> None:
    ada, ampere = (as_target(artifact, tmp_path / name, "tensorrt") for name in ("ada", "ampere"))
    notes = packaged(tmp_path / "out", f"m@8.9={ada}", f"m@8.0={ampere}", "--no-tokenizer")
    found = config_of(tmp_path / "out", "m")
    assert (found.backend, found.platform, found.max_batch_size) == ("tensorrt", "tensorrt_plan", 8)
    assert dict(found.cc_model_filenames) == {"8.9": "model_sm89.plan", "8.0": "model_sm80.plan"}
    version = tmp_path / "out" / "repository" / "m" / "1"
    assert (version / "model_sm89.plan").read_bytes() == (ada / "engine.plan").read_bytes()
    assert [list(group.profile) for group in found.instance_group] == [["0", "1"]], "without them the first profile alone is used"
    assert [(each.name, list(each.dims), each.allow_ragged_batch) for each in found.input] == [
        ("input_ids", [-1], False),
        ("attention_mask", [-1], False),
    ]
    assert [list(each.dims) for each in found.output] == [[-1, tiny.WIDTH]]
    assert not found.response_cache.enable
    assert any("TensorRT 11.4.0.1" in note for note in notes["m"])
    assert any("policy cost" in note for note in notes["m"]), "what Triton cannot express is said"


@NEEDS
def test_warm_up_requests_are_goldens(artifact: Path, tmp_path: Path) -> None:
    packaged(tmp_path / "out", f"m={artifact}", "--no-tokenizer")
    found = config_of(tmp_path / "out", "m")
    assert found.model_warmup
    goldens = np.load(artifact / "goldens.npz")
    rows = {goldens[key][0].tobytes() for key in goldens.files if key.endswith("in/input_ids")}
    for warmup in found.model_warmup:
        given = warmup.inputs["input_ids"]
        data = (tmp_path / "out" / "repository" / "m" / "warmup" / given.input_data_file).read_bytes()
        assert data in rows and len(data) == 8 * int(np.prod(given.dims))


@NEEDS
@pytest.mark.parametrize("policy", ["none", "count", "tokens", "cost"])
def test_serving_toml(artifact: Path, tmp_path: Path, policy: str) -> None:
    text = f'policy = "{policy}"\nmax_wait_ms = 3\nworkers = 3\nthreads = 2\nmemory = "8GB"\ntarget_ms = 50\nport = 9\n'
    text += "[limits]\nqueue = 77\ndeadline_ms = 250\nbody_bytes = 5000\n"
    (tmp_path / "serving.toml").write_text(text)
    notes = packaged(tmp_path / "out", f"m={artifact}", "--config", tmp_path / "serving.toml")["m"]
    found = config_of(tmp_path / "out", "m")
    assert found.backend == "onnxruntime" and found.instance_group[0].count == 3
    assert found.parameters["intra_op_thread_count"].string_value == "2"
    assert found.HasField("dynamic_batching") == (policy != "none")
    if policy != "none":
        queue = found.dynamic_batching.default_queue_policy
        assert (queue.max_queue_size, queue.default_timeout_microseconds, queue.timeout_action) == (77, 250_000, 0)
        assert found.dynamic_batching.max_queue_delay_microseconds == (3000 if policy == "count" else 0)
    told = " ".join(notes)
    for lost in ("memory 8GB", "target_ms 50", "port", "limits.body_bytes"):
        assert lost in told, lost
    assert ("is not Triton's" in told) == (policy in ("tokens", "cost"))


@NEEDS
def test_the_tokenizer_says_all_in_its_file(artifact: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    packaged(tmp_path / "out", f"m={artifact}")
    repository = tmp_path / "out" / "repository"
    assert {path.name for path in repository.iterdir()} == {"m", "m_tokenizer", "m_text"}
    made = Tokenizer.from_file(str(repository / "m_tokenizer" / "1" / "tokenizer.json"))
    found = made.encode_batch(["two words", "more " * 90])
    assert [len(each.ids) for each in found] == [32, 32], "cut at the longest of the profiles, padded to the longest"
    ensemble = config_of(tmp_path / "out", "m_text")
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["m_tokenizer", "m"]
    assert set(ensemble.ensemble_scheduling.step[1].input_map) == {"input_ids", "attention_mask"}


@NEEDS
def test_python_batches_by_length(artifact: Path, tmp_path: Path) -> None:
    rtx = as_target(artifact, tmp_path / "rtx", "tensorrt-rtx")
    with pytest.raises(InputError, match="--backend python"):
        _package(tmp_path / "no", f"m={rtx}")
    packaged(tmp_path / "out", f"m={rtx}", "--backend", "python", "--no-tokenizer")
    found = config_of(tmp_path / "out", "m")
    assert found.backend == "python" and all(each.allow_ragged_batch for each in found.input)
    assert found.parameters["policy"].string_value == "tokens"
    assert (tmp_path / "out" / "repository" / "m" / "1" / "artifact" / "manifest.json").is_file()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed engines: one vector for each row, and a value for each position."""
    folder = tmp_path_factory.mktemp("packed")
    made = {}
    for kind in ("embedder", "tokens"):
        source = served.model(folder / f"{kind}-source", kind)
        made[kind] = bertc.build(source, folder / kind, targets=["onnxruntime"], packed=True, verify=False)[0].path
    return made


@NEEDS
def test_a_packed_engine_takes_rows_of_all_lengths(packed: dict[str, Path], tmp_path: Path) -> None:
    """As Triton's backends do it: values of all requests in one row, the length of each row beside it."""
    import onnxruntime

    notes = packaged(tmp_path / "out", f"m={packed['embedder']}")["m"]
    found = config_of(tmp_path / "out", "m")
    assert found.backend == "onnxruntime" and found.max_batch_size == 32
    assert [(each.name, each.allow_ragged_batch, list(each.dims)) for each in found.input] == [
        ("input_ids", True, [-1]), ("attention_mask", True, [-1]),
    ]  # fmt: skip
    kinds = {made.Kind.Name(made.kind) for made in found.batch_input}
    lengths = {made.source_input[0]: made.target_name[0] for made in found.batch_input}
    assert kinds == {"BATCH_ITEM_SHAPE_FLATTEN"} and list(lengths) == ["input_ids", "attention_mask"]
    assert any("ragged" in note and "NOT RUN" in note for note in notes)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "repository" / "m" / "1" / "model.onnx"))
    types = {each.name: (each.type, len(each.shape)) for each in session.get_inputs()}
    assert types == dict.fromkeys(lengths, ("tensor(int64)", 1)) | dict.fromkeys(lengths.values(), ("tensor(int32)", 1))

    def ask(requests: list[dict[str, np.ndarray]]) -> np.ndarray:
        flat = {name: np.concatenate([each[name].ravel() for each in requests]) for name in lengths}
        sizes = {to: np.array([len(row) for each in requests for row in each[name]], np.int32) for name, to in lengths.items()}
        return np.asarray(session.run(None, flat | sizes)[0])

    runner = bertc.load(packed["embedder"])
    requests = [dict(runner.encode(texts)) for texts in (["two words"], ["more"], ["and two", "more and"], ["two " * 40])]
    requests[1]["attention_mask"][0, 0] = 0  # a mask with a hole is the request's own
    wanted = np.concatenate([runner.run(each)["sentence_embedding"] for each in requests])
    assert wanted.shape == (5, tiny.WIDTH)
    np.testing.assert_allclose(ask(requests), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ask(requests[:1]), wanted[:1], rtol=0, atol=1e-5)
    for cut in (slice(0, 1), [0, 0, *range(len(requests[0]["attention_mask"][0]))]):
        wrong = requests[0] | {"attention_mask": requests[0]["attention_mask"][:, cut]}  # of another length than its ids
        np.testing.assert_allclose(ask([wrong, *requests[1:]])[1:], wanted[1:], rtol=0, atol=1e-5)


@NEEDS
def test_why_an_engine_has_no_ragged_inputs(packed: dict[str, Path], artifact: Path, tmp_path: Path) -> None:
    notes = packaged(tmp_path / "tokens", f"m={packed['tokens']}")["m"]
    assert any("'logits' has a value for each position" in note for note in notes)
    found = config_of(tmp_path / "tokens", "m")
    assert not found.batch_input and not any(each.allow_ragged_batch for each in found.input)
    packaged(tmp_path / "plain", f"m={artifact}")
    assert not config_of(tmp_path / "plain", "m").batch_input, "a padded engine stays as it is"


def _package(out: Path, *named: str) -> None:
    from bertc.serve import triton

    triton.package([triton.Named(n, Path(p), c) for n, c, p in ((*_split(text),) for text in named)], out)


def _split(text: str) -> tuple[str, str, str]:
    name, _, path = text.partition("=")
    name, _, capability = name.partition("@")
    return name, capability, path


@NEEDS
def test_artifacts_that_are_no_model_together(artifact: Path, tmp_path: Path) -> None:
    one, two = (as_target(artifact, tmp_path / name, "tensorrt") for name in ("one", "two"))
    other = as_target(artifact, tmp_path / "other", "tensorrt", profiles=[{"batch": "1:1:1", "length": "1:8:16"}])
    for named in (
        (f"m={one}", f"m={two}"),
        (f"m@8.9={one}", f"m@8.9={two}"),
        (f"m@8.9={one}", f"m={two}"),
        (f"m@8.9={one}", f"m@8.0={other}"),
        (f"m@8.9={artifact}",),
        (f"m@89={one}",),
        (f"a/b={one}",),
    ):
        with pytest.raises(InputError):
            _package(tmp_path / "out", *named)
        assert not (tmp_path / "out").exists()


@NEEDS
def test_force_replaces_a_package_and_nothing_else(artifact: Path, tmp_path: Path) -> None:
    packaged(tmp_path / "out", f"m={artifact}")
    assert cli.run(["package", str(artifact), "--triton", str(tmp_path / "out")]) == 2
    packaged(tmp_path / "out", f"n={artifact}", "--force", "--no-tokenizer")
    assert [path.name for path in (tmp_path / "out" / "repository").iterdir()] == ["n"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert cli.run(["package", str(artifact), "--triton", str(tmp_path / "mine"), "--force"]) == 2
    assert (tmp_path / "mine" / "file").is_file()


def test_without_the_schema_it_says_what_to_install(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tritonclient"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    with pytest.raises(Missing, match=r"bertc\[triton\]"):
        _package(tmp_path / "out", f"m={artifact}")
