"""Reading and writing .onnx files: external data never leaves the model's folder, and damage is said, not met later."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.reference
import onnx_ir as ir
import pytest
import tiny
from onnx import TensorProto

from bertc.cli import _main as cli
from bertc.core.errors import InputError, SourceError
from bertc.graph import model as graph
from bertc.graph import provenance
from bertc.source.onnx_file import read_onnx_file

HEALTHY = {"location": "w.bin", "offset": "0", "length": "64"}


def pointing(path: Path, where: str = "initializer", **info: str | None) -> Path:
    """A valid model with one float32 [4, 4] tensor in external data, at the place and with the entries asked for."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (HEALTHY | info).items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    port, out, inner = (oh.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xyz")
    constant = oh.make_node("Constant", [], ["w"], value=tensor)
    nodes, functions, inits = [oh.make_node("MatMul", ["x", "w"], ["y"])], [], []
    if where == "initializer":
        inits = [tensor]
    elif where == "attribute":
        nodes.insert(0, constant)
    elif where == "subgraph":
        flag = oh.make_node("Constant", [], ["flag"], value=oh.make_tensor("f", TensorProto.BOOL, [], [True]))
        branch = oh.make_graph([constant, oh.make_node("MatMul", ["x", "w"], ["z"])], "b", [], [inner])
        nodes = [flag, oh.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    else:
        body = [constant, oh.make_node("MatMul", ["a", "w"], ["b"])]
        functions = [oh.make_function("acme", "F", ["a"], ["b"], body, [oh.make_opsetid("", 20)])]
        nodes = [oh.make_node("F", ["x"], ["y"], domain="acme")]
    imports = [oh.make_opsetid("", 20), oh.make_opsetid("acme", 1)]
    whole = oh.make_graph(nodes, "g", [port], [out], inits)
    made = oh.make_model(whole, opset_imports=imports, functions=functions, ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(SourceError) as caught:
        graph.load_graph(path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The path of a model in a folder of its own, with 64 bytes of weights beside it and a secret outside."""
    folder = tmp_path / "model"
    folder.mkdir()
    np.arange(16, dtype=np.float32).tofile(folder / "w.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return folder / "m.onnx"


PLACES = ["initializer", "attribute", "subgraph", "function"]


@pytest.mark.parametrize("where", PLACES)
def test_healthy_external_data(model: Path, where: str) -> None:
    found = graph.load_graph(pointing(model, where))
    assert found.outputs[0].dims == (4, 4)
    folder = model.parent / "elsewhere"
    folder.mkdir()
    assert graph.save_graph(found, folder / "graph.onnx") == digests(folder)
    again = onnx.load(folder / "graph.onnx")  # finds nothing beside it, and needs nothing
    got = onnx.reference.ReferenceEvaluator(again).run(None, {"x": np.eye(4, dtype=np.float32)})[0]
    np.testing.assert_array_equal(got, np.arange(16, dtype=np.float32).reshape(4, 4))


@pytest.mark.parametrize("where", PLACES)
def test_external_data_outside_the_folder(model: Path, where: str) -> None:
    secret = model.parent.parent / "secret.bin"
    (model.parent / "inner").mkdir()
    for location in ("../secret.bin", str(secret), "inner/../../secret.bin", "..\\secret.bin", ""):
        refused(pointing(model, where, location=location), "outside the model's folder", repr(location))
    (model.parent / "link.bin").symlink_to(secret)
    (model.parent / "linked").symlink_to(secret.parent)
    for location in ("link.bin", "linked/secret.bin"):  # what they point to is named, and a way out
        refused(pointing(model, where, location=location), "outside the model's folder", location, str(secret), "cp -rL")


@pytest.mark.parametrize("where", PLACES)
def test_external_data_that_is_a_circle_of_links(model: Path, where: str) -> None:
    (model.parent / "a.bin").symlink_to("b.bin")
    (model.parent / "b.bin").symlink_to("a.bin")
    refused(pointing(model, where, location="a.bin"), "a.bin")


@pytest.mark.parametrize("where", PLACES)
def test_external_data_that_the_libraries_do_not_read(model: Path, where: str) -> None:
    """onnx and onnx_ir raise in the middle of a build for links; those within the folder are followed, hard links are refused."""
    (model.parent / "link.bin").symlink_to("w.bin")
    read_onnx_file(pointing(model, where, location="link.bin"))
    (model.parent / "link.bin").unlink()
    os.link(model.parent / "w.bin", model.parent / "twice.bin")
    with pytest.raises(SourceError, match="hard link") as caught:
        read_onnx_file(pointing(model, where))
    assert "cp -rL" in str(caught.value)
    shutil.copytree(model.parent, model.parent.with_name("copy"))
    read_onnx_file(model.parent.with_name("copy") / model.name)


@pytest.mark.parametrize("where", PLACES)
def test_external_data_missing_or_truncated(model: Path, where: str) -> None:
    refused(pointing(model, where, location="gone.bin"), "'gone.bin'", "missing")
    refused(pointing(model, where, location="."), "missing")
    (model.parent / "w.bin").write_bytes(bytes(63))
    refused(pointing(model, where), "'w.bin'", "63 bytes", "ends at 64")
    refused(pointing(model, where, length=None), "63 bytes", "ends at 64")


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({"offset": "8"}, "ends at 72"),
        ({"offset": "-8"}, "'-8'"),
        ({"offset": "eight"}, "'eight'"),
        ({"length": "4e9"}, "'4e9'"),
        ({"length": "60"}, "needs 64 bytes"),
    ],
)
def test_external_data_that_does_not_fit(model: Path, info: dict[str, str], word: str) -> None:
    refused(pointing(model, **info), word, "'w'")


def test_files_that_are_no_model(tmp_path: Path) -> None:
    path = tiny.encoder(tmp_path / "m.onnx")
    data = path.read_bytes()
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(path, "is the download complete?")
    path.write_text("<!DOCTYPE html><title>404</title>")
    refused(path, "not a readable ONNX file")
    path.write_bytes(onnx.TensorProto(name="x").SerializeToString())
    refused(path)
    refused(tmp_path / "none.onnx", "no ONNX file")
    refused(tmp_path, "no ONNX file")


def same(a: graph.Graph, b: graph.Graph) -> None:
    assert ([str(s) for s in a.inputs], a.op_counts()) == ([str(s) for s in b.inputs], b.op_counts())
    assert list(a.model.graph.initializers) == list(b.model.graph.initializers)
    for name, value in a.model.graph.initializers.items():
        other = b.model.graph.initializers[name].const_value
        assert value.const_value is not None
        assert other is not None
        np.testing.assert_array_equal(value.const_value.numpy(), other.numpy())


def tensors(found: graph.Graph) -> list[ir.TensorProtocol]:
    return [value.const_value for value in found.model.graph.initializers.values() if value.const_value is not None]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_save_below_the_threshold_is_one_file(tmp_path: Path) -> None:
    first = graph.load_graph(tiny.encoder(tmp_path / "m.onnx", external=True))
    (tmp_path / "out").mkdir()
    hashes = graph.save_graph(first, tmp_path / "out" / "graph.onnx")
    assert list(hashes) == ["graph.onnx"]
    assert hashes == digests(tmp_path / "out")
    same(first, graph.load_graph(tmp_path / "out" / "graph.onnx"))


def test_save_above_the_threshold_keeps_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = graph.load_graph(tiny.encoder(tmp_path / "m.onnx"))
    monkeypatch.setattr(graph, "EXTERNAL_DATA_THRESHOLD", first.initializer_bytes)
    out = tmp_path / "out"
    out.mkdir()
    hashes = graph.save_graph(first, out / "graph.onnx")
    assert set(hashes) == {"graph.onnx", "graph.onnx.data"}
    assert hashes == digests(out)
    assert all(
        t.nbytes <= graph.SMALL_EXTERNAL or isinstance(t, ir.ExternalTensor)
        for t in tensors(graph.load_graph(out / "graph.onnx"))
    )
    again = graph.load_graph(out / "graph.onnx")
    same(first, again)
    (tmp_path / "twice").mkdir()
    assert graph.save_graph(again, tmp_path / "twice" / "graph.onnx") == hashes


@pytest.mark.parametrize("threshold", [1, 2**30])
@pytest.mark.parametrize("target", ["onnxruntime=fp32", "null=fp16", "null=fp32"])
def test_a_build_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, threshold: int) -> None:
    monkeypatch.setattr(graph, "EXTERNAL_DATA_THRESHOLD", threshold)
    source, out = tiny.encoder(tmp_path / "m.onnx", external=True), tmp_path / "out"
    assert cli.run(["build", str(source), "--target", target, "-o", str(out)]) == 0
    assert ("graph.onnx.data" in json.loads((out / "manifest.json").read_text())["files"]) is (threshold == 1)
    source.with_name("w.bin").unlink()  # the artifact stands alone
    assert cli.run(["verify", str(out)]) == 0


# What torch.onnx.export(dynamo=True) writes for a DistilBERT-like module
SCOPES = "['', 'encoder', 'encoder.layer.0', 'encoder.layer.0.attention', 'encoder.layer.0.attention.q_lin', 'linear']"


@pytest.mark.parametrize(
    ("scopes", "path"),
    [(SCOPES, "encoder.layer.0.attention.q_lin"), ("['', 'add']", ""), ("['add']", ""), ("", ""), (None, "")],
)
def test_module_path(scopes: str | None, path: str) -> None:
    node = ir.Node("", "MatMul", [])
    if scopes is not None:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    assert provenance.module_path(node) == path


def test_module_path_that_cannot_be_read() -> None:
    node = ir.Node("", "MatMul", [], name="odd", metadata_props={"pkg.torch.onnx.name_scopes": "['', "})
    with pytest.raises(InputError, match="of node 'odd' cannot be read"):
        provenance.module_path(node)


# A model that protobuf cannot hold

BUILD = textwrap.dedent("""
    import resource, sys
    from bertc import cli
    for command in (["build", "big.onnx", "--fp32", "--target", "onnxruntime", "-o", "out"], ["verify", "out"]):
        if code := cli.run(command):
            sys.exit(code)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
""")
ROWS = 2_200_000  # times 256 float32: 2.25 GB


def big(path: Path) -> None:
    """ids -> Gather from a table of 2.25 GB that is a hole in a sparse file, plus the ids, so that the output is not zero."""
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[ROWS, 256], data_location=TensorProto.EXTERNAL)
    table.external_data.add(key="location", value="big.bin")
    with (path.parent / "big.bin").open("wb") as file:
        file.truncate(ROWS * 1024)
        file.write(np.ones(256, np.float32).tobytes())
    ids = oh.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])
    out = oh.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 256])
    nodes = [oh.make_node("Gather", ["table", "ids"], ["g"]), oh.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT)]
    nodes += [oh.make_node("Unsqueeze", ["f", "last"], ["u"]), oh.make_node("Add", ["g", "u"], ["y"])]
    last = onnx.numpy_helper.from_array(np.array([-1]), "last")
    made = oh.make_graph(nodes, "big", [ids], [out], [table, last])
    onnx.save(oh.make_model(made, opset_imports=[oh.make_opsetid("", 20)], ir_version=10), path)


@pytest.mark.large
def test_more_than_two_gigabytes(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    free, memory = shutil.disk_usage(tmp_path).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if free < 8 * 2**30 or memory < 8 * 2**30:
        pytest.skip(f"wants 8 GiB of disk and of memory, has {free / 2**30:.0f} and {memory / 2**30:.0f}")
    big(tmp_path / "big.onnx")
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    build, verify = map(int, done.stdout.split())
    record_property("peak_bytes", build)
    files = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert files["graph.onnx.data"]["bytes"] >= ROWS * 1024
    assert files["graph.onnx"]["bytes"] < 10_000
    # verify: the graph's, those that were hashed, and two copies that ONNX Runtime makes of what it is given in memory.
    for peak, times in ((build, 3), (verify, 4.3)):
        assert peak < times * ROWS * 1024, f"peak memory {peak / 2**30:.1f} GiB for {ROWS * 1024 / 2**30:.1f} GiB of weights"
    for file in (tmp_path / "out" / "graph.onnx.data", tmp_path / "big.bin"):
        file.unlink()  # pytest keeps the folders of its last runs
