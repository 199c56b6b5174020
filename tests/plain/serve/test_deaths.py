"""What is remembered of requests that ended their workers: what they held, for a while, and not more than so many."""

from __future__ import annotations

import numpy as np
import pytest

from bertc.serve import deaths

ROW = {"input_ids": np.array([[1, 2]]), "attention_mask": np.ones((1, 2), np.int64)}


def test_a_row_is_known_by_all_that_it_holds() -> None:
    known = deaths.Deadly()
    assert not known.holds("m", ROW, 0)
    known.add("m", ROW, 0)
    assert known.holds("m", {name: array.copy() for name, array in reversed(ROW.items())}, deaths.REMEMBERED)
    others = (
        ROW | {"input_ids": np.array([[1, 3]])},
        ROW | {"input_ids": np.array([[1], [2]])},
        ROW | {"input_ids": np.array([[1, 2]], np.int32)},
        {"input_ids": ROW["attention_mask"], "attention_mask": ROW["input_ids"]},
    )
    assert not any(known.holds("m", row, 0) for row in others) and not known.holds("n", ROW, 0)
    assert not known.holds("m", ROW, deaths.REMEMBERED + 1), "it is tried again after a while"


def test_no_more_than_so_many_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "MOST", 3)
    known = deaths.Deadly()
    rows = [ROW | {"input_ids": np.array([[n, n]])} for n in range(5)]
    for row in rows:
        known.add("m", row, 0)
    assert [known.holds("m", row, 0) for row in rows] == [False, False, True, True, True]


def test_ends_are_counted_within_a_minute_and_told_by_their_signal() -> None:
    recent = deaths.Recent()
    assert [recent.count(at) for at in (0, 30, 59, 61, 200)] == [1, 2, 3, 3, 1]
    assert deaths.reason(-8) == "by SIGFPE" and deaths.reason(3) == "exit 3" and deaths.reason(-99) == "exit -99"
