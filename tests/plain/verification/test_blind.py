"""Goldens that see nothing are said, and are not enough; special tokens, a factory's example and --data see more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

import bertc
from bertc.artifact import goldens
from bertc.core import ExportFailed, TensorSpec
from bertc.data import Sample, special_ids
from bertc.data.special_tokens import sprinkle_ids
from bertc.verification.blind import SpreadMeter

VECTOR = TensorSpec("y", np.dtype("float32"), ("batch", 3))
TOKENS = TensorSpec("y", np.dtype("float32"), ("batch", "length", 3))
FEEDS = {"x": np.zeros((2, 2), np.int64)}
SPAN = '''
import torch
from bertc import FactoryModel

class Span(torch.nn.Module):
    """Pools what lies between two markers; without them it answers the same for every text."""
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = torch.nn.Embedding({size}, 16), torch.nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask):
        inside = ((input_ids == {open}).cumsum(1) > 0) & ((input_ids == {close}).flip(1).cumsum(1).flip(1) > 0)
        weights = (inside & (attention_mask > 0)).to(torch.float32).unsqueeze(-1)
        return {{"logits": self.head((self.words(input_ids) * weights).sum(1) / weights.sum(1).clamp(min=1e-9))}}

def make():
    ids = torch.randint(5, 50, (2, 9))
    {example}
    return FactoryModel(Span().eval(), {{"input_ids": ids, "attention_mask": torch.ones_like(ids)}},
                        {{"input_ids": ("batch", "length"), "attention_mask": ("batch", "length")}}{assets})
'''


def span(
    folder: Path,
    name: str,
    *,
    markers: tuple[int, int] = (57, 58),
    size: int = 100_000,
    example: str = "pass",
    assets: Path | None = None,
) -> str:
    given_assets = f", assets={str(assets)!r}" if assets else ""
    text = SPAN.format(open=markers[0], close=markers[1], size=size, example=example, assets=given_assets)
    (folder / f"{name}.py").write_text(text)
    return f"{name}:make"


@pytest.mark.parametrize(
    ("arrays", "spec", "blind"),
    [
        ([np.ones((2, 3)), np.ones((4, 3))], VECTOR, True),
        ([np.ones((2, 3)) * [1, 2, 3]], VECTOR, True),
        ([np.ones((2, 3)), np.ones((4, 3)) * 1.001], VECTOR, False),
        ([np.array([[1e-4], [1e-4 + 1e-12]]) * [1, 1, 1]], VECTOR, True),
        ([np.array([[1e-4], [1e-4 + 1e-8]]) * [1, 1, 1]], VECTOR, False),
        ([np.ones((1, 3))], VECTOR, False),
        ([np.zeros((2, 3)), np.zeros((2, 3))], VECTOR, True),
        ([np.ones((1, 4, 3)), np.ones((1, 2, 3))], TOKENS, True),
        ([np.arange(6).reshape(1, 2, 3)], TOKENS, False),
    ],
)
def test_what_is_the_same_for_every_row(arrays: list[np.ndarray], spec: TensorSpec, blind: bool) -> None:
    meter = SpreadMeter([spec])
    for array in arrays:
        meter.add(Sample("s", FEEDS), {"y": array})
    assert bool(meter.blind()) == blind


def test_rows_that_are_all_masked_do_not_count() -> None:
    rows = np.array([[1.0, 2, 3], [7, 7, 7], [1, 2, 3]])
    meter = SpreadMeter([VECTOR])
    meter.add(Sample("s", FEEDS, dead_rows=(1,)), {"y": rows})
    assert meter.blind() == ("y",)


@given(st.integers(1, 40), st.integers(2, 90), st.integers(0, 2**32 - 1))
def test_special_tokens_stand_in_every_row(count: int, length: int, seed: int) -> None:
    special, rng = range(100, 100 + count), np.random.default_rng(seed)
    feeds = {"input_ids": np.zeros((3, length), np.int64), "token_type_ids": np.zeros((3, length), np.int64)}
    made = sprinkle_ids(feeds, {"input_ids": 200, "token_type_ids": 2}, special, rng)
    assert not made["token_type_ids"].any()
    for row in made["input_ids"]:
        found = row[row > 0]
        assert set(found) <= set(special)
        assert len(found) == min(count, max(1, length // 4))
        assert np.all(np.diff(found) > 0), "an opening marker stands before its closing one"
    assert not feeds["input_ids"].any(), "the feeds that were given stay as they are"


def test_tokens_beyond_the_table_change_nothing() -> None:
    feeds = {"input_ids": np.zeros((2, 8), np.int64)}
    assert not sprinkle_ids(feeds, {"input_ids": 50}, (49, 50), np.random.default_rng(0))["input_ids"].any()


def test_goldens_that_see_nothing_are_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportFailed, match=r"the same for all \d+ samples.*--data"):
        bertc.build(span(tmp_path, "blind_span"), tmp_path / "o", targets=["null=fp32"])


def test_the_example_of_a_factory_is_a_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = span(tmp_path, "span_with_example", example="ids[0, 2], ids[0, 6], ids[1, 1], ids[1, 4] = 57, 58, 57, 58")
    bertc.build(source, tmp_path / "o", targets=["null=fp32"])
    samples, outputs = goldens.load_goldens(tmp_path / "o" / "goldens.npz")
    assert samples[-1].label == "the factory's example"
    assert np.ptp(outputs[-1]["logits"], axis=0).max() > 1e-3


def test_special_tokens_of_the_tokenizer_are_in_the_goldens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tok"
    folder.mkdir()
    tiny.write_tokenizer(folder)
    written = json.loads((folder / "tokenizer.json").read_text())
    for token, at in (("<e>", 57), ("</e>", 58)):
        written["added_tokens"].append({"id": at, "content": token, "special": False, "single_word": False, "lstrip": False,
                                        "rstrip": False, "normalized": False})  # fmt: skip
        written["model"]["vocab"][token] = at
    (folder / "tokenizer.json").write_text(json.dumps(written))
    assert {57, 58} <= set(special_ids([folder / "tokenizer.json"]))
    bertc.build(span(tmp_path, "span_with_tokens", assets=folder), tmp_path / "o", targets=["null=fp32"])
    samples, outputs = goldens.load_goldens(tmp_path / "o" / "goldens.npz")
    assert any(57 in sample.feeds["input_ids"] for sample in samples)
    assert len({row.tobytes() for each in outputs for row in each["logits"].round(4)}) > 5


def test_data_is_verified_on_in_every_precision(tmp_path: Path) -> None:
    model = tiny.encoder(tmp_path / "m.onnx", tokenizer=True)
    (tmp_path / "t.txt").write_text("two words\nand more words\n" * 5)
    made = bertc.build(model, tmp_path / "o", targets=["null=fp16", "onnxruntime=fp32"], data=str(tmp_path / "t.txt"))
    for artifact in made:
        report = json.loads((artifact.path / "report.json").read_text())
        assert report["verification"]["data"] == "10 rows of t.txt", artifact.path
        assert report["verification"]["verdict"] == "passed"
    assert made[0].manifest["precision"]["evidence"].endswith("synthetic samples and 10 rows of t.txt")
