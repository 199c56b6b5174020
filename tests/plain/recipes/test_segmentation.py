"""segmentation: words, letters and the coarse granularity are what they say, and it learns and builds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

for each in ("torch", "snownlp", "jieba"):
    pytest.importorskip(each, reason=f"segmentation needs {each}: pip install 'bertc[export,systems]'")

from bertc.recipes.systems import running, system  # noqa: E402
from bertc.recipes.systems.segmentation import data, judging, training  # noqa: E402


def letters(text: str) -> np.ndarray:
    return np.array([data.LETTERS.index(each) for each in text])


def test_names_dates_and_measures_are_one_coarse_word_and_others_are_not() -> None:
    pairs = [
        ("江", "nr"),
        ("泽民", "nr"),
        ("１２月", "t"),
        ("３１日", "t"),
        ("发表", "v"),
        ("讲话", "n"),
        ("1", "m"),
        ("张", "q"),
    ]
    assert data.merged(pairs) == ("江泽民", "１２月３１日", "发表", "讲话", "1张")
    assert data.merged([("张", "q"), ("1", "m"), ("人民", "n"), ("广播", "n")]) == ("张", "1", "人民", "广播")


def test_letters_say_the_words_and_words_come_back() -> None:
    sentence = data.Sentence(("中共中央", "总书记", "、", "国家"), ("中共中央总书记", "、", "国家"))
    assert sentence.letters("fine") == letters("BMMEBMESBE").tolist()
    assert judging.words(letters("BMMEBMESBE")) == {(0, 4), (4, 7), (7, 8), (8, 10)}
    assert judging.words(letters("MMBB")) == {(0, 2), (2, 3), (3, 4)}  # what no word is spelled as is cut all the same


def test_f1_counts_words_whose_ends_are_both_right() -> None:
    gold = np.full((1, 6), -100)
    gold[0, 1:5] = letters("BEBE")
    test = {f"{tag}.{name}": np.zeros((1, 6), np.int64) for tag in data.GRANULARITIES for name in judging.INPUTS}
    test |= {f"{tag}.letters": gold for tag in data.GRANULARITIES}
    given = np.eye(4)[np.concatenate([[0], letters("BESS"), [0]])][None]
    assert judging.scores(lambda _: given, test)["fine"] == pytest.approx(2 * 1 / (3 + 2))


def test_a_tag_stands_first_and_pairs_lie_beside_both_characters() -> None:
    known = data.Vocabulary(("中", "国", "家"), ("中国", "国家"))
    rows = training.rows_of([data.Sentence(("中国", "家"), ("中国家",))], known, "coarse", "coarse")
    assert rows["input_ids"][0].tolist() == [3, 4, 5, 6]
    assert rows["bigrams"][0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 0]]
    assert rows["letters"][0].tolist() == [training.IGNORED, *letters("BME")]


def test_lines_that_judge_are_others_and_both_granularities_spell_one_text() -> None:
    learned, judged = data.read(0)
    assert not {each.text for each in learned} & {each.text for each in judged}
    assert all("".join(each.fine) == "".join(each.coarse) for each in judged)
    assert max(len(each.text) for each in learned) <= data.LONGEST
    assert 0.05 < np.mean([each.fine != each.coarse for each in judged]) < 0.95


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="trains and builds for minutes: make training")
def test_it_learns_and_builds(tmp_path: Path) -> None:
    budget = running.Budget(quick=True)
    found = running.run(
        system("segmentation"), tmp_path, budget, targets=["onnxruntime"], precisions=["fp32"], say=lambda _: None
    )
    metrics = found["metrics"]["fp32"]
    assert not found["misses"]
    for tag in data.GRANULARITIES:
        assert metrics[f"F1, {tag}"] > metrics[f"baseline a word a character, {tag}"] + 0.25
    assert found["rows"][0]["fused"]["attention"] == 3
