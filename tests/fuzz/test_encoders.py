"""Random encoders, as given in ONNX Runtime against what bertc makes of them: the fused file and every target's graph.

A minute with a fixed seed in CI; by hand as long as one likes: `make fuzz SECONDS=600`. What fails is described by what differs
from the plainest encoder: `Encoder(mask='where 0', opset=11)`, to be tried again with `check(Encoder(...), folder)`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import encoder_files
import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, Verbosity, given, seed, settings
from random_encoders import Encoder, encoders

from bertc import targets
from bertc.core import BertcError, NotFused
from bertc.fusions import engine, file
from bertc.graph import Graph
from bertc.ops import expand
from bertc.runtime import ReferenceRunner, reference_options
from bertc.source import open_source

TOLERANCE = 1e-5  # of the largest number of an output: float32 sums in another order
EXAMPLES = 40
SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
ROUND = 50
TARGETS = ("null", "onnxruntime", "tensorrt-rtx")
# Refusals (exit 2) that a random encoder may get: words of the message, and why it is right.
ALLOWED: dict[str, str] = {}

tried: Counter[str] = Counter()


def check(choices: Encoder, folder: Path) -> None:
    """Raises AssertionError for a wrong number or an unknown refusal; what is no BertcError goes through."""
    path, fused = folder / "m.onnx", folder / "fused.onnx"
    onnx.save(encoder_files.model_of(choices), path)
    session = onnxruntime.InferenceSession(str(path), reference_options(), providers=["CPUExecutionProvider"])
    names, cases = {entry.name for entry in session.get_inputs()}, []
    for shape in encoder_files.SHAPES:
        fed = {name: array for name, array in encoder_files.feeds(choices, *shape).items() if name in names}
        cases.append((shape, fed, dict(zip([o.name for o in session.get_outputs()], session.run(None, fed), strict=True))))
    try:
        file.fuse_file(path, fused, force=True, prove=True, rules_file=None)
        graphs = lowered(path)
    except BertcError as error:
        assert error.exit_code == 2 and any(words in str(error) for words in ALLOWED), f"{type(error).__name__}: {error}"
        tried["refused"] += 1
        return
    written = onnxruntime.InferenceSession(str(fused), reference_options(), providers=["CPUExecutionProvider"])
    outputs = [entry.name for entry in written.get_outputs()]
    for shape, fed, wanted in cases:
        compare("fuse", shape, wanted, dict(zip(outputs, written.run(None, fed), strict=True)))
    for target, graph in graphs.items():
        runner = ReferenceRunner(graph)
        for shape, fed, wanted in cases:
            compare(target, shape, wanted, runner.run(fed))


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


def compare(what: str, shape: tuple[int, int, str], wanted: dict[str, Any], got: dict[str, Any]) -> None:
    assert wanted.keys() == got.keys(), f"{what}: outputs {sorted(got)}, not {sorted(wanted)}"
    for name, right in wanted.items():
        mine, right = np.asarray(got[name]), np.asarray(right)
        assert mine.shape == right.shape, f"{what} at {shape}: {name} is {mine.shape}, not {right.shape}"
        lost = np.isfinite(right) & ~np.isfinite(mine)
        assert not lost.any(), f"{what} at {shape}: {name} is not finite"
        if shape[2] == "dead":  # what a row without a token gives is nobody's, as long as it is a number
            mine, right = (np.delete(each, encoder_files.DEAD, axis=0) for each in (mine, right))
        error = float(np.abs(mine - right).max() / max(float(np.abs(right).max()), 1e-30))
        assert error <= TOLERANCE, f"{what} at {shape}: {name} is off by {error:.1e}"


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


QUIET: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "verbosity": Verbosity.normal,
}


@settings(max_examples=EXAMPLES, derandomize=True, **QUIET)
@given(encoders())
def test_a_minute_of_encoders(choices: Encoder) -> None:
    attempt(choices)
