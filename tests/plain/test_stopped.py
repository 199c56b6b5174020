"""Builds that are stopped anywhere, that meet one another, or that a reader meets: one whole artifact, nothing half beside it.

A few moments of each kind; all of them: `python -m benchmarks hardening`. The chosen moments are in test_killed.py.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import tiny

from benchmarks import full_disk, stopping
from bertc.artifact import read_in_place
from bertc.core import ArtifactError

OLD = ("--target", "null=bf16", "--target", "onnxruntime=fp16")
NEW = ("--target", "onnxruntime=fp32", "--target", "onnxruntime=int8-weights")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> stopping.Case:
    folder = tmp_path_factory.mktemp("stopped")
    model = str(tiny.encoder(folder / "m.onnx"))
    return stopping.case(folder, (model, *OLD), (model, *NEW))


@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 4), (signal.SIGINT, 3)], ids=["SIGKILL", "SIGINT"])
def test_stopped_at_random_moments(number: signal.Signals, count: int, made: stopping.Case) -> None:
    for at, moment in enumerate(stopping.moments(count, made)):
        outcome = stopping.stopped_at(moment, number, made, existing=at % 2 == 0)
        assert outcome.wrong == (), f"{number.name} after {moment:.2f} s"


def test_a_disk_that_is_full_at_some_write(made: stopping.Case) -> None:
    if reason := full_disk.why_not():
        pytest.skip(reason)
    words = ["build", *made.new, "-o", str(made.out), "--force"]
    with contextlib.closing(full_disk.Disk(made.out.parent, words, made.temporary)) as disk:
        made.start_over(existing=True)
        code, writes, said = disk.run(-1)
        assert code == 0 and writes > 20, said
        for write in random.Random(0).sample(range(1, writes), 6):
            assert stopping.full_at(write, disk, made, existing=True).wrong == (), f"write {write} of {writes}"


@pytest.mark.parametrize("force", [False, True], ids=["", "--force"])
def test_two_builds_of_one_output_at_once(force: bool, made: stopping.Case) -> None:
    assert stopping.at_once(made, force, 0).wrong == ()


def test_verify_while_builds_replace_what_it_reads(made: stopping.Case) -> None:
    tries, wrong = stopping.verified_meanwhile(made, 2)
    assert wrong == [] and tries >= 2


def test_a_mix_of_two_builds_would_be_seen(made: stopping.Case) -> None:
    """So the checks above can fail."""
    made.start_over(existing=True)
    (made.out / "null-bf16").rename(made.out / "moved")
    assert made.found() == "a mix of two builds"
    (made.out / "moved" / "graph.onnx").write_bytes(b"")
    assert "graph.onnx differs" in made.found()


def test_what_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    answers = iter((1, ArtifactError("gone"), 3))

    def replaced() -> int:
        answer = next(answers)
        (tmp_path / "out").rename(tmp_path / str(answer))
        if not isinstance(answer, int):
            (tmp_path / "out").mkdir()
            raise answer
        (tmp_path / "out").mkdir()
        return answer

    with pytest.raises(ArtifactError, match="replaced 3 times"):
        read_in_place(tmp_path / "out", replaced)
    assert len(os.listdir(tmp_path)) == 4
    with pytest.raises(ArtifactError, match="my own"):
        read_in_place(tmp_path / "out", lambda: (_ for _ in ()).throw(ArtifactError("my own")))
    assert read_in_place(tmp_path / "out", threading.active_count) >= 1
