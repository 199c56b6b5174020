"""Hardening: kills, full disks, other surroundings, small machines

`bertc build` of a BERT of 2 layers for ONNX Runtime (fp32) and TensorRT-RTX (fp16, in a process of its own), over an artifact of
two other targets or with nothing there. A try is kept where all of this holds: the exit code and the last line are the documented
ones, the output is the old build or the new one in every byte (or nothing, where nothing was), no process lives on, and the next
build leaves nothing beside its output and no temporary files. "TensorRT's process": the n-th write of the process that compiles,
each up to the hundredth and then 2 % further each time. A swap of two folders that fails is done in two renames: the new build.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from . import full_disk, limits, same_bytes, stopping
from .bench_fleet import TINY
from .fleet_processes import writers
from .tools import table

OLD = ("--target", "null=bf16", "--target", "onnxruntime=fp16")
NEW = ("--target", "onnxruntime=fp32", "--target", "tensorrt-rtx:sm89=fp16")
TARGETS = (
    "onnxruntime=fp32", "onnxruntime=fp16", "onnxruntime=int8-dynamic", "onnxruntime=int8-weights", "onnxruntime-cuda=fp32",
    "onnxruntime-cuda=fp16", "tensorrt-rtx:sm89=fp16",
)  # fmt: skip
# HARDENING_EVERY=5: a fifth of the tries, where the machine has other things to do.
EVERY = max(1, int(os.environ.get("HARDENING_EVERY", "1")))
KILLS, INTERRUPTS, MEETINGS, REPLACEMENTS = (max(2, count // EVERY) for count in (50, 20, 10, 10))
WRITERS, ENTRIES, KILLED_WRITERS = 8, 300, 4
SHARES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9)[::EVERY]
TESTS = Path(__file__).parent.parent / "tests"
# What the tests count themselves: a line `hardening: KIND: COUNT ...` on stdout.
COUNTED = "hardening: "
Row = list[str]


def run() -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-c", TINY, str(folder / "checkpoint")], check=True, capture_output=True)
        source = str(folder / "export")
        subprocess.run(
            [sys.executable, "-m", "bertc", "export", str(folder / "checkpoint"), "-o", source], check=True, capture_output=True
        )
        (folder / "case").mkdir()
        made = stopping.case(folder / "case", (source, *OLD), (source, *NEW))
        parts = (stopped, full, met, many_writers)
        rows = []
        for part in parts:
            rows += part(made)
            print(rows[-1], flush=True)
        rows += [*small(folder, source), *counted()]
        bytes_ = surroundings(folder)
    return f"{table(['what', 'tried', 'kept', 'found at the output'], rows)}\n\n{bytes_}"


def row(what: str, outcomes: Iterable[stopping.Outcome]) -> Row:
    """Faults are printed as they come: the table says only how many."""
    each = list(outcomes)
    for outcome in each:
        for wrong in outcome.wrong:
            print(f"FAULT: {what}: {wrong}", flush=True)
    found = ", ".join(f"{name} {count}" for name, count in Counter(outcome.found for outcome in each).most_common())
    return [what, str(len(each)), str(sum(not outcome.wrong for outcome in each)), found]


def stopped(made: stopping.Case) -> list[Row]:
    rows = []
    for number, count, what in ((signal.SIGKILL, KILLS, "SIGKILL"), (signal.SIGINT, INTERRUPTS, "Ctrl-C")):
        moments = enumerate(stopping.moments(count, made))
        outcomes = (stopping.stopped_at(moment, number, made, existing=at % 3 > 0) for at, moment in moments)
        rows.append(row(f"{what} at random moments", outcomes))
    return rows


def full(made: stopping.Case) -> list[Row]:
    if reason := full_disk.why_not():
        return [["disk full at each write", "0", "0", reason]]
    words = ["build", *made.new, "-o", str(made.out), "--force"]
    # The folder holds the output and the temporary files of both processes.
    with contextlib.closing(full_disk.Disk(made.folder, words, made.temporary)) as disk:
        made.start_over(existing=True)
        code, writes, said = disk.run(-1)
        if code:
            raise RuntimeError(said)
        every = (stopping.full_at(n, disk, made, existing=n % 2 == 0) for n in range(1, writes + 1, EVERY))
        own = row(f"disk full at {'each' if EVERY == 1 else f'each {EVERY}th'} of {writes} writes", every)
        theirs = row("the same of TensorRT's process, some of its writes", until_done(disk, made))
    return [own, theirs]


def until_done(disk: full_disk.Disk, made: stopping.Case) -> Iterable[stopping.Outcome]:
    """The first writes of the process that compiles, then ever fewer of them, until it has no more."""
    write = 1
    while (outcome := stopping.full_at(write, disk, made, existing=True, compiler=True)).found != stopping.UNREACHED:
        yield outcome
        write += max(EVERY, write // 50)


def met(made: stopping.Case) -> list[Row]:
    rows = []
    for force, what in ((False, "two builds of one output at once: one is refused"), (True, "the same with --force")):
        gaps = [at / MEETINGS * made.seconds for at in range(MEETINGS)]
        rows.append(row(what, (stopping.at_once(made, force, gap) for gap in gaps)))
    tries, wrong = stopping.verified_meanwhile(made, REPLACEMENTS)
    for each in wrong:
        print(f"FAULT: verify: {each}", flush=True)
    return [*rows, [f"`verify` while {REPLACEMENTS} builds replace the artifact", str(tries), str(tries - len(wrong)), ""]]


def many_writers(made: stopping.Case) -> list[Row]:
    """Half of the writers of a fleet's store are killed while they write; the others, and one more, end with all entries."""
    from bertc.fleet import store_cleaning as cleaning
    from bertc.fleet.store import Store

    place = made.folder / "store"
    running = writers(place, WRITERS, ENTRIES)
    for process in running:
        assert process.stdout is not None
        process.stdout.readline()  # it is about to write
    for process in running[:KILLED_WRITERS]:
        time.sleep(0.3)
        process.kill()
    failed = sum(process.wait() != 0 for process in running[KILLED_WRITERS:])
    (last,) = writers(place, 1, ENTRIES)
    failed += last.wait() != 0
    store = Store(place)
    store.sweep()  # as a fleet's next build does
    lost, damaged = ENTRIES - len(store.finished()), len(list(cleaning.damaged_stages(store)))
    left = [name for name in os.listdir(place / "tmp") if not name.endswith(".lock")]
    told = f"failed {failed}, lost {lost}, damaged {damaged}, left over {len(left)}"
    kept = ENTRIES - lost - damaged if not failed and not left else 0
    return [[f"{WRITERS} writers of one store, {KILLED_WRITERS} killed: entries", str(ENTRIES), str(kept), told]]


def small(folder: Path, source: str) -> list[Row]:
    words = ["build", source, *NEW, "--force", "-o", str(folder / "small")]
    rows = []
    for limit in limits.all_limits(folder):
        code, said = limits.run(words, limit)
        rows.append(row(f"build with {limit.name}", [stopping.Outcome("new", () if code == 0 else (said[-500:],))]))
    needed = limits.needed(words, folder)
    sizes = [needed - 2**30, *(int(share * needed) for share in SHARES)]
    ends = [limits.run(words, limits.less_memory(size)) for size in sizes if size > 0]
    told = [stopping.Outcome("built" if code == 0 else f"exit code {code}", tuple(limits.wrong_end(code, s))) for code, s in ends]
    return [*rows, row(f"less memory than the {needed / 2**20:.0f} MiB (of addresses) that it takes", told)]


def surroundings(folder: Path) -> str:
    """The same build in other surroundings: the PyTorch checkpoint for all targets that need no GPU."""
    words = [str(folder / "checkpoint"), *(word for target in TARGETS for word in ("--target", target))]
    first = same_bytes.build(words, folder / "as-here", same_bytes.Surroundings("as here"), folder)
    files = sum(path.is_file() for path in first.rglob("*"))
    rows = []
    for at, around in enumerate(same_bytes.all_surroundings(folder)):
        other = same_bytes.build(words, folder / f"around-{at}", around, folder)
        different = same_bytes.differences(first, other)
        rows.append([around.name, str(files), ", ".join(sorted({name.partition("/")[2] for name in different})) or "none"])
    head = f"The same build of {len(TARGETS)} targets ({', '.join(TARGETS)}) in other surroundings:\n\n"
    return head + table(["surroundings", "files", "that differ, but for the times in report.json and report.html"], rows)


def counted() -> list[Row]:
    """Rows of tests that count: `hardening: KIND: COUNT KIND-OF-TRY, ...`, all kept where the tests pass."""
    folders = (TESTS / "plain" / "artifact", TESTS / "fuzz")
    files = [str(p) for folder in folders for p in sorted(folder.glob("test_*.py")) if COUNTED in p.read_text("utf-8")]
    environment = {**os.environ, "BERTC_CRASH_POINTS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-s", *files]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        print(done.stdout[-3000:], flush=True)
    rows: dict[str, tuple[int, str]] = {}
    for kind, count, told in re.findall(r"hardening: ([^:\n]+): (\d+) ?([^\n]*)", done.stdout):
        rows[kind] = (rows.get(kind, (0, ""))[0] + int(count), told.strip())
    result = "all" if done.returncode == 0 else "SOME FAILED"
    return [[f"{kind} ({told.partition(',')[0]})", str(count), result, ""] for kind, (count, told) in rows.items()]
