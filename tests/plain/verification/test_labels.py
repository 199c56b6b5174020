"""From a labelled file to a verdict on the command line: a classifier in an .onnx file, no PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import tiny
from onnx import TensorProto, numpy_helper

import bertc
from bertc.cli import _main as cli

Capture = pytest.CaptureFixture[str]
TABLE = {"two": (0, 2), "words": (0, 3), "and": (2, 0), "more": (3, 0)}  # logits: cats for "and more", dogs for "two words"


def classifier(folder: Path, *, worse: bool = False) -> Path:
    """Sums a row of a table over the tokens -> logits [batch, 2]; `worse` has a table that takes "words" for cats."""
    folder.mkdir(exist_ok=True)
    table = np.zeros((tiny.VOCABULARY, 2), np.float32)
    for word, row in TABLE.items():
        table[tiny.WORDS.index(word)] = (4, 0) if worse and word == "words" else row
    nodes = [
        oh.make_node("Gather", ["table", "input_ids"], ["x"], name="look"),
        oh.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT, name="cast"),
        oh.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        oh.make_node("Mul", ["x", "wide"], ["seen"], name="see"),
        oh.make_node("ReduceSum", ["seen", "one"], ["logits"], keepdims=0, name="sum"),
    ]
    inputs = [oh.make_tensor_value_info(name, TensorProto.INT64, tiny.DIMS) for name in ("input_ids", "attention_mask")]
    output = oh.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", 2))
    values = {"table": table, "last": np.array([-1]), "one": np.array([1])}
    weights = [numpy_helper.from_array(value, name) for name, value in values.items()]
    model = oh.make_model(oh.make_graph(nodes, "g", inputs, [output], weights), opset_imports=[oh.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.save(model, folder / "m.onnx")
    tiny.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "cats", "1": "dogs"}}))
    return folder / "m.onnx"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labels")
    model = classifier(root / "source")
    words = ["build", model, "--fp32", "--target", "onnxruntime", "--task", "sequence-classification", "-o", root / "out"]
    assert cli.run([str(word) for word in words]) == 0
    return root / "out"


def source_of(built: Path) -> Path:
    return built.parent / "source" / "m.onnx"


def labelled(path: Path, rows: int, wrong: int = 0) -> Path:
    """Texts in turn of dogs and of cats, by name and by id; the labels of the first `wrong` are not what the model says."""
    texts = [("words two", "dogs"), ("and more", 0)]
    lines = [{"text": texts[at % 2][0], "label": texts[at % 2][1] if at >= wrong else "cats"} for at in range(rows)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def run(capsys: Capture, code: int, *words: object) -> tuple[dict, str]:
    assert cli.run([*map(str, words), "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out), " ".join(err.split())


def test_class_names_travel_with_the_artifact(built: Path) -> None:
    assert json.loads((built / "model" / "config.json").read_text())["id2label"]["1"] == "dogs"


def test_enough_rows_pass(built: Path, tmp_path: Path, capsys: Capture) -> None:
    found, err = run(
        capsys,
        0,
        "verify",
        built,
        "--data",
        labelled(tmp_path / "d.jsonl", 800, wrong=80),
        "--against",
        source_of(built),
        "--max-drop",
        0.005,
    )
    accuracy = found["artifacts"][0]["engine"]["metrics"][0]
    assert (accuracy["name"], accuracy["source"], accuracy["artifact"], accuracy["rows"]) == ("accuracy", 0.95, 0.95, 800)
    assert accuracy["low"] <= accuracy["drop"] == 0 <= accuracy["high"] <= 0.005
    assert found["artifacts"][0]["verdict"] == "passed"
    assert "F1 of dogs" in err
    assert "passed (at most 0.005)" in err


def test_few_rows_are_undecided(built: Path, tmp_path: Path, capsys: Capture) -> None:
    data = labelled(tmp_path / "d.jsonl", 20)
    found, err = run(capsys, 1, "verify", built, "--data", data, "--against", source_of(built), "--max-drop", 0.005)
    assert (found["passed"], found["artifacts"][0]["verdict"]) == (False, "undecided")
    assert "is undecided: task: drop of accuracy 0 (95 % interval -0." in err
    assert "too few rows: 20; about" in err
    assert "engine: UNDECIDED" in err
    assert run(capsys, 0, "verify", built, "--data", data, "--against", source_of(built))[0]["passed"], "nobody asked for a limit"


def test_a_worse_artifact_fails(built: Path, tmp_path: Path, capsys: Capture) -> None:
    """Its source is another model, so that the drop is known: half of all rows."""
    worse = classifier(tmp_path / "worse", worse=True)
    run(capsys, 0, "build", worse, "--fp32", "--target", "onnxruntime", "--task", "sequence-classification", "-o", tmp_path / "o")
    words = (
        "verify",
        tmp_path / "o",
        "--against",
        built,
        "--allow-changed-source",
        "--data",
        labelled(tmp_path / "d.jsonl", 60),
        "--budget",
        "rel=10",
    )
    found, err = run(capsys, 1, *words, "--max-drop", 0.1)
    accuracy = found["artifacts"][0]["engine"]["metrics"][0]
    assert (accuracy["source"], accuracy["artifact"], accuracy["drop"]) == (1.0, 0.5, 0.5)
    assert accuracy["low"] > 0.3
    assert found["artifacts"][0]["verdict"] == "failed"
    assert "is over its budget: task: drop of accuracy 0.5" in err


def test_without_labels_the_decisions_are_the_metric(built: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.txt").write_text("two words\n" * 50)
    found, err = run(capsys, 1, "verify", built, "--data", tmp_path / "t.txt", "--against", source_of(built), "--max-drop", 0.01)
    kept = found["artifacts"][0]["engine"]["metrics"][0]
    assert (kept["name"], kept["drop"], kept["method"]) == ("kept: class", 0.0, "Clopper-Pearson")
    assert kept["high"] == pytest.approx(0.0711, abs=1e-4)
    assert "too few rows: 50; about 360 needed" in err
    (tmp_path / "t.txt").write_text("two words\n" * 400)
    run(capsys, 0, "verify", built, "--data", tmp_path / "t.txt", "--against", source_of(built), "--max-drop", 0.01)


def test_without_a_source_labels_alone_are_scored(built: Path, tmp_path: Path, capsys: Capture) -> None:
    data = labelled(tmp_path / "d.jsonl", 20)
    found, err = run(capsys, 1, "verify", built, "--data", data)
    accuracy = found["artifacts"][0]["engine"]["metrics"][0]
    assert (accuracy["artifact"], accuracy["source"], accuracy["drop"]) == (1.0, None, None)
    assert found["artifacts"][0]["verdict"] == "undecided"
    assert "the drop is unknown, only the artifact's own metric is given" in err
    run(capsys, 2, "verify", built, "--data", data, "--against", source_of(built).with_suffix(".away"))


def test_a_limit_that_cannot_be_judged_is_an_error(built: Path, capsys: Capture) -> None:
    for limit in (("--max-drop", 0.005), ("--budget", "agreement=0.99")):
        assert "cannot be judged on synthetic samples" in run(capsys, 2, "verify", built, *limit)[0]["error"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a", "label": "dog"}, "d.jsonl:2: no class 'dog'; did you mean 'dogs'?"),
        ({"text": "a", "label": 2}, "d.jsonl:2: no class 2; known: cats, dogs, or 0 to 1"),
        ({"text": "a", "label": ["cats"]}, "d.jsonl:2 has a label of type list; expected one class"),
        ({"text": "a", "label": True}, ""),
        ({"text": "a", "lable": "cats"}, "d.jsonl:2 has a column 'lable'; did you mean 'label'?"),
        ({"text": "a"}, "d.jsonl:2 has no label, and 1 of 2 rows have one; label all or none"),
    ],
)
def test_wrong_labels_name_the_row(built: Path, tmp_path: Path, capsys: Capture, line: dict, said: str) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"text": "two", "label": "dogs"}) + "\n" + json.dumps(line))
    found, _ = run(capsys, 2 if said else 0, "verify", built, "--data", data, "--against", source_of(built))
    assert said in found.get("error", "")


def test_csv_and_python(built: Path, tmp_path: Path) -> None:
    rows = "text,label,id\n" + '"two, words",dogs,1\nand more,0,2\n' * 10
    (tmp_path / "d.csv").write_text(rows)
    (verdict,) = bertc.verify(built, data=tmp_path / "d.csv", against=str(source_of(built)), budget={"max_drop": 0.5})
    assert (verdict.verdict, verdict.result.metrics[0].artifact, verdict.result.metrics[0].rows) == ("passed", 1.0, 20)
    assert "d.csv: not used: id" in verdict.notes


@pytest.mark.parametrize(("precision", "said"), [("fp32", "not judged"), ("bf16", "ok (alarm limit 0.03)")])
def test_what_the_default_budget_makes_of_decisions(
    built: Path, tmp_path: Path, capsys: Capture, precision: str, said: str
) -> None:
    words = ("build", built, "--target", f"null={precision}", "-o", tmp_path / "o")
    run(capsys, 0, *words)
    (tmp_path / "t.txt").write_text("two words\nand more\n")
    _, err = run(capsys, 0, "verify", tmp_path / "o", "--data", tmp_path / "t.txt", "--against", source_of(built))
    assert f"kept: class 1.0000 1.0000 0.0000 0.0000 to 0.8419 2 Clopper-Pearson {said}" in err
