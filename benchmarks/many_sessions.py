"""Sessions of one artifact in one process, held in one of several ways: python -m benchmarks.many_sessions ARTIFACT WAY."""

from __future__ import annotations

import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from bertc.artifact import open_artifact
from bertc.targets import onnxruntime as target

SESSIONS, ROUNDS = 6, 40
SMALL, LARGE = 1024, ((2, 500), (16, 64), (8, 128))


def main(artifact: Path, way: str) -> None:
    found = open_artifact(artifact)
    path = artifact / target.MODEL
    ordinary = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    probe = feeds(found, 3, 40)
    wanted = digest(ordinary.run(None, probe))
    del ordinary
    with tempfile.TemporaryDirectory() as name:
        if way in ("mapped", "chosen"):
            path = Path(name) / "model.onnx"
            target.save_mapped(artifact, found.manifest, path)
        options, kept = prepared(path, way)
        release()
        before = pss()
        start = time.perf_counter()
        sessions = [open_session(path, options)]
        sessions[0].run(None, probe)
        one = pss() - before
        sessions += [open_session(path, options) for _ in range(SESSIONS - 1)]
        seconds = (time.perf_counter() - start) / SESSIONS
        for session in sessions:
            session.run(None, probe)
        more = (pss() - before - one) / (SESSIONS - 1)
        times = [timed(sessions[0], feeds(found, 1, length)) for length in (8, 128)]
        for session in sessions:
            for rows, length in LARGE:
                session.run(None, feeds(found, rows, length))
        release()
        last = pss() - before
        same = "yes" if digest(sessions[-1].run(None, probe)) == wanted else "no"
        given = sum(array.nbytes for array, _ in kept) / 2**20
        print("\t".join([f"{one + given:.0f}", f"{more:.1f}", f"{seconds:.2f}", *times, f"{last + given:.0f}", same]))


def prepared(path: Path, way: str) -> tuple[Any, list[tuple[np.ndarray, Any]]]:
    options, kept = ort.SessionOptions(), []
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = way != "chosen"
    if way == "unpacked":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if way in ("unpacked", "initializers"):
        for tensor in onnx.load(path).graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.nbytes >= SMALL:
                kept.append((array, ort.OrtValue.ortvalue_from_numpy(array)))
                options.add_initializer(tensor.name, kept[-1][1])
    return options, kept


def open_session(path: Path, options: Any) -> Any:
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(found: Any, rows: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows * length)
    made = {"input_ids": rng.integers(1000, 30000, (rows, length)), "attention_mask": np.ones((rows, length), np.int64)}
    return {spec.name: made.get(spec.name, np.zeros((rows, length), np.int64)) for spec in found.inputs}


def timed(session: Any, fed: dict[str, np.ndarray]) -> str:
    """The time of this process on a core: other work on the machine disturbs it less than the clock."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        session.run(None, fed)
        times.append(time.process_time() - start)
    return f"{statistics.median(times) * 1e3:.1f}"


def digest(outputs: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in outputs)).hexdigest()


def pss() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def release() -> None:
    from bertc.serve import memory

    memory.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
