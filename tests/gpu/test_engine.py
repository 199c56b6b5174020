"""What only a GPU can show: the engine itself runs, and is as close to its source as its typed graph is."""

from __future__ import annotations

from pathlib import Path

import pytest

import bertc
from bertc import targets


@pytest.mark.parametrize("name", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_engine_runs_and_is_within_budget(name: str, precision: str, minilm: Path, texts: Path, tmp_path: Path) -> None:
    ready = targets.get(name).available()
    if not (ready.build and ready.run):
        pytest.skip(f"{name} cannot build and run here: {ready.reason}")
    bertc.build(minilm, tmp_path / "out", targets=[name], precision=precision)
    (verdict,) = bertc.verify(tmp_path / "out", data=texts, against=str(minilm), require_engine=True)
    assert verdict.engine_executed
    assert verdict.passed, verdict.reasons()
    runner = bertc.load(tmp_path / "out")
    embeddings = runner.run(runner.encode(["a text", "another"]))["sentence_embedding"]
    assert embeddings.shape == (2, 384)
