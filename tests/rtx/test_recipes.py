"""The recipes that ship are built as they stand (one with half its layers), and each takes a checkpoint of one's own."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import models
import numpy as np
import pytest

import bertc
from bertc.artifact.manifest import open_artifact
from bertc.cli._main import run
from bertc.recipes import xlmr_classifier

TINY = {**models.TEXT, "max_position_embeddings": 260, "num_labels": 1}
BIGRAMS = [("two cats", "the cat sat on a mat"), ("a far away dog", "the dog is big")]


def built(recipe: str, out: Path, source: Path | None = None) -> dict[str, dict]:
    """Build by the command line; manifests by target."""
    assert run(["build", recipe, "-o", str(out), *(["--source", str(source)] if source else [])]) == 0
    found = {path.name: open_artifact(path).manifest for path in out.iterdir()}
    assert sorted(found) == ["onnxruntime-fp32", "tensorrt-rtx-sm89-fp16"]
    return found


def kernels(manifests: dict[str, dict]) -> dict:
    return manifests["tensorrt-rtx-sm89-fp16"]["engine"]["kernels"]


def test_bert_ranker_scores_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifests = built("bert-ranker", tmp_path / "out")
    assert kernels(manifests)["layers"][1:-1] == [8] * 4
    # What the recipe wants, 2 pairs cannot show; 800 can. (A random head puts such pairs so close that fp16 exchanges a few.)
    pairs = [(f"{a} {i % 7}", f"{b} {i % 11}") for i in range(400) for a, b in BIGRAMS]
    for where, rows, code, words in (
        (tmp_path / "out", BIGRAMS, 1, ["undecided", "undecided"]),
        (tmp_path / "out" / "onnxruntime-fp32", pairs, 0, ["passed"]),
    ):
        file = tmp_path / "pairs.jsonl"
        file.write_text("\n".join(json.dumps({"text": a, "text_pair": b}) for a, b in rows) + "\n")
        capsys.readouterr()
        assert run(["verify", str(where), "--data", str(file), "--against", "bert-ranker", "--json"]) == code
        assert [verdict["verdict"] for verdict in json.loads(capsys.readouterr().out)["artifacts"]] == words
    runner = bertc.load(tmp_path / "out" / "onnxruntime-fp32")
    assert runner.run(runner.encode(BIGRAMS))["logits"].shape == (2, 1)


def test_xlmr_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(xlmr_classifier.SHAPE, "num_hidden_layers", 3)
    manifests = built("xlmr-classifier", tmp_path / "out")
    assert kernels(manifests)["layers"][1:-1] == [8]
    assert manifests["onnxruntime-fp32"]["graph"]["initializer_bytes"] > 250002 * 384 * 4


def test_student_is_three_layers_of_its_teacher(tmp_path: Path) -> None:
    manifests = built("student-12-to-3", tmp_path / "out")
    assert len(kernels(manifests)["layers"]) == 3
    for manifest in manifests.values():
        assert [a["rule"] for a in manifest["passes"]["applied"]].count("attention") == 3


OWN = {
    "bert-ranker": ("BertForSequenceClassification", "BertConfig", TINY),
    "xlmr-classifier": (
        "XLMRobertaForSequenceClassification",
        "XLMRobertaConfig",
        {**TINY, "type_vocab_size": 1, "num_labels": 3},
    ),
}


@pytest.mark.parametrize("recipe", OWN)
def test_a_checkpoint_of_ones_own(recipe: str, tmp_path: Path) -> None:
    manifests = built(recipe, tmp_path / "out", models.save(*OWN[recipe], tmp_path / "checkpoint"))
    assert manifests["onnxruntime-fp32"]["source"]["kind"] == "huggingface"


def test_a_teacher_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the recipe's comment; layer 1 of the student is layer 3 of the teacher."""
    from transformers import BertModel

    teacher = models.save("BertModel", "BertConfig", {**TINY, "num_hidden_layers": 4}, tmp_path / "teacher")
    monkeypatch.setattr(sys, "argv", ["student_12_to_3", str(teacher), str(tmp_path / "student"), "0", "3"])
    runpy.run_module("bertc.recipes.student_12_to_3", run_name="__main__")
    names = [f"encoder.layer.{layer}.output.dense.weight" for layer in (3, 1)]
    whole, cut = (BertModel.from_pretrained(tmp_path / name).state_dict() for name in ("teacher", "student"))
    np.testing.assert_array_equal(whole[names[0]], cut[names[1]])
    manifests = built("student-12-to-3", tmp_path / "out", tmp_path / "student")
    assert len(kernels(manifests)["layers"]) == 2
    assert (tmp_path / "out" / "onnxruntime-fp32" / "tokenizer" / "tokenizer.json").is_file()
