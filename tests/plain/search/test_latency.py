"""A search under a latency, whole: every number is a time of this machine, so it takes minutes. `make training` runs it."""

from __future__ import annotations

import json
import os
import re

import distilling
import pytest

from bertc.core import InputError
from bertc.search import Request, search

QUICK = {"multiple": 32, "threads": 1, "steps": 6, "finish": 6, "batch": 16, "precisions": ("fp32",)}


@pytest.mark.skipif(not os.environ.get("BERTC_TRAINING"), reason="measures engines for minutes: make training")
def test_half_way_between_the_fastest_student_and_the_model(tmp_path) -> None:
    """Times are this machine's: the limit is what the two refusals say, and what was chosen was measured to keep it."""
    given = {**QUICK, "uniform": True, "shape": "8x32", "trials": 10, "finalists": 2}
    model, texts = str(distilling.teacher()), distilling.text_file(tmp_path / "texts.txt")
    ends = []
    for limit, words in (("0.0001ms", "the smallest student, .*"), ("10000ms", "the model itself")):
        words += r" is ([\d.]+) ms"
        with pytest.raises(InputError, match=words) as refused:
            search(Request(model, texts, latency=limit, **given), tmp_path / "out")
        ends.append(float(re.search(words, str(refused.value))[1]))
    least, whole = ends
    assert 0 < least < whole
    limit = (least + whole) / 2
    found = search(Request(model, texts, latency=f"{limit:.4f}ms", **given), tmp_path / "out")
    document = json.loads((found.path / "search.json").read_text("utf-8"))
    chosen = document["chosen"]
    assert 0 < chosen["measured"]["milliseconds"] <= limit < document["original"]["milliseconds"]
    assert chosen["error"] == pytest.approx(chosen["measured"]["milliseconds"] / chosen["table"]["milliseconds"] - 1, abs=0.01)
    assert all(each["within"] == (each["milliseconds"] <= limit) for each in document["trials"])
