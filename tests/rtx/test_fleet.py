"""A fleet of TensorRT-RTX engines: the bytes of a single build, and what one more GPU model costs."""

from __future__ import annotations

from pathlib import Path

import fleets
import pytest

import bertc
from bertc.core.files import hash_file


def text(*gpus: str) -> str:
    listed = ", ".join(f'"{gpu}"' for gpu in gpus)
    return f'gpus = [{listed}]\nprecisions = ["fp16"]\n'


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fleets.write(tmp_path_factory.mktemp("fleet"), "a", text("l4"))


def test_one_more_gpu_builds_what_no_plan_covers(path: Path) -> None:
    first = fleets.build(path)
    assert set(fleets.states(first).values()) == {"made"}
    fleets.write(path.parent, "a", text("l4", "rtx-4090", "rtx-pro-6000"))
    assert set(fleets.states(fleets.build(path)).values()) == {"cached"}
    fleets.write(path.parent, "a", text("l4", "t4"))
    assert fleets.states(fleets.build(path)) == {
        "a/export": "cached",
        "a/fuse": "cached",
        "a/tensorrt-rtx-fp16": "cached",
        "a/tensorrt-rtx-sm75-fp16": "made",
    }


def test_the_engines_are_those_of_a_single_build(path: Path, tmp_path: Path) -> None:
    fleets.write(path.parent, "a", text("l4", "t4"))
    outcomes, store = fleets.build(path), fleets.opened(path)[1]
    targets = {"a/tensorrt-rtx-fp16": "tensorrt-rtx=fp16", "a/tensorrt-rtx-sm75-fp16": "tensorrt-rtx:sm75=fp16"}
    for slot, target in targets.items():
        alone = tmp_path / target
        bertc.build(path.parent / "a" / "m.onnx", alone, targets=[target])
        for name in ("engine.plan", "graph.onnx", "goldens.npz"):
            assert hash_file(store.folder(str(outcomes[slot].key)) / name) == hash_file(alone / name), (slot, name)
