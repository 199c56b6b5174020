"""Texts from the command line: what is said at build, what verify refuses, what inspect shows."""

from __future__ import annotations

import contextlib
import io
import json

import models
import numpy as np
import pytest

import bertc
from bertc.cli import run


def call(*args):
    """The exit code, and what was printed on either stream."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run(list(map(str, args)))
    return code, said.getvalue()


@pytest.fixture(scope="module")
def unresized(tmp_path_factory):
    """A model with 15 words under a tokenizer with 17, and its artifact."""
    folder = tmp_path_factory.mktemp("unresized")
    models.save("BertModel", "BertConfig", models.TEXT | {"vocab_size": 15, "num_hidden_layers": 1}, folder / "m")
    code, output = call("build", folder / "m", "--target", "onnxruntime=fp32", "--no-fuse", "-o", folder / "o")
    assert code == 0, output
    return folder, output


def test_tokens_beyond_the_word_table_are_said_at_build(unresized):
    _, output = unresized
    assert "2 tokens of the tokenizer lie beyond the word table of 15 rows ('is' 15, 'big' 16)" in " ".join(output.split())
    assert "inputs check: ids of" in output


def test_verify_names_the_row_and_the_token(unresized):
    folder, _ = unresized
    (folder / "t.txt").write_text("the cat\nthe mat is big\n")
    code, output = call("verify", folder / "o", "--data", folder / "t.txt", "--against", folder / "m")
    assert (code, "t.txt:2: token 'big' has id 16" in " ".join(output.split())) == (2, True), output
    np.savez(folder / "x.npz", **{name: np.full((1, 3), 15 if name == "input_ids" else 1) for name in inputs(folder)})
    code, output = call("verify", folder / "o", "--data", folder / "x.npz", "--against", folder / "m")
    assert (code, "x.npz, row 0: input_ids has 15" in " ".join(output.split())) == (2, True), output


def inputs(folder):
    return [spec.name for spec in bertc.load(str(folder / "o")).io["inputs"]]


def test_a_runner_names_the_token_too(unresized):
    folder, _ = unresized
    runner = bertc.load(str(folder / "o"))
    assert runner.encode(["the cat"])["input_ids"].shape == (1, 4)
    with pytest.raises(bertc.errors.DataError, match="token 'big' has id 16"):
        runner.encode(["a big cat"])
    with pytest.raises(bertc.errors.DataError, match="needs an output 'sentence_embedding'"):
        runner.embed(["the cat"])


def test_what_was_compared_is_in_manifest_report_and_inspect(unresized):
    folder, _ = unresized
    recorded = json.loads((folder / "o" / "manifest.json").read_text())["inputs_check"]
    measured = json.loads((folder / "o" / "report.json").read_text())["inputs_check"]
    assert recorded["against"].startswith("transformers") and measured["max_relative_error"] < 1e-5
    _, output = call("inspect", folder / "o")
    assert f"inputs {recorded['compared']} as {recorded['against']}" in " ".join(output.split())
    code, _ = call("build", folder / "o", "--target", "null", "-o", folder / "again")
    assert code == 0
    assert json.loads((folder / "again" / "manifest.json").read_text())["inputs_check"] == recorded


def test_a_setting_that_cannot_be_honoured_ends_a_build_with_2(tmp_path):
    path = models.sentence_transformer(tmp_path / "m", {"pooling_mode": "mean"})
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seqlen": 7}))
    code, output = call("build", path, "--target", "null", "-o", tmp_path / "o")
    assert (code, "unknown setting 'max_seqlen'" in output) == (2, True), output
