"""A build on a small machine: it works without a home, /dev/shm or more than 64 files, and says what memory it lacks.

More of them, and engines of TensorRT-RTX: `python -m benchmarks hardening`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

if sys.platform != "linux":
    pytest.skip("limits of processes are those of Linux", allow_module_level=True)
from benchmarks import limits


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("small")
    return [
        "build",
        str(tiny.encoder(folder / "m.onnx")),
        "--fp32",
        "--target",
        "onnxruntime",
        "--force",
        "-o",
        str(folder / "out"),
    ]


def test_everything_scarce_at_once(words: list[str], tmp_path: Path) -> None:
    """All but memory: each by itself is in the benchmark."""
    found = {each.name: each for each in limits.all_limits(tmp_path)}
    environment = {key: value for each in found.values() for key, value in each.environment.items()}
    around = [word for each in found.values() for word in each.around]
    code, said = limits.run(words, limits.Limit("all", environment, found["64 open files"].before, around))
    assert code == 0 and "engine: verified" in said, said


def test_too_little_memory_is_told_as_such(words: list[str], tmp_path: Path) -> None:
    """What is reserved need not be used: with some less than the most, a build may still succeed. A library may end the process
    itself (std::terminate in a thread of ONNX Runtime): of a few tries, not of most."""
    code, said, needed = limits.run_later(words, tmp_path, 2**40)
    assert code == 0 and needed > 2**20, said
    ends = [limits.run_later(words, tmp_path, int(share * needed))[:2] for share in (0.0, 0.1, 0.25, 0.45, 0.65, 0.9)]
    assert [wrong for code, said in ends if code >= 0 for wrong in limits.wrong_end(code, said)] == []
    assert ends[0][0] == 3 and sum(code < 0 for code, _ in ends) <= 2
