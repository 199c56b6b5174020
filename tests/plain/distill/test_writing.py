"""What is written is what was judged, and nothing else that lay in the teacher's folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import distilling
import models
import numpy as np
import pytest

from bertc.distill import Request, Settings, distill
from bertc.verification import intervals

SETTINGS = Settings(**{**distilling.QUICK, "steps": 20})


def written(teacher: Path, folder: Path, out: Path, **changes) -> dict:
    data = distilling.text_file(folder / "texts.txt")
    return distill(Request((str(teacher),), data), out, dataclasses.replace(SETTINGS, **changes)).document


def vectors_of(path: Path, texts: list[str]) -> np.ndarray:
    import sentence_transformers

    found = sentence_transformers.SentenceTransformer(str(path), device="cpu").encode(texts).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("after", [["Normalize"], ["Dense"], ["LayerNorm", "Dense"]])
@pytest.mark.parametrize("width", [None, 16])
def test_sentence_transformers_gives_the_vectors_that_were_judged(tmp_path: Path, after: list[str], width: int | None) -> None:
    from bertc.distill import read_texts

    teacher = models.sentence_transformer(tmp_path / "t", {"pooling_mode_mean_tokens": True}, after, distilling.encoder())
    made = written(teacher, tmp_path, tmp_path / "s", width=width)
    held_out = [str(each.text) for each in read_texts(tmp_path / "texts.txt", None, SETTINGS.held_out).held_out]
    one, other = vectors_of(tmp_path / "s", held_out), vectors_of(teacher, held_out)
    cosines = (one * other).sum(1)
    assert distilling.value(made, "student", "mean cosine") == pytest.approx(cosines.mean(), abs=1e-5)
    near = [(each @ each.T - 9 * np.eye(len(each))).argmax(1) for each in (one, other)]
    assert distilling.value(made, "student", "neighbour kept") == pytest.approx((near[0] == near[1]).mean())
    assert len(held_out) < intervals.MIN_ROWS and made["quality"]["student"][0]["low"] is None


def test_other_folders_in_the_teachers_do_not_travel(tmp_path: Path) -> None:
    teacher = distilling.copy_of(distilling.teacher(), tmp_path / "t")
    (teacher / "older").mkdir()
    (teacher / "older" / "notes.txt").write_text("mine")
    written(teacher, tmp_path, teacher / "student")
    assert {each.name for each in (teacher / "student").iterdir() if each.is_dir()} <= {"1_Pooling", "2_Normalize"}
    assert json.loads((teacher / "student" / "modules.json").read_text())[1]["path"] == "1_Pooling"
