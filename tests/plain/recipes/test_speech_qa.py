"""speech-qa: its threshold keeps its rate, clips are what they say, and it learns and builds."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

for each in ("torch", "transformers", "chatterbot_corpus", "jiwer"):
    pytest.importorskip(each, reason=f"speech-qa needs {each}: pip install 'bertc[export,metrics,systems]'")

from bertc.core import Missing  # noqa: E402
from bertc.recipes.systems import running, system  # noqa: E402
from bertc.recipes.systems.speech_qa import data, judging  # noqa: E402

spoken = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="speech-qa needs the program espeak-ng")


def test_parts_of_the_questions_share_none() -> None:
    found = data.questions(0)
    parts = [list(found.listed), found.learned, found.validation, found.test]
    assert [len(part) for part in parts] == [40, 120, 40, 40] and len({text for part in parts for text in part}) == 240
    assert all(set(text) <= set(data.LETTERS) for part in parts for text in part)


def test_a_threshold_takes_no_more_of_the_unknown_than_is_wanted() -> None:
    similar = np.random.default_rng(0).random(200).astype(np.float32)
    level = judging.threshold(similar)
    assert int((similar >= level).sum()) == int(judging.WANTED * 200)


def test_letters_and_centres_by_hand() -> None:
    frames = np.array([0, 1, 1, 0, 1, 2, 0])
    assert judging.spelled(frames) == "aab"
    assert judging.letters_right(["abcd"], np.array(["abxd"])) == pytest.approx(0.75)
    found = judging.centres(np.array([[1.0, 0], [0, 1.0], [0, 2.0]]), np.array([0, 1, 1]))
    np.testing.assert_allclose(found, [[1, 0], [0, 1]])


def test_without_the_program_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match="espeak-ng"):
        data.program()


@spoken
def test_clips_are_seeded_and_noise_is_as_loud_as_it_says() -> None:
    first, again = (data.clips(["how are you today"], ("m3",), 2, random.Random(1))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    heard = data.heard(first, np.random.default_rng(0))
    assert heard.shape == (2, data.WINDOW) and heard.std(1) == pytest.approx(1, abs=1e-3)
    assert not np.array_equal(heard, data.heard(first, np.random.default_rng(1)))


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="trains and builds for minutes: make training")
@spoken
def test_it_learns_and_builds(tmp_path: Path) -> None:
    budget = running.Budget(quick=True)
    found = running.run(system("speech-qa"), tmp_path, budget, targets=["onnxruntime"], precisions=["fp32"], say=lambda _: None)
    metrics = found["metrics"]["fp32"]
    assert not found["misses"] and found["rows"][0]["fused"]["attention"] == 2
    assert metrics["right question"] > metrics["baseline untrained, right question"] + 0.2
    assert metrics["letters"] > 0.3
