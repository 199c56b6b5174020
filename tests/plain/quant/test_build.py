"""`bertc build --int8` as a whole, on an encoder of one layer: what is built, what is said, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lowbit
import numpy as np
import onnx
import pytest
import tiny
from onnx import numpy_helper

from bertc.artifact import manifest as artifact
from bertc.artifact.manifest import open_artifact
from bertc.cli import _main as cli
from bertc.quant import judging, saturation
from bertc.verification import intervals as confidence

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lowbit.encoder(tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def texts(model: Path) -> Path:
    return lowbit.texts(model.parent / "texts.txt", 160)


@pytest.fixture(scope="module")
def built(model: Path, texts: Path) -> Path:
    out = model.parent / "built"
    assert build(model, texts, out, "--target", "onnxruntime", "--target", "null") == 0
    return out


def build(model: Path, data: Path, out: Path, *words: str) -> int:
    """The exit code of `bertc build --int8 static`."""
    return cli.run(["build", str(model), "--int8", "static", "--data", str(data), "-o", str(out), *words])


def int8_of(path: Path) -> dict[str, Any]:
    found = json.loads((path / "report.json").read_text("utf-8"))["int8"]
    assert found == open_artifact(path).manifest["int8"]
    return dict(found)


@pytest.mark.parametrize("target", ["onnxruntime", "null"])
def test_every_gemm_with_weights_reads_int8_and_the_report_says_so(built: Path, target: str) -> None:
    found = open_artifact(built / f"{target}-int8-static")
    assert found.precision == "int8-static"
    ops = found.graph().op_counts()
    assert ops["QuantizeLinear"] == 2, "q, k and v share one"
    assert ops["DequantizeLinear"] == 6
    said = int8_of(found.path)
    assert [site["int8"] for site in said["sites"]] == [True, True]
    assert said["chosen"] == 0
    assert said["budget"] is None
    # At the length of 128 that the profile is best at: 4 GEMMs of 32 x 32 a token, against 2 x 128 x 32 for attention.
    assert said["share"] == pytest.approx(4 * 32 / (4 * 32 + 2 * 128), abs=1e-6)
    assert said["share"] == pytest.approx(sum(site["flops_share"] for site in said["sites"]), abs=1e-5)
    assert set(said["not_quantised"].values()) == {"both operands are activations"}
    assert said["data"]["calibrated"] + said["data"]["judged"] == 160
    assert said["data"]["apart"] is True


def test_the_int8_artifact_runs_and_is_close(built: Path) -> None:
    runner, given = cli_load(built / "onnxruntime-int8-static"), tiny.feeds()
    wanted = models_run(built.parent / "m.onnx", given)
    got = runner.run(given)["last_hidden_state"]
    error = float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
    assert 1e-4 < error < 0.1


def cli_load(path: Path) -> Any:
    import bertc

    return bertc.load(path)


def models_run(path: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["last_hidden_state"], given)[0])


def test_building_again_in_another_process_gives_the_same_bytes(built: Path, model: Path, texts: Path) -> None:
    out = model.parent / "again"
    words = ["build", str(model), "--int8", "static", "--target", "onnxruntime", "--target", "null"]
    words += ["--data", str(texts), "-o", str(out)]
    subprocess.run([sys.executable, "-m", "bertc", *words], check=True, capture_output=True)
    for each in artifact.find_artifacts(built):
        again = out / each.name
        assert (again / "graph.onnx").read_bytes() == (each / "graph.onnx").read_bytes()
        one, two = (json.loads((path / "manifest.json").read_text("utf-8")) for path in (each, again))
        for manifest in (one, two):
            for name in ("report.json", "report.html"):  # they hold times
                manifest["files"].pop(name, None)
        assert one == two


def test_a_limit_is_searched_for_and_the_curve_is_shown(model: Path, texts: Path, tmp_path: Path, capsys: Capture) -> None:
    assert build(model, texts, tmp_path / "out", "--target", "onnxruntime", "--max-drop", "0.02") == 0
    said = int8_of(tmp_path / "out")
    assert said["budget"] == 0.02
    assert len(said["curve"]) >= 2
    assert said["curve"][said["chosen"]]["share"] == said["share"]
    printed = capsys.readouterr().err
    assert "layers left in float" in printed
    assert all(f"{100 * point['share']:.1f}" in printed for point in said["curve"])


@pytest.mark.parametrize(("target", "base"), [("onnxruntime", "fp32"), ("null", "fp32")])
def test_where_nothing_fits_the_base_is_built_and_says_so(
    target: str, base: str, model: Path, texts: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert build(model, texts, tmp_path / "out", "--target", target, "--max-drop", "0") == 0
    found = open_artifact(tmp_path / "out")
    assert found.precision == base
    assert "QuantizeLinear" not in found.graph().op_counts()
    said = int8_of(tmp_path / "out")
    assert said["share"] == 0
    assert not any(site["int8"] for site in said["sites"])
    printed = " ".join(capsys.readouterr().err.split())
    assert f"no layer is int8: {said['why']}; {base} is built instead" in printed


def test_int8_without_data_is_wrong_usage(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["build", str(model), "--int8", "static", "--target", "null", "-o", str(tmp_path / "out")]) == 2
    assert "int8-static needs data like what the model will see: --data texts.txt" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_data_that_the_model_cannot_be_fed_is_refused_before_any_long_work(tmp_path: Path, capsys: Capture) -> None:
    source, texts = tiny.encoder(tmp_path / "m.onnx"), tmp_path / "t.txt"
    texts.write_text("a text\n", encoding="utf-8")
    asked = ["build", str(source), "--target", "onnxruntime", "--data", str(texts), "-o", str(tmp_path / "o")]
    assert cli.run([*asked, "--int8", "static"]) == 2
    said = capsys.readouterr().err
    assert "t.txt holds text, but the model has no tokenizer" in said and "check export" not in said
    (tmp_path / "wavs").mkdir()
    (tmp_path / "wavs" / "a.wav").write_bytes(b"RIFF")
    assert cli.run([*asked[:-3], str(tmp_path / "wavs"), *asked[-2:], "--int8", "static"]) == 2
    said = capsys.readouterr().err
    assert "wavs holds audio, but the model has no audio preprocessor" in said and "check export" not in said


def test_a_model_whose_gemms_are_all_too_thin_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """No int8 under the name of int8."""
    folder = tmp_path / "thin"
    folder.mkdir()
    model = tiny.encoder(folder / "m.onnx", tokenizer=True)
    texts = lowbit.texts(tmp_path / "texts.txt", 70)
    proto = onnx.load(model)
    for held in proto.graph.initializer:
        array = numpy_helper.to_array(held)
        if held.name in ("wq", "wk", "wv", "wo"):
            held.CopyFrom(numpy_helper.from_array(array[:8] if held.name == "wo" else array[:, :8], held.name))
    del proto.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(proto), model)
    assert build(model, texts, tmp_path / "out", "--target", "null") == 2
    assert "no GEMM of the graph can be quantised" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_few_rows_calibrate_and_judge_and_that_is_said(model: Path, tmp_path: Path, capsys: Capture) -> None:
    few = lowbit.texts(tmp_path / "few.txt", 40)
    assert build(model, few, tmp_path / "out", "--target", "null") == 0
    data = int8_of(tmp_path / "out")["data"]
    assert (data["judged"], data["calibrated"], data["apart"]) == (40, 40, False)
    assert "40 rows of few.txt that also calibrated" in " ".join(capsys.readouterr().err.split())


def test_arrays_are_split_into_what_calibrates_and_what_judges(model: Path, tmp_path: Path) -> None:
    """Batches of an .npz name no rows; they are counted all the same."""
    arrays = {}
    for at in range(20):
        for name, array in tiny.feeds(batch=5, length=4 + at % 3).items():
            arrays[f"{at}/{name}"] = (array + at) % tiny.VOCABULARY if name == "input_ids" else array
    np.savez(tmp_path / "rows.npz", **arrays)
    assert build(model, tmp_path / "rows.npz", tmp_path / "out", "--target", "null") == 0
    data = int8_of(tmp_path / "out")["data"]
    assert (data["judged"], data["calibrated"], data["apart"]) == (25, 75, True)


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [([8] * 7, 56), ([8] * 8, 16), ([8] * 200, 256), ([300], 300), ([100, 100, 100], 300), ([1] * 64, 16), ([], 0)],
)
def test_who_judges(sizes: list[int], rows: int) -> None:
    """A quarter of the batches, at most 256 rows; all of them where there are under 64 rows or under four batches."""
    found = judging.choose_judging(sizes)
    assert sum(size for size, judges in zip(sizes, found, strict=True) if judges) == rows


@pytest.mark.parametrize(("limit", "rows"), [(None, 256), (0.005, 2944), (0.01, 1469), (0.1, 256), (0.0, 256)])
def test_as_many_judge_as_a_limit_on_decisions_needs(limit: float | None, rows: int) -> None:
    wanted = judging.rows_needed(limit)
    assert wanted == rows
    plenty = judging.choose_judging([8] * 4000, wanted)
    assert wanted <= 8 * sum(plenty) < wanted + 8
    few = judging.choose_judging([8] * 100, wanted)
    assert sum(few) == (50 if wanted > 256 else 25)
    assert confidence.changed_share("", 0, wanted, wanted).high < (limit or 1)


def test_seven_bits_only_for_a_cpu_that_saturates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vnni, old = tmp_path / "vnni", tmp_path / "old"
    vnni.write_text("flags : fpu avx2 avx512_vnni\n")
    old.write_text("flags : fpu avx2\n")
    monkeypatch.setattr(saturation.platform, "machine", lambda: "x86_64")
    assert saturation.weight_bits("onnxruntime", vnni) == 8
    assert saturation.weight_bits("onnxruntime", old) == 7
    assert saturation.weight_bits("onnxruntime", tmp_path / "missing") == 7
    assert saturation.weight_bits("tensorrt-rtx", old) == 8
    monkeypatch.setattr(saturation.platform, "machine", lambda: "aarch64")
    assert saturation.weight_bits("onnxruntime", old) == 8
