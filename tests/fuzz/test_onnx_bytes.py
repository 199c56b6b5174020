"""Bytes of .onnx files changed at random, as long as one likes: `make fuzz SECONDS=600` (FUZZ_SEED=1 for another first seed).

Each try is a process of its own, cut from this one: what ends a process in ONNX Runtime is a failure with its file kept, not the
end of the run.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import rule
import test_onnx_files as files
from onnx import numpy_helper

from bertc import cli

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))
FIRST = int(os.environ.get("FUZZ_SEED", 1))
FEW = 20  # tries of each kind where no time is given
BROKEN = 90


def short_loop() -> onnx.ModelProto:
    """Of 8 rounds at most: that one of 2^63 - 1 ends is decided by what it computes, which no check of a file can tell."""
    made = files.loop("true", files.node("Less", "i five", "on"))
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(8), "most"))
    return made


KINDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a weight": lambda: files.weighted(lambda _: None),
    "a loop": short_loop,
    "4 bits": files.in_four_bits,
    "functions": lambda: files.bomb(3),
    "constants": lambda: files.from_constants("Expand", {"v": np.ones(1, np.float32), "s": np.array([40])}),
}


def changed(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made[: chance.randrange(len(made))] if chance.random() < 0.1 else made)


def ended(child: int) -> int:
    """The exit code of a process; one that hangs in code that hears no alarm is killed."""
    end = time.monotonic() + 3 * rule.SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def attempt(data: bytes, folder: Path) -> int:
    """The exit code of `bertc fuse` in a process of its own; BROKEN where the rule does not hold, negative for a signal."""
    path, out = folder / "hostile.onnx", folder / "out" / "fused.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    path.write_bytes(data)
    child = os.fork()
    if child:
        return ended(child)
    code = BROKEN
    try:
        code = rule.obey(["fuse", str(path), "-o", str(out), "--no-prove"], path, out)
    except BaseException:  # noqa: BLE001 - the child ends here in any case
        traceback.print_exc(file=sys.stderr)
    os._exit(code)


def test_changed_bytes_of_every_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    chance, end, counts, kept = random.Random(FIRST), time.monotonic() + SECONDS, Counter[tuple[str, int]](), []
    bases = {kind: make().SerializeToString() for kind, make in KINDS.items()}
    warm = tmp_path / "warm.onnx"  # imports, once for all tries
    warm.write_bytes(bases["a weight"])
    assert cli.run(["fuse", str(warm), "-o", str(tmp_path / "warm-fused.onnx"), "--no-prove"]) == 0
    tries = 0
    while time.monotonic() < end if SECONDS else tries < FEW * len(KINDS):
        kind = list(KINDS)[tries % len(KINDS)]
        data = changed(bases[kind], chance)
        code = attempt(data, tmp_path / "try")
        counts[kind, code] += 1
        if code not in rule.DOCUMENTED:
            kept.append(tmp_path / f"failed-{tries}-{code}.onnx")
            kept[-1].write_bytes(data)
        tries += 1
    with capfd.disabled():
        for kind in KINDS:
            codes = {code: count for (of, code), count in sorted(counts.items()) if of == kind}
            failures = sum(count for code, count in codes.items() if code not in rule.DOCUMENTED)
            print(f"\n.onnx, {kind}: {sum(codes.values())} tried, {failures} failed, exit codes {codes}", end="")  # noqa: T201
    assert tries >= FEW and not kept, f"{len(kept)} of {tries} failed; their files: {[str(path) for path in kept[:5]]}"
