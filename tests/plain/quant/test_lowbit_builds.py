"""The other forms of low-bit builds: dynamic, weights alone, fp8; which one is kept; and how --int8 is read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import lowbit
import numpy as np
import onnx
import pytest
import tiny

import bertc
from bertc import precision, targets
from bertc.artifact.manifest import Artifact, open_artifact
from bertc.cli import _main as cli
from bertc.cli import build as command
from bertc.core.errors import BertcError, InputError
from bertc.data.samples import Sample
from bertc.graph.model import load_graph
from bertc.precision import CALIBRATED, QUANTISED
from bertc.precision import _value_ranges as value_ranges
from bertc.precision._value_ranges import RangeRequest
from bertc.quant import fp8
from bertc.quant import timed_choice as contest
from bertc.quant.dynamic import count_integer_gemms, dynamic_int8
from bertc.quant.weights import weight_only
from bertc.recipe import Recipe, check

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lowbit.encoder(tmp_path_factory.mktemp("lowbit"))


@pytest.fixture(scope="module")
def texts(model: Path) -> Path:
    return lowbit.texts(model.parent / "texts.txt")


def report(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "report.json").read_text("utf-8"))["int8"])


# The command line


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["m", "--int8", "-o", "out"], "auto"),
        (["--int8", "m", "-o", "out"], "auto"),
        (["m", "-o", "out", "--int8"], "auto"),
        (["m", "--int8", "static", "-o", "out"], "static"),
        (["--int8", "weights", "m", "-o", "out"], "weights"),
        (["m", "--int8=dynamic", "-o", "out"], "dynamic"),
        (["m", "-o", "out"], None),
    ],
)
def test_int8_takes_a_form_and_no_source(words: list[str], form: str | None) -> None:
    given = command.build.make_context("build", list(words)).params
    assert (given["int8"], given["reference"], given["out"]) == (form, "m", Path("out"))


@pytest.mark.parametrize("form", command.FORMS.values())
def test_every_form_is_a_precision(form: str) -> None:
    assert form in QUANTISED and form in precision.names() and precision.get(form).apply


def test_one_precision_an_artifact(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.run(["build", str(model), "--fp16", "--int8", "dynamic", "-o", str(tmp_path / "out")]) == 2
    assert "--fp16 and --int8" in capsys.readouterr().err


@pytest.mark.parametrize("mode", sorted(CALIBRATED))
def test_scales_need_data(mode: str) -> None:
    with pytest.raises(BertcError, match=rf"{mode} needs data"):
        check(Recipe("x", precision=mode))


@pytest.mark.parametrize("mode", sorted(QUANTISED - CALIBRATED))
def test_other_forms_need_none(mode: str) -> None:
    check(Recipe("x", precision=mode))


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("tensorrt-rtx:sm86,sm89", "fp8", "fp8 on sm86: it needs sm89"),
        ("tensorrt-rtx:sm75", "fp8", "fp8 on sm75"),
        ("tensorrt-rtx:sm75", "int8", "int8 on sm75"),
        ("tensorrt-rtx:sm75", "int8-static", "int8-static on sm75"),
        ("tensorrt-rtx:sm89", "int8-dynamic", "imports neither DynamicQuantizeLinear nor MatMulInteger"),
        ("tensorrt", "int8-dynamic", "imports neither DynamicQuantizeLinear nor MatMulInteger"),
    ],
)
def test_what_no_engine_can_be_is_refused_with_a_reason(text: str, mode: str, why: str) -> None:
    assert why in str(targets.refusal(targets.parse_spec(text), mode))


def test_what_can_be_built_is_not_refused() -> None:
    assert targets.refusal(targets.parse_spec("tensorrt-rtx:sm89,sm120"), "fp8") is None
    assert targets.refusal(targets.parse_spec("tensorrt-rtx:sm75"), "int8-weights") is None
    assert targets.refusal(targets.parse_spec("onnxruntime"), "int8-dynamic") is None


# Dynamic


def test_dynamic_multiplies_integers_and_is_close(model: Path, tmp_path: Path) -> None:
    assert cli.run(["build", str(model), "--int8", "dynamic", "-o", str(tmp_path / "out")]) == 0
    found = open_artifact(tmp_path / "out")
    assert (found.target, found.precision) == ("onnxruntime", "int8-dynamic")
    ops = found.graph().op_counts()
    assert ops["MatMulInteger"] == 4 and ops["MatMul"] == 2, "the two products of attention have no weights"
    assert 1e-4 < lowbit.relative(tmp_path / "out", model) < 0.05
    assert report(tmp_path / "out")["gemms"] == 4


def test_seven_bits_leave_room_for_saturation(model: Path) -> None:
    def largest(bits: int) -> int:
        held = dynamic_int8(load_graph(model), bits).model.graph.initializers.values()
        arrays = [v.const_value.numpy() for v in held if v.const_value is not None and v.dtype is not None]
        return max(int(np.abs(a.astype(int)).max()) for a in arrays if a.dtype == np.int8 and a.size > 1000)

    assert largest(8) > 64 >= largest(7)


def test_each_mode_refuses_a_graph_that_is_not_its_own(model: Path) -> None:
    for mode in QUANTISED:
        with pytest.raises(InputError, match="bertc build"):
            precision.get(mode).apply(load_graph(model))


# Weights alone


def test_weights_are_rounded_to_the_nearest_step_of_their_channel(model: Path) -> None:
    graph = load_graph(model)
    made, refused = weight_only(graph)
    assert not refused
    held = {name: v.const_value.numpy() for name, v in made.model.graph.initializers.items() if v.const_value is not None}
    for name in ("q", "k", "v", "mixed"):
        float_name = {"q": "wq", "k": "wk", "v": "wv", "mixed": "wo"}[name]
        weight = graph.model.graph.initializers[float_name].const_value
        assert weight is not None
        stored, scale = held[f"n_{name}/weight/int8"], held[f"n_{name}/weight/scale"]
        assert stored.dtype == np.int8 and float_name not in held
        assert np.abs(stored * scale - weight.numpy()).max(axis=0) == pytest.approx(scale / 2, rel=0.25)
        assert (np.abs(stored * scale - weight.numpy()) <= scale * 0.5001 + 127 * scale * 2.0**-11).all()


def test_weights_alone_need_no_data_and_are_close(model: Path, tmp_path: Path) -> None:
    assert cli.run(["build", str(model), "--int8", "weights", "--target", "onnxruntime", "-o", str(tmp_path / "out")]) == 0
    ops = open_artifact(tmp_path / "out").graph().op_counts()
    assert ops["DequantizeLinear"] == 4 and "QuantizeLinear" not in ops
    assert 1e-4 < lowbit.relative(tmp_path / "out", model) < 0.02


# FP8


def e4m3() -> np.ndarray:
    """All finite numbers of E4M3 from 0 up, by the paper: bias 7, subnormals at exponent 0, and 1111.111 is no number."""
    exponents = [(e, m) for e, m in itertools.product(range(16), range(8)) if (e, m) != (15, 7)]
    return np.array([(m / 8) * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7) for e, m in exponents])


def test_fp8_rounds_to_the_nearest_number_of_the_type() -> None:
    numbers = e4m3()
    assert numbers.max() == fp8.TOP and len(numbers) == 127
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * np.logspace(-4, 3, 4000, dtype=np.float32)
    nearest = numbers[np.abs(np.abs(x)[:, None] - numbers).argmin(axis=1)] * np.sign(x)
    assert np.array_equal(fp8.quantise_dequantise(x, np.float32(1)), nearest.astype(np.float32))


def test_a_scale_that_is_rounded_down_makes_no_nan() -> None:
    reach = np.float32(1.0001) * np.float32(fp8.TOP) * np.float32(np.float16(0.1))
    values, scales = fp8.quantise_weights(np.full((4, 2), reach, np.float32))
    assert np.isfinite(values.astype(np.float32)).all() and np.isfinite(scales).all()
    assert values.astype(np.float32) * scales == pytest.approx(np.full((4, 2), reach), rel=1e-3)


def test_fp8_is_for_gemms_alone_and_is_close(model: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["build", str(model), "--fp8", "--target", "null", "--data", str(texts), "-o", str(tmp_path / "out")]
    assert cli.run(words) == 0
    found = open_artifact(tmp_path / "out")
    graph = found.graph()
    made = {n.outputs[0].dtype.name for n in graph.model.graph if n.op_type == "QuantizeLinear" and n.outputs[0].dtype}
    assert made == {"FLOAT8E4M3FN"}
    assert graph.op_counts()["QuantizeLinear"] == 2 and report(tmp_path / "out")["kind"] == "fp8"
    assert 1e-3 < lowbit.relative(tmp_path / "out", model) < 0.1
    monkeypatch.setattr(value_ranges, "PART", 1)  # a float8 cannot be handed from one session to the next
    sample = Sample("one", {name: np.ones((1, 3), np.int64) for name in ("input_ids", "attention_mask")})
    assert "last_hidden_state" in value_ranges.measure_ranges(graph, [sample], RangeRequest(2.0**-24))


# Which form is kept


@pytest.mark.parametrize(
    ("medians", "within", "kept"),
    [
        ({"fp32": 10.0, "static": 8.0, "dynamic": 5.0}, {"static", "dynamic"}, "dynamic"),
        ({"fp32": 10.0, "static": 8.0, "dynamic": 5.0}, {"static"}, "static"),
        ({"fp32": 10.0, "static": 8.0, "dynamic": 5.0}, set(), "fp32"),
        ({"fp32": 10.0, "static": 9.8, "dynamic": 11.0}, {"static", "dynamic"}, "fp32"),
        ({"fp32": 10.0, "dynamic": 9.0}, {"dynamic"}, "dynamic"),
    ],
)
def test_the_fastest_within_the_budget_is_kept(medians: dict[str, float], within: set[str], kept: str) -> None:
    found, why = contest.choose_form(medians, within)
    assert found == kept
    assert ("builds int8 anyway" in why) == (kept == "fp32")


def test_both_forms_are_timed_and_judged(model: Path, texts: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["build", str(model), "--int8", "--target", "onnxruntime", "--data", str(texts), "-o", str(tmp_path / "out")]
    assert cli.run(words) == 0
    found = report(tmp_path / "out")["candidates"]
    forms = found["forms"]
    assert set(forms) == {"fp32", "static", "dynamic"}
    kept = {"fp32": "fp32", "static": "int8", "dynamic": "int8-dynamic"}[found["kept"]]
    assert open_artifact(tmp_path / "out").precision == kept
    fastest = min((name for name in forms if name == "fp32" or forms[name]["within"]), key=lambda name: forms[name]["ms"])
    gain = forms["fp32"]["ms"] / forms[fastest]["ms"]
    assert found["kept"] == (fastest if gain >= contest.MIN_GAIN else "fp32")
    assert "medians of" in " ".join(capsys.readouterr().err.split())
    assert "candidates" not in open_artifact(tmp_path / "out").manifest["int8"], "no fact depends on the time of a build"


def test_a_form_whose_verification_would_fail_is_not_kept(model: Path, texts: Path, tmp_path: Path) -> None:
    """Whichever is faster: with a limit between the errors of both forms, the closer one is built or float32, never nothing."""
    words = ["build", str(model), "--target", "onnxruntime", "--data", str(texts), "--budget"]
    errors = {}
    for form in ("static", "dynamic"):
        made = open_int8(tmp_path / form, [*words, "rel=10", "--int8", form])
        errors[form] = max(find_relative(made.path, goldens) for goldens in (True, False))
    closer, limit = min(errors, key=errors.__getitem__), sum(errors.values()) / 2
    made = open_int8(tmp_path / "out", [*words, f"rel={limit}", "--int8"])
    forms = report(made.path)["candidates"]["forms"]
    assert {name for name, found in forms.items() if found.get("within")} == {closer}
    assert made.precision in ("fp32", {"static": "int8", "dynamic": "int8-dynamic"}[closer])


def open_int8(out: Path, words: list[str]) -> Artifact:
    assert cli.run([*words, "-o", str(out)]) == 0
    return open_artifact(out)


def find_relative(path: Path, goldens: bool) -> float:
    """The relative error of an artifact on its goldens, or as its build measured it on the held-out rows."""
    if not goldens:
        return float(
            json.loads((path / "report.json").read_text())["verification"]["engine"]["outputs"]["last_hidden_state"]["relative"]
        )
    (verdict,) = bertc.verify(path)
    return verdict.result.outputs[0].relative


def test_static_is_built_where_it_is_asked_for(model: Path, texts: Path, tmp_path: Path) -> None:
    words = ["build", str(model), "--int8", "static", "--target", "onnxruntime", "--data", str(texts)]
    assert cli.run([*words, "-o", str(tmp_path / "out")]) == 0
    found = open_artifact(tmp_path / "out")
    assert found.precision == "int8-static" and "candidates" not in report(tmp_path / "out")
    assert found.graph().op_counts()["QuantizeLinear"] == 2 and count_integer_gemms(found.graph()) == 0


@pytest.mark.parametrize("mode", ["int8", "int8-static", "fp8"])
def test_what_nothing_can_judge_is_refused_before_any_work(mode: str, tmp_path: Path, texts: Path, capsys: Capture) -> None:
    """Three numbers a text, of which nobody said what they mean: no vector, no decision."""
    model = tiny.encoder(tmp_path / "m.onnx", tokenizer=True)
    proto = onnx.load(model)
    width = onnx.numpy_helper.from_array(np.full((tiny.WIDTH, 3), 0.1, np.float32), "narrow")
    proto.graph.initializer.append(width)
    proto.graph.node.append(onnx.helper.make_node("MatMul", ["last_hidden_state", "narrow"], ["y"]))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "length", 3]))
    onnx.save(proto, model)
    words = ["build", str(model), "--target", f"onnxruntime={mode}" if mode != "fp8" else "null=fp8", "--data", str(texts)]
    assert cli.run([*words, "-o", str(tmp_path / "o")]) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "cannot be judged" in err and "--task" in err
    assert "check export" not in err, "refused before any work"


def test_an_export_without_a_task_may_be_given_one_and_is_built_then(tmp_path: Path, texts: Path, capsys: Capture) -> None:
    """The advice of the refusal works on an export as on its source, and one that has a task keeps it."""
    model = tiny.encoder(tmp_path / "m.onnx", tokenizer=True)
    assert cli.run(["export", str(model), "-o", str(tmp_path / "plain")]) == 0
    words = ["build", str(tmp_path / "plain"), "--target", "onnxruntime", "-o"]
    assert cli.run([*words, str(tmp_path / "a"), "--task", "token-classification"]) == 0
    assert open_artifact(tmp_path / "a").manifest["source"]["task"] == "token-classification"
    assert cli.run(["export", str(model), "--task", "token-classification", "-o", str(tmp_path / "tasked")]) == 0
    assert cli.run(["build", str(tmp_path / "tasked"), "--task", "masked-lm", "-o", str(tmp_path / "b")]) == 2
    assert "with task token-classification, not masked-lm" in " ".join(capsys.readouterr().err.split())
