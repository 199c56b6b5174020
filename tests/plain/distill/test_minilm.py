"""Real weights and real text: half of MiniLM's layers, a few steps."""

from __future__ import annotations

from pathlib import Path

import distilling

from bertc.distill import Request, Settings, distill


def test_minilm_learns_in_seconds(texts: Path, tmp_path: Path) -> None:
    settings = Settings(layers=3, max_length=16, batch=8, epochs=3.0, evaluations=2)
    made = distill(Request(("minilm",), texts), tmp_path / "student", settings).document
    untrained, trained = (distilling.value(made, which, "mean cosine") for which in ("untrained", "student"))
    assert untrained < 0.6 and trained > untrained + 0.05
    assert made["shape"]["student"]["layers"] == 3 and made["layers"] == [1, 3, 5]
