"""What several files of tests look at: reports of a real build, and one with everything a report may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pages
import pytest
import reports
import tiny

Report = dict[str, Any]


@pytest.fixture(scope="session")
def built_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """onnxruntime-fp16 and onnxruntime-fp32."""
    folder = tmp_path_factory.mktemp("page")
    model = tiny.encoder(folder / "m.onnx", tokenizer=True)
    pages.run("build", model, "--target", "onnxruntime=fp16", "--target", "onnxruntime=fp32", "-o", folder / "out")
    return folder / "out"


@pytest.fixture(scope="session")
def plain(built_pages: Path) -> Report:
    return reports.of(built_pages / "onnxruntime-fp16")


@pytest.fixture(scope="session")
def full(plain: Report) -> Report:
    return reports.full(plain)


@pytest.fixture(scope="session")
def whole_fleet(plain: Report, full: Report) -> tuple[Report, list[Report | None]]:
    entry = {"model": "minilm", "target": "tensorrt-rtx:sm89", "precision": "fp16", "gpu": "NVIDIA RTX 6000 Ada Generation"}
    built = entry | {"sm": "sm89", "state": "done", "seconds": 12.25, "bytes": 95_000_001, "kernels": 52, "reason": ""}
    waiting = entry | {"gpu": "H100", "sm": "sm90", "state": "waiting", "reason": "no machine with an H100 has taken it"}
    entries = [
        built,
        built | {"precision": "bf16"},
        built | {"precision": "int8", "kernels": None},
        waiting,
        waiting | {"state": "failed"},
    ]
    return {"lock": 3, "entries": entries}, [plain, full, None, None, None]
