"""Random encoders, as given in ONNX Runtime against what bertc makes of them: the fused file and every target's graph.

Half a minute with a fixed seed in CI; by hand as long as one likes: `make fuzz SECONDS=600`. What fails is described by what
differs from the plainest encoder: `Encoder(mask='where 0', opset=11)`, to be tried again with `check(Encoder(...), folder)`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import encoder_files
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, seed, settings
from random_encoders import Encoder, encoders

from bertc import targets
from bertc.core import BertcError, NotFused
from bertc.fusions import engine, file
from bertc.graph import Graph
from bertc.ops import expand
from bertc.runtime import ReferenceRunner, reference_options
from bertc.source import open_source

TOLERANCE = 1e-5  # of the largest number of an output: float32 sums in another order
# A model whose outputs move by more than this when its weights move to their neighbours says nothing about 1e-5.
NUDGED = TOLERANCE / 4
EXAMPLES = 12
SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
FIRST = int(os.environ.get("FUZZ_SEED", 1))
ROUND = 50
TARGETS = ("null", "onnxruntime", "tensorrt-rtx")
# Refusals (exit 2) that a random encoder may get: words of the message, and why it is right.
ALLOWED: dict[str, str] = {}

# What was found, and mended.
FOUND = {
    "the mask is read inside a branch": Encoder(control="if attention"),
    "weights of under 1 kB, cut from larger ones when they are read": Encoder(apart=True),
    "a mask of floats": Encoder(mask_type="float32"),
    "padded queries that attend to nothing, beside -10000": Encoder(mask_low="-1e4", mask_view="outer"),
    "-10000 in the place of masked scores": Encoder(mask="where scores", mask_low="-1e4"),
    "attention of one head without a dimension of heads": Encoder(heads_form="3-D", heads=1, mask="none"),
    "a name that the opset converter gives twice": Encoder(opset=12, control="if in loop"),
}

tried: Counter[str] = Counter()


def check(choices: Encoder, folder: Path) -> None:
    """Raises AssertionError for a wrong number, and whatever bertc raises that is not ALLOWED."""
    path, fused = folder / "m.onnx", folder / "fused.onnx"
    model = encoder_files.model_of(choices)
    onnx.save(model, path)
    cases = answers(opened(path), choices)
    moved = answers(opened(encoder_files.nudged(model).SerializeToString()), choices)
    if any(distance(case, other) > NUDGED for case, other in zip(cases, moved, strict=True)):
        tried["too sensitive to rounding"] += 1
        return
    try:
        file.fuse_file(path, fused, force=True, prove=True, rules_file=None)
        graphs = lowered(path)
    except BertcError as error:
        if error.exit_code != 2 or not any(words in str(error) for words in ALLOWED):
            raise
        tried["refused"] += 1
        return
    for case, got in zip(cases, answers(opened(fused), choices), strict=True):
        compare("fuse", case, got.outputs)
    for target, graph in graphs.items():
        runner = ReferenceRunner(graph)
        for case in cases:
            compare(target, case, runner.run(case.feeds))


@dataclasses.dataclass(frozen=True)
class Case:
    shape: tuple[int, int, str]
    feeds: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    unread: np.ndarray | None = None  # [rows, length]: padding that the file itself rounds


def opened(model: Path | bytes) -> onnxruntime.InferenceSession:
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, reference_options(), providers=["CPUExecutionProvider"])


def answers(session: onnxruntime.InferenceSession, choices: Encoder) -> list[Case]:
    inputs, outputs = ([entry.name for entry in side] for side in (session.get_inputs(), session.get_outputs()))
    found = []
    for shape in encoder_files.SHAPES:
        every = encoder_files.feeds(choices, *shape)
        fed = {name: every[name] for name in inputs}
        padding = every["attention_mask"].reshape(shape[:2]) == 0 if choices.rounds_padding else None
        found.append(Case(shape, fed, dict(zip(outputs, session.run(outputs, fed), strict=True)), padding))
    return found


def lowered(path: Path) -> dict[str, Graph]:
    """The graph that each target's compiler gets in float32, made as a build makes it."""
    source = open_source(str(path))
    tables = {name: targets.lowerings(targets.parse_spec(name)) for name in TARGETS}
    try:
        fused = engine.fuse(source.graph, source.dims, lowerings=tables).graph
    except NotFused:
        fused = source.graph
    found = {"canonical": expand(fused)}
    for name in TARGETS:
        target = targets.get(name)
        found[name] = target.lower(fused if target.FUSES else source.graph)
    return found


def compare(what: str, case: Case, got: Mapping[str, np.ndarray]) -> None:
    where = f"{what} at {case.shape}"
    assert case.outputs.keys() == got.keys(), f"{where}: outputs {sorted(got)}, not {sorted(case.outputs)}"
    for name, right in case.outputs.items():
        assert got[name].shape == right.shape, f"{where}: {name} is {got[name].shape}, not {right.shape}"
        lost = np.isfinite(right) & ~np.isfinite(got[name])
        assert not lost.any(), f"{where}: {name} is not finite"
    error = distance(case, Case(case.shape, case.feeds, dict(got)))
    assert error <= TOLERANCE, f"{where}: off by {error:.1e}"


def distance(case: Case, other: Case) -> float:
    """The largest error of an output, of its largest number. A row without a token is nobody's, as long as it is a number."""
    errors = [0.0]
    for name, right in case.outputs.items():
        mine = other.outputs[name]
        if case.unread is not None and right.ndim == 3:
            mine, right = (np.where(case.unread[..., None], np.float32(0), each) for each in (mine, right))
        if case.shape[2] == "dead":
            mine, right = (np.delete(each, encoder_files.DEAD, axis=0) for each in (mine, right))
        errors.append(float(np.abs(mine - right).max() / max(float(np.abs(right).max()), 1e-30)))
    return max(errors) if not np.isnan(errors).any() else float("inf")


def attempt(choices: Encoder) -> None:
    tried["models"] += 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            check(choices, Path(folder))
    except Exception as error:
        tried["failures"] += 1
        if SECONDS:
            print(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}\n    {choices!r}", file=sys.stderr, flush=True)  # noqa: T201
        raise


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found(found: str, tmp_path: Path) -> None:
    before = tried["too sensitive to rounding"] + tried["refused"]
    check(FOUND[found], tmp_path)
    assert tried["too sensitive to rounding"] + tried["refused"] == before, "it was not compared"


QUIET: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.skipif(SECONDS > 0, reason="FUZZ_SECONDS asks for the long run")
def test_half_a_minute_of_encoders() -> None:
    settings(max_examples=EXAMPLES, derandomize=True, **QUIET)(given(encoders())(attempt))()
    assert tried["failures"] == 0 and tried["models"] >= EXAMPLES
    assert tried["refused"] + tried["too sensitive to rounding"] <= tried["models"] / 3, tried


@pytest.mark.skipif(not SECONDS, reason="make fuzz SECONDS=600")
def test_as_long_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Rounds of other seeds, each of which ends at its first failure, made small."""
    failed, end, number = [], time.monotonic() + SECONDS, FIRST
    with capsys.disabled():
        while time.monotonic() < end:
            try:
                seed(number)(settings(max_examples=ROUND, **QUIET)(given(encoders())(attempt)))()
            except Exception as error:  # noqa: BLE001 - each is told at the end
                failed.append(f"seed {number}: {type(error).__name__}: {error} {getattr(error, '__notes__', '')}")
            number += 1
        print(f"\nseeds {FIRST} to {number - 1}: {dict(tried)}")  # noqa: T201
    assert not failed, "\n".join(failed)
