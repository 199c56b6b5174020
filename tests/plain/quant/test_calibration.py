"""bertc calibrate: what enters the statistics, what stays out, and that parts and interruptions change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny

from bertc.cli import _main as cli
from bertc.core.errors import DataError
from bertc.data.tokenizer import Encoder
from bertc.graph.model import load_graph
from bertc.quant.calibration import command as calibrate
from bertc.quant.calibration import ranges_file as ranges
from bertc.runtime import reference, taps

Capture = pytest.CaptureFixture[str]
MANY = 3000  # texts: some seconds
SENTENCES = ["two words", "and more words and more", "two", "more and more two and two words and more"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.encoder(tmp_path_factory.mktemp("calibrate") / "m.onnx", tokenizer=True)


def texts(path: Path, count: int) -> Path:
    lines = [" ".join([SENTENCES[i % 4]] * (1 + i % 3)) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(model: Path, data: Path, out: Path, *more: str, code: int = 0) -> ranges.Ranges:
    assert cli.run(["calibrate", str(model), "--data", str(data), "-o", str(out), *more]) == code
    return ranges.read(out)


def merge(out: Path, *files: Path, code: int = 0) -> None:
    assert cli.run(["calibrate", "--merge", *map(str, files), "-o", str(out)]) == code


def error(words: Sequence[str], capsys: Capture, code: int = 2) -> str:
    assert cli.run(["calibrate", *words]) == code
    return " ".join(capsys.readouterr().err.split())


def tensors(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["tensors"]


def raw(model: Path, feeds: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of the file as it is, by name, from a session of the test's own."""
    import onnxruntime as ort

    proto = onnx.shape_inference.infer_shapes(onnx.load(model))
    outputs = {v.name: v for v in [*proto.graph.value_info, *proto.graph.output]}
    del proto.graph.output[:]
    proto.graph.output.extend(outputs[name] for name in names)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def check(found: ranges.Ranges, name: str, wanted: np.ndarray) -> None:
    """Statistics against the values themselves; another session's may differ in their last bits."""
    each = found.tensors[name]
    assert each.values == wanted.size, name
    assert np.allclose([each.low, each.high], [wanted.min(), wanted.max()], rtol=1e-5)
    cumulative = each.histogram.counts[0].cumsum()
    for share in (0.1, 0.5, 0.9):
        exact = np.quantile(np.abs(wanted), share, method="inverted_cdf")
        edge = np.searchsorted(cumulative, share * wanted.size) * each.histogram.widths[0]
        assert abs(edge - exact) <= 1.5 * each.histogram.widths[0], name


# What enters


def test_every_text_counts_once_and_unpadded(model: Path, tmp_path: Path) -> None:
    data = texts(tmp_path / "t.txt", 30)
    found = run(model, data, tmp_path / "r.json")
    encoder = Encoder.from_directory(model.parent, inputs=("input_ids", "attention_mask"))
    lines = data.read_text().splitlines()
    names = ("x", "q", "kt", "p", "context", "mixed", "last_hidden_state")
    alone = [raw(model, encoder.encode([line]), names) for line in lines]
    assert set(names) <= set(found.tensors)
    for name in names:
        check(found, name, np.concatenate([each[name].reshape(-1) for each in alone]))
    tokens = sum(encoder.encode([line])["input_ids"].size for line in lines)
    assert (found.totals["samples"], found.totals["tokens"]) == (30, tokens)
    assert np.allclose(found.tensors["q"].channels, np.max([np.abs(e["q"]).max(axis=(0, 1)) for e in alone], axis=0), rtol=1e-5)


def test_padding_at_the_end_is_cut_off(model: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_directory(model.parent, inputs=("input_ids", "attention_mask"))
    batch = encoder.encode(SENTENCES)
    assert not batch["attention_mask"].all()
    np.savez(tmp_path / "d.npz", **batch)
    (tmp_path / "t.txt").write_text("\n".join(SENTENCES))
    run(model, tmp_path / "d.npz", tmp_path / "a.json")
    run(model, tmp_path / "t.txt", tmp_path / "b.json")
    assert tensors(tmp_path / "a.json") == tensors(tmp_path / "b.json")


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]], ids=["left", "holes"])
def test_padding_that_must_stay_is_told_apart(model: Path, tmp_path: Path, mask: list[int]) -> None:
    feeds = {"input_ids": np.array([[5, 9, 11, 2, 30, 7]]), "attention_mask": np.array([mask])}
    np.savez(tmp_path / "d.npz", **feeds)
    found = run(model, tmp_path / "d.npz", tmp_path / "r.json", "--tensor", "biased")
    alive = np.flatnonzero(mask)
    got = raw(model, feeds, ("q", "kt", "p", "biased", "last_hidden_state"))
    check(found, "q", got["q"][:, alive])
    check(found, "last_hidden_state", got["last_hidden_state"][:, alive])
    check(found, "kt", got["kt"][:, :, alive])
    check(found, "p", got["p"][:, alive][:, :, alive])
    check(found, "biased", got["biased"][:, alive][:, :, alive])
    assert found.tensors["biased"].low > -1e3 and found.totals["tokens"] == 4


def test_a_sample_of_padding_alone_is_left_out_and_said(model: Path, tmp_path: Path, capsys: Capture) -> None:
    ids = np.array([[5, 9], [7, 3]])
    np.savez(tmp_path / "d.npz", input_ids=ids, attention_mask=np.array([[0, 0], [1, 1]]))
    found = run(model, tmp_path / "d.npz", tmp_path / "r.json")
    assert (found.totals["samples"], found.totals["dead"]) == (1, 1)
    assert "1 samples are all padding" in " ".join(capsys.readouterr().err.split())
    np.savez(tmp_path / "d.npz", input_ids=ids, attention_mask=np.zeros((2, 2), np.int64))
    said = error([str(model), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "no.json")], capsys)
    assert "nothing was measured: every sample is padding only" in said
    assert not (tmp_path / "no.json").exists()


# What stays out: a causal mask, a constant, an infinity

CAUSAL = """
<ir_version: 10, opset_import: ["" : 20]>
made (float[batch, 4, 6] x) => (float[batch, 4, 6] a, float[batch, 4, 6] b, float[batch, 4, 6] c)
<float[6, 6] w, float[4, 6] low, float zero = {0.0}>
{
  scores = MatMul (x, w)
  masked = Add (scores, low)
  a = MatMul (masked, w)
  nothing = Mul (x, zero)
  b = MatMul (nothing, w)
  infinite = Reciprocal (x)
  c = MatMul (infinite, w)
}
"""


@pytest.mark.parametrize("low", [-10000.0, -1e9, float("-inf")])
def test_masks_constants_and_infinities(tmp_path: Path, low: float, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(CAUSAL)
    w = rng.standard_normal((6, 6)).astype(np.float32)
    mask = np.where(np.triu(np.ones((4, 6)), 3) > 0, np.float32(low), np.float32(0))
    given = {"w": w, "low": mask}
    kept = [each for each in proto.graph.initializer if each.name not in given]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, *(onnx.numpy_helper.from_array(a, n) for n, a in given.items())])
    onnx.save(proto, tmp_path / "m.onnx")
    x = rng.standard_normal((3, 4, 6)).astype(np.float32)
    x[1, 2, 3] = 0
    np.savez(tmp_path / "d.npz", x=x)
    found = run(tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "r.json")
    masked, nothing, infinite = (found.tensors[name] for name in ("masked", "nothing", "infinite"))
    assert (masked.status, masked.masked, masked.values) == ("ok", 3 * int((mask < 0).sum()), 3 * int((mask == 0).sum()))
    assert found.range_of("masked") == pytest.approx(np.abs((x @ w)[:, mask == 0]).max(), rel=1e-3)
    assert (nothing.status, found.range_of("nothing")) == ("constant", None)
    assert (infinite.status, infinite.infinite, infinite.values) == ("not finite", 1, x.size - 1)
    assert found.range_of("infinite") is None and np.isfinite(infinite.high)
    said = " ".join(capsys.readouterr().err.split())
    assert "1 not to be quantised: constant; 1 not to be quantised: not finite" in said
    assert f"left out: {masked.masked} masked values; left out: 1 infinite values" in said


def test_a_large_value_that_no_mask_made_counts(model: Path, tmp_path: Path) -> None:
    """-1e9 is a mask's only where one can come through: an activation of -30000 is an activation."""
    proto = onnx.load(model)
    table = next(t for t in proto.graph.initializer if t.name == "table")
    values = onnx.numpy_helper.to_array(table).copy()
    values[5, 0] = -30000
    table.CopyFrom(onnx.numpy_helper.from_array(values, "table"))
    onnx.save(proto, tmp_path / "m.onnx")
    tiny.write_tokenizer(tmp_path)
    (tmp_path / "t.txt").write_text("two words and more")
    found = run(tmp_path / "m.onnx", tmp_path / "t.txt", tmp_path / "r.json")
    assert found.tensors["x"].low == -30000 and found.tensors["x"].masked == 0
    assert found.tensors["x"].outliers(10).keys() == {0}


def test_per_channel_ranges_where_asked(model: Path, tmp_path: Path) -> None:
    found = run(model, texts(tmp_path / "t.txt", 12), tmp_path / "r.json", "--per-channel", "q", "--method", "minmax")
    each = found.tensors["q"]
    assert each.by_channel is not None and each.by_channel.counts.sum() == each.values
    assert np.array_equal(each.channel_ranges(found.settings), each.channels)
    assert found.tensors["x"].by_channel is None
    assert len(tensors(tmp_path / "r.json")["q"]["channel_ranges"]) == tiny.WIDTH


def test_tensors_of_a_targets_graph(model: Path, tmp_path: Path) -> None:
    """With --target the names are those of the graph that INT8 would be written into."""
    found = run(model, texts(tmp_path / "t.txt", 3), tmp_path / "r.json", "--target", "tensorrt-rtx")
    graph, form = calibrate.graph_to_measure(calibrate.open_source(str(model)), "tensorrt-rtx")
    names = {str(v.name) for node in graph.model.graph for v in node.outputs}
    assert set(found.tensors) <= names and form == "lowered for tensorrt-rtx"
    assert {node.domain for node in graph.model.graph} == {""}
    assert found.facts["graph"]["sha256"] == calibrate.structure_sha256(graph)


# Parts and interruptions


def test_shards_merged_are_one_run(model: Path, tmp_path: Path, capsys: Capture) -> None:
    data = texts(tmp_path / "t.txt", 31)
    run(model, data, tmp_path / "one.json", "--per-channel", "x")
    parts = [tmp_path / f"{index}.json" for index in (1, 2, 3)]
    for index, part in enumerate(parts, 1):
        found = run(model, data, part, "--per-channel", "x", "--shard", f"{index}/3")
        assert found.totals["samples"] == len(range(index - 1, 31, 3))
    merge(tmp_path / "two.json", parts[2], parts[0])
    merge(tmp_path / "three.json", tmp_path / "two.json", parts[1])
    assert (tmp_path / "three.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert json.loads((tmp_path / "two.json").read_text())["data"][0]["parts"] == ["1/3", "3/3"]
    merge(tmp_path / "no.json", tmp_path / "two.json", parts[0], code=2)
    assert "parts 1/3 and 1/3 of t.txt share samples" in capsys.readouterr().err
    assert not (tmp_path / "no.json").exists()


def test_files_calibrated_apart_are_one_run(model: Path, tmp_path: Path) -> None:
    lines = texts(tmp_path / "t.txt", 20).read_text().splitlines()
    (tmp_path / "a.txt").write_text("\n".join(lines[:7]))
    (tmp_path / "b.txt").write_text("\n".join(lines[7:]))
    for name in "tab":
        run(model, tmp_path / f"{name}.txt", tmp_path / f"{name}.json")
    merge(tmp_path / "ab.json", tmp_path / "b.json", tmp_path / "a.json")
    assert tensors(tmp_path / "ab.json") == tensors(tmp_path / "t.json")
    assert [each["name"] for each in ranges.read(tmp_path / "ab.json").facts["data"]] == ["a.txt", "b.txt"]


def test_unlike_ranges_do_not_merge(model: Path, tmp_path: Path, capsys: Capture) -> None:
    data = texts(tmp_path / "t.txt", 4)
    other = tiny.encoder(tmp_path / "other.onnx", changed=0.5, tokenizer=True)
    run(model, data, tmp_path / "a.json", "--shard", "1/2")
    run(other, data, tmp_path / "b.json", "--shard", "2/2")
    run(model, data, tmp_path / "c.json", "--shard", "2/2", "--method", "mse")
    run(model, data, tmp_path / "d.json", "--shard", "2/2", "--tensor", "biased")
    for name, said in [("b", "of different models"), ("c", "calibrate both alike"), ("d", "different tensors: biased")]:
        merge(tmp_path / "no.json", tmp_path / "a.json", tmp_path / f"{name}.json", code=2)
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run over MANY texts that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(model, texts(folder / "t.txt", MANY), folder / "r.json")
    return (folder / "r.json").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(
    model: Path, tmp_path: Path, number: signal.Signals, undisturbed: bytes, capsys: Capture
) -> None:
    """Killed at a random moment between the first checkpoint and the end."""
    data, out = texts(tmp_path / "t.txt", MANY), tmp_path / "r.json"
    words = ["calibrate", str(model), "--data", str(data), "-o", str(out), "--checkpoint", "0"]
    partial = tmp_path / "r.json.partial"
    with subprocess.Popen([sys.executable, "-m", "bertc", *words], stderr=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 60
        while not partial.exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(random.random() / 5)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert child.returncode == (-9 if number == signal.SIGKILL else 130), err
    assert number == signal.SIGKILL or "the same command resumes there" in " ".join(err.split())
    done = json.loads(partial.read_text())["done"]
    assert 0 < done < MANY and not out.exists()
    assert cli.run(words[:-2]) == 0
    assert f"resuming after {done} of {MANY} samples" in " ".join(capsys.readouterr().err.split())
    assert sorted(os.listdir(tmp_path)) == ["r.json", "t.txt"]
    assert out.read_bytes() == undisturbed


def test_a_checkpoint_of_another_run_is_refused(model: Path, tmp_path: Path, capsys: Capture) -> None:
    data, out = texts(tmp_path / "t.txt", 10), tmp_path / "r.json"
    found = run(model, data, out)
    ranges.write_checkpoint(found, tmp_path / "new.json.partial", 10)
    words = [str(model), "--data", str(data), "-o", str(tmp_path / "new.json")]
    texts(data, 11)
    assert "the data or the shard changed. --restart drops it" in error(words, capsys)
    assert "the settings changed" in error([*words, "--method", "mse"], capsys)
    whole = (tmp_path / "new.json.partial").read_text()
    (tmp_path / "new.json.partial").write_text(whole[: len(whole) // 2])
    assert "is not a file of ranges" in error(words, capsys)
    assert (tmp_path / "new.json.partial").exists()
    assert cli.run(["calibrate", *words, "--restart"]) == 0
    assert ranges.read(tmp_path / "new.json").totals["samples"] == 11
    assert not (tmp_path / "new.json.partial").exists()


# Errors and output


def test_errors(model: Path, tmp_path: Path, capsys: Capture) -> None:
    data, out = str(texts(tmp_path / "t.txt", 3)), str(tmp_path / "r.json")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    whole = [str(model), "--data", data, "-o", out]
    cases: list[tuple[list[str], str]] = [
        ([str(model), "-o", out], "--data texts.txt"),
        ([str(model), "--data", str(tmp_path / "no.txt"), "-o", out], "no data at"),
        ([str(model), "--data", str(empty), "-o", out], "is empty"),
        ([*whole, "--method", "kl"], "unknown method 'kl'; known: entropy, minmax, mse, percentile"),
        ([*whole, "--percentile", "0.999"], "percentile 0.999"),
        ([*whole, "--outlier", "1"], "not in the range x>1"),
        ([*whole, "--shard", "5/4"], "'5/4' is not INDEX/COUNT"),
        ([*whole, "--shard", "4/4"], "part 4/4 of t.txt is empty: it has 3 samples"),
        ([*whole, "--tensor", "nothing*"], "no tensor is called 'nothing*'"),
        ([*whole, "--per-channel", "p"], "the last axis of these tensors has no fixed size"),
        ([*whole, "--target", "tensorrt-rtz"], "tensorrt-rtx"),
        ([str(model), str(model), "--data", data, "-o", out], "or --merge"),
        (["--merge", str(model), "-o", out], "is not a file of ranges"),
        ([str(model), "--data", data, "-o", str(tmp_path)], "it is a folder; name a file"),
    ]
    for words, said in cases:
        assert said in error(words, capsys), words
    assert not Path(out).exists()
    assert cli.run(["calibrate", *whole]) == 0
    assert "exists; --force replaces it" in error(whole, capsys)


def test_a_fixed_length_cannot_be_calibrated(model: Path, tmp_path: Path, capsys: Capture) -> None:
    proto = onnx.load(model)
    for value in [*proto.graph.input, *proto.graph.value_info, *proto.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "length":
                dim.dim_value = 12
    onnx.save(proto, tmp_path / "m.onnx")
    tiny.write_tokenizer(tmp_path)
    data = texts(tmp_path / "t.txt", 3)
    said = error([str(tmp_path / "m.onnx"), "--data", str(data), "-o", str(tmp_path / "r.json")], capsys)
    assert "export with a dynamic length" in said


def test_one_json_document(model: Path, tmp_path: Path, capsys: Capture) -> None:
    run(model, texts(tmp_path / "t.txt", 5), tmp_path / "r.json", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["tensors"]["q"]["status"] == "ok" and "histogram" not in document["tensors"]["q"]
    assert document["tensors"]["q"]["range"] == tensors(tmp_path / "r.json")["q"]["ranges"]["percentile"]
    assert document["summary"].startswith("8 tensors over 5 samples")


def test_the_copy_shares_weights(model: Path) -> None:
    graph = load_graph(model)
    copy = taps.with_outputs(graph, ["q"])
    assert [spec.name for spec in copy.outputs] == ["q"] and len(graph.outputs) == 1
    assert copy.model.graph.initializers["wq"].const_value is graph.model.graph.initializers["wq"].const_value
    assert "wo" not in copy.model.graph.initializers
    assert reference.reference_session(copy)[0].get_outputs()[0].name == "q"


def test_ids_outside_the_table_are_the_datas_fault(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input_ids=np.array([[1, 4000]]), attention_mask=np.ones((1, 2), np.int64))
    with pytest.raises(DataError, match=r"float32 graph on d.npz, row 0: .*cannot run it"):
        calibrate.calibrate(str(model), calibrate.CalibrationRequest(tmp_path / "d.npz"), tmp_path / "r.json")
    assert os.listdir(tmp_path) == ["d.npz"]
