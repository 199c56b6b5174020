"""Feeds padded to a bucket: the same answers, cut back to the length that was asked for; and what cannot be padded is refused."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

import bertc
from bertc.core.errors import DataError
from bertc.core.profiles import Range
from bertc.core.tensors import TensorSpec
from bertc.runtime.padding import cut_outputs, pad_feeds, padded_dim
from bertc.runtime.runner import Runner

BUCKETS = ["batch=1:2:3,length=1:8:8", "batch=1:1:2,length=9:24:24"]
TEXT = [TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask", "token_type_ids")]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("padding")
    tiny.encoder(folder / "m.onnx", tokenizer=True)
    bertc.build(folder / "m.onnx", folder / "out", targets=["onnxruntime=fp32"], profiles=BUCKETS)
    return bertc.load(folder / "out")


@pytest.mark.parametrize(("batch", "length", "bound"), [(1, 1, 8), (3, 5, 8), (2, 8, 8), (2, 9, 24), (1, 24, 24)])
def test_padded_answers_are_the_same(batch: int, length: int, bound: int, runner: Runner) -> None:
    feeds = tiny.feeds(batch, length)
    feeds["attention_mask"][0, length // 2 + 1 :] = 0
    made = runner.bucket(feeds)
    assert {a.shape for a in made.values()} == {(batch, bound)}
    assert not made["attention_mask"][:, length:].any() and np.array_equal(made["input_ids"][:, :length], feeds["input_ids"])
    plain, same = runner.run(feeds)["last_hidden_state"], runner.run_padded(feeds)["last_hidden_state"]
    assert same.shape == plain.shape == (batch, length, tiny.WIDTH)
    assert np.abs(same - plain).max() <= 1e-6 * np.abs(plain).max()


def test_what_no_bucket_holds_is_refused_and_runs_as_it_is(runner: Runner) -> None:
    for batch, length in ((1, 25), (3, 9)):
        with pytest.raises(DataError, match=f"no bucket of this artifact fits batch={batch}, length={length}"):
            runner.bucket(tiny.feeds(batch, length))
        assert runner.run(tiny.feeds(batch, length))["last_hidden_state"].shape[1] == length
    with pytest.raises(DataError, match=r"attention_mask.* got nothing"):
        runner.bucket({"input_ids": np.ones((1, 3), np.int64)})


def test_the_padding_id_is_the_tokenizers() -> None:
    feeds = {spec.name: np.ones((1, 3), np.int32) for spec in TEXT}
    made = pad_feeds(feeds, TEXT, [{"batch": Range(1, 1, 1), "length": Range(1, 5, 5)}], 7)
    assert made["input_ids"].tolist() == [[1, 1, 1, 7, 7]]
    assert made["attention_mask"].tolist() == made["token_type_ids"].tolist() == [[1, 1, 1, 0, 0]]
    assert {a.dtype for a in made.values()} == {np.dtype(np.int32)}


def test_models_that_padding_would_change_are_refused() -> None:
    audio = [
        TensorSpec("input_values", "float32", ("batch", "samples")),
        TensorSpec("attention_mask", "int64", ("batch", "samples")),
    ]
    with pytest.raises(DataError, match="'input_values' is not token ids"):
        padded_dim(audio)
    with pytest.raises(DataError, match="no mask"):
        padded_dim(TEXT[:1])
    with pytest.raises(DataError, match="no mask"):
        padded_dim([TensorSpec("attention_mask", "int64", ("batch", 16))])


def test_an_output_of_a_computed_length_cannot_be_cut() -> None:
    feeds = {spec.name: np.ones((1, 3), np.int64) for spec in TEXT}
    outputs = {"pooled": np.ones((1, 4)), "half": np.ones((1, 4))}
    assert cut_outputs(outputs, TEXT, [TensorSpec("pooled", "float32", ("batch", 4))], feeds)["pooled"].shape == (1, 4)
    with pytest.raises(DataError, match=r"half.*size computed from length"):
        cut_outputs(outputs, TEXT, [TensorSpec("half", "float32", ("batch", "length//2"))], feeds)
