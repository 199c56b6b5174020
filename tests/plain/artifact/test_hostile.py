"""Somebody else's artifact is data: nothing that its manifest names is imported, opened or allowed by it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

import bertc
from bertc.artifact.manifest import open_artifact
from bertc.cli import _main as cli
from bertc.core.errors import ArtifactError, BertcError
from bertc.core.files import hash_file

Capture = pytest.CaptureFixture[str]
EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef make(): raise SystemExit(9)\n"
opened: list[str] = []  # paths opened while `watched` is in it
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and "watched" in opened else None)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    bertc.build(tiny.encoder(folder / "m.onnx", tokenizer=True), folder / "out", targets=["onnxruntime=fp32"])
    bertc.build(folder / "m.onnx", folder / "half", targets=["null=fp16"])
    return folder


@pytest.fixture
def watch() -> Iterator[list[str]]:
    opened[:] = ["watched"]
    yield opened
    opened.clear()


def told(made: Path, folder: Path, **changes: Any) -> Path:
    """A copy of an artifact whose manifest says otherwise; a manifest has no hash of its own."""
    copy = folder / made.name
    shutil.copytree(made, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    for key, value in changes.items():
        *parts, last = key.split("__")
        place = manifest
        for part in parts:
            place = place[part]
        place[last] = value
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.mark.parametrize("words", ["verify {a}", "verify {a} --data {npz}", "verify {a} --data {txt}", "verify {a} --layers",
    "verify {a} --layers --data {npz}", "verify {a} --bisect", "verify {a} --bisect --data {npz}", "inspect {a}",
    "build {a} --fp16 --target null -o {o}", "build {a} --int8 --data {txt} --target onnxruntime -o {o}",
    "build {a} --fp32 --goldens data --data {txt} --target null -o {o}", "calibrate {a} --data {txt} -o {o}",
    "bench {a} --shapes 1x4 --rounds 2", "report {a} -o {o}", "profile {lengths} --source {a}",
    "export {a} -o {o}", "fuse {a}/graph.onnx -o {o}.onnx"])  # fmt: skip
@pytest.mark.parametrize("name", ["out", "half"])
def test_no_command_runs_what_a_manifest_names(
    words: str, name: str, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: list[str], capsys: Capture
) -> None:
    (tmp_path / "evil_module.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = {"task": None, "revision": "main", "allow_pickle": True, "trust_remote_code": True, "ids": "int64", "opset": 20}
    changes = {"source__reference": "evil_module:make", "source__kind": "factory", "source__options": options}
    made = told(good / name, tmp_path, **changes, recipe={"source": "evil_module:make", "data": "/etc/passwd"})
    np.savez(tmp_path / "d.npz", **tiny.feeds(3, 9))
    (tmp_path / "t.txt").write_text("two words\nand more words\n" * 4)
    (tmp_path / "lengths.txt").write_text("4 2\n8 3\n")
    names = {"a": made, "npz": tmp_path / "d.npz", "txt": tmp_path / "t.txt", "o": tmp_path / "o"}
    watch[:] = ["watched"]
    code = cli.run(words.format(lengths=tmp_path / "lengths.txt", **names).split())
    err = capsys.readouterr().err
    assert code in (0, 1, 2), err
    if code == 2:  # nothing was left to try: it must be for want of the source, or a typed graph as a source
        assert any(why in " ".join(err.split()) for why in ("--against SOURCE", "already fp16", "cannot run the data")), err
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert not [path for path in watch if "evil" in path or path == "/etc/passwd"]


def test_the_source_is_not_opened_either(good: Path, tmp_path: Path, watch: list[str], capsys: Capture) -> None:
    """Not even where it lies and is the right one: only --against opens it."""
    np.savez(tmp_path / "d.npz", **tiny.feeds(3, 9))
    assert cli.run(["verify", str(good / "out"), "--data", str(tmp_path / "d.npz")]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "--against SOURCE" in err
    assert str(good / "m.onnx") in err.replace(" ", "")
    assert str(good / "m.onnx") not in watch
    assert cli.run(["verify", str(good / "out"), "--data", str(tmp_path / "d.npz"), "--against", str(good / "m.onnx")]) == 0


def test_another_source_is_refused_by_its_hash(good: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tiny.encoder(tmp_path / "other.onnx", changed=0.5)
    for words in (["verify"], ["verify", "--layers"], ["verify", "--bisect"]):
        assert cli.run([words[0], str(good / "half"), *words[1:], "--against", str(other)]) == 2
        assert "its sha256 is" in " ".join(capsys.readouterr().err.split())


def test_what_opens_a_source_goes_with_one(good: Path, capsys: Capture) -> None:
    for flag in ("--allow-pickle", "--trust-remote-code", "--allow-changed-source"):
        assert cli.run(["verify", str(good / "out"), flag]) == 2
        assert "go with --against" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["os", "_registry", "../evil_module", "bertc.targets.null", "__init__", "onnxruntime:sm89", ""])
def test_a_target_is_one_of_ours(name: str, good: Path, tmp_path: Path, capsys: Capture) -> None:
    before = set(sys.modules)
    made = told(good / "out", tmp_path, target__name=name)
    assert cli.run(["verify", str(made)]) == 2
    assert "unknown target" in capsys.readouterr().err
    assert not {module for module in set(sys.modules) - before if module.startswith("bertc.targets.")}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_num_threads", 10**9),
        ("intra_op_num_threads", -1),
        ("intra_op_num_threads", True),
        ("graph_optimization_level", "__class__"),
        ("execution_mode", ["ORT_PARALLEL"]),
    ],
)
def test_session_options_are_onnx_runtimes(key: str, value: Any, good: Path, tmp_path: Path) -> None:
    session = json.loads((good / "out" / "manifest.json").read_text())["engine"]["session"]
    with pytest.raises(ArtifactError, match=f"engine.session.{key}"):
        bertc.load(told(good / "out", tmp_path, engine__session=session | {key: value}))


@pytest.mark.parametrize(
    "options",
    [{"trust_remote_code": "yes"}, {"evil": 1}, {"ids": "int8"}, {"opset": "20"}, {"opset": True}, [], {"revision": 3}],
)
def test_recorded_options_are_those_that_bertc_writes(options: Any, good: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="damaged"):
        bertc.build(told(good / "out", tmp_path, source__options=options), tmp_path / "o", targets=["null=fp32"])


@pytest.mark.parametrize("name", ["goldens.npz", "model.onnx", "tokenizer/tokenizer.json", "graph.onnx"])
def test_a_link_out_of_the_artifact_is_not_followed(name: str, good: Path, tmp_path: Path) -> None:
    """The hash is right: the file that the link leads to is the very same."""
    made = told(good / "out", tmp_path)
    shutil.move(made / name, tmp_path / "outside")
    (made / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match="outside the artifact"):
        open_artifact(made)


@pytest.mark.parametrize("name", ["goldens.npz", "model.onnx"])
def test_what_was_not_hashed_is_not_loaded(name: str, good: Path, tmp_path: Path) -> None:
    made = told(good / "out", tmp_path)
    manifest = json.loads((made / "manifest.json").read_text())
    del manifest["files"][name]
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BertcError, match=f"lists no {name}"):
        bertc.verify(made)


def test_a_file_slipped_into_the_tokenizer(good: Path, tmp_path: Path) -> None:
    made = told(good / "out", tmp_path)
    (made / "tokenizer" / "special_tokens_map.json").symlink_to("/etc/passwd")
    with pytest.raises(ArtifactError, match="is not in the manifest"):
        open_artifact(made)


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname"])
def test_weights_beside_a_graph_are_hashed_files(location: str, good: Path, tmp_path: Path) -> None:
    """ONNX Runtime would read them: a hash of a graph that names another file proves nothing about that file."""
    made = told(good / "half", tmp_path)
    proto = onnx.load(made / "graph.onnx")
    largest = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (made / "weights.bin").write_bytes(largest.raw_data)
    (tmp_path / "weights.bin").write_bytes(largest.raw_data)
    largest.ClearField("raw_data")
    largest.data_location = onnx.TensorProto.EXTERNAL
    largest.external_data.add(key="location", value=location)
    (made / "graph.onnx").write_bytes(proto.SerializeToString())
    manifest = json.loads((made / "manifest.json").read_text())
    manifest["files"]["graph.onnx"]["sha256"] = hash_file(made / "graph.onnx")
    (made / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BertcError, match=r"lists no|outside"):
        bertc.verify(made)
