"""Engines whose profile shapes follow from other dimensions, and of several dimensions that count rows."""

from __future__ import annotations

from pathlib import Path

import bertc


def test_a_step_with_a_stack_of_caches_and_an_empty_one(tmp_path: Path) -> None:
    options = {"targets": ["tensorrt-rtx:sm89"], "precision": "fp16", "profiles": ["batch=1:2:4,past=0:16:64"]}
    (artifact,) = bertc.build("steps:from_nothing", tmp_path / "out", **options)
    assert [str(each["past"]) for each in artifact.profiles] == ["0:16:64"]
    assert artifact.inputs[1].dims == ("batch", "past + 1")
    assert artifact.manifest["engine"]["kernels"]["count"] > 0
    assert not [text for text in artifact.manifest["engine"]["warnings"] if "profile" in text.lower()]


def test_a_ranker_of_queries_and_candidates(tmp_path: Path) -> None:
    (artifact,) = bertc.build("steps:ranker", tmp_path / "out", targets=["tensorrt-rtx:sm89"], precision="fp16")
    assert {name: str(each) for name, each in artifact.profiles[0].items()} == {
        "queries": "1:8:32",
        "candidates": "1:8:32",
        "length": "1:128:512",
    }
