"""Builds that are stopped, for the benchmark and for the tests: where, how, and what is there afterwards.

Each build is a process of its own, forked from one that has loaded what a build loads: its moments are those of the build, not of
Python's imports.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from bertc.artifact.manifest import find_artifacts, open_artifact
from bertc.core import BertcError, hash_file

from .full_disk import Disk

FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["bertc.cli._main", "bertc.pipeline", "bertc.cli.build", "onnxruntime", "scipy.stats", "onnxscript"]
TIMED = ("report.json", "report.html", "manifest.json")  # hold the times of the build, or the hash of what does
INTERRUPTED = 130
SECONDS = 60


def contents(out: Path) -> dict[str, str]:
    """Every file below a folder by its sha256, but for those that hold times; {} for none there."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in TIMED)
    return {path.relative_to(out).as_posix(): hash_file(path) for path in files}


@dataclasses.dataclass(frozen=True)
class Case:
    """Two builds of one output: what is there first, and what is built over it and stopped."""

    folder: Path
    old: Sequence[str]
    new: Sequence[str]
    known: Mapping[str, Mapping[str, str]]  # the contents of both
    seconds: float  # that the new one takes undisturbed

    @property
    def out(self) -> Path:
        return self.folder / "place" / "out"

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    def start_over(self, existing: bool) -> None:
        """The old artifact alone, or nothing."""
        for each in (self.out.parent, self.temporary):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        if existing:
            shutil.copytree(self.folder / "old", self.out)

    def found(self) -> str:
        """`old`, `new` or `nothing`; anything else says what is wrong."""
        if not self.out.exists():
            return "nothing"
        try:
            for path in find_artifacts(self.out):
                open_artifact(path)
        except BertcError as error:
            return str(error)
        there = contents(self.out)
        return next((name for name, known in self.known.items() if there == known), "a mix of two builds")


def case(folder: Path, old: Sequence[str], new: Sequence[str]) -> Case:
    """`old` and `new`: words of `bertc build` without its output."""
    made = Case(folder, old, new, {}, 0)
    made.start_over(existing=False)
    known, took = {}, []
    for name, words in (("old", old), ("new", new), ("new", new)):
        began = time.perf_counter()
        code, said = ended(begin(made, words))
        took.append(time.perf_counter() - began)
        if code:
            raise RuntimeError(f"bertc build {' '.join(words)} exited with {code}:\n{said}")
        shutil.rmtree(folder / name, ignore_errors=True)
        made.out.rename(folder / name)
        known[name] = contents(folder / name)
    return dataclasses.replace(made, known=known, seconds=took[-1])


@dataclasses.dataclass(frozen=True)
class Running:
    """A build, and the file of what it says."""

    process: BaseProcess
    said: Path


def begin(made: Case, words: Sequence[str], *, out: Path | None = None, force: bool = True) -> Running:
    """`bertc build` in a process, which has begun to build when this returns."""
    FORKS.set_forkserver_preload(PRELOADED)
    ready, theirs = FORKS.Pipe(duplex=False)
    made.temporary.mkdir(exist_ok=True)
    said = made.folder / f"said-{random.getrandbits(32):08x}"
    command = ["build", *words, "-o", str(out or made.out), *(["--force"] if force else [])]
    process = FORKS.Process(target=_build, args=(command, str(made.temporary), str(said), theirs))
    process.start()
    theirs.close()
    ready.recv()
    return Running(process, said)


def _build(command: list[str], temporary: str, said: str, ready: object) -> None:
    import tempfile

    from bertc.cli import _main as cli

    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also below a shell's `&`, which ignores it
    ready.send("ready")  # type: ignore[attr-defined]
    sys.exit(cli.run(command))


def ended(running: Running, seconds: float = SECONDS) -> tuple[int | None, str]:
    """(exit code, what it said); RuntimeError where it does not end."""
    running.process.join(seconds)
    if running.process.exitcode is None:
        running.process.kill()
        raise RuntimeError(f"a build did not end within {seconds} s")
    said = running.said.read_text("utf-8", "replace")
    running.said.unlink()
    return running.process.exitcode, said


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One build that was stopped: what was at its output then, and what is wrong with that; () is nothing."""

    found: str
    wrong: tuple[str, ...]


def moments(count: int, made: Case, seed: int = 0) -> Iterator[float]:
    """As many random moments of a build, in seconds: one in each of as many equal parts, so that none is left out."""
    rng = random.Random(seed)
    yield from ((at + rng.random()) / count * made.seconds for at in range(count))


def stopped_at(moment: float, number: signal.Signals, made: Case, existing: bool = True) -> Outcome:
    """A build over the old artifact, or over nothing, that gets a signal; then the next build, which must clean up after it."""
    made.start_over(existing)
    before = "old" if existing else "nothing"
    running = begin(made, made.new)
    time.sleep(moment)
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.process.pid or 0, number)
    code, said = ended(running)
    wrong = [*_wrong_end(code, said, number), *_outlived(made)]
    found = made.found()
    # Who is told that nothing was written finds what was there; who is killed may have been killed behind the exchange.
    allowed = {"new"} if code == 0 or "was written before" in said else {before} if code == INTERRUPTED else {before, "new"}
    wrong += [] if found in allowed else [f"exit code {code}, and at the output: {found}"]
    if code == INTERRUPTED:
        wrong += [f"left {left}" for left in _left(made, {"out"} if existing else set())]
    code, said = ended(begin(made, made.new))
    wrong += [] if code == 0 and made.found() == "new" else [f"the next build: exit code {code}, {made.found()}: {said[-300:]}"]
    wrong += [f"the next build left {left}" for left in _left(made, {"out"})]
    return Outcome(found, tuple(wrong))


def _wrong_end(code: int | None, said: str, number: signal.Signals) -> list[str]:
    if code == 0:
        return []  # it was done before
    if number == signal.SIGKILL:
        return [] if code == -signal.SIGKILL else [f"killed, it ended with {code}: {said[-300:]}"]
    last = (said.splitlines() or [""])[-1]
    if code != INTERRUPTED or "Traceback" in said or not last.startswith("interrupted: "):
        return [f"interrupted, it ended with {code}: {said[-1000:]}"]
    return []


def _left(made: Case, wanted: set[str]) -> list[str]:
    """What lies beside the output, and in the folder for temporary files."""
    return sorted({*os.listdir(made.out.parent)} - wanted) + sorted(os.listdir(made.temporary))


def _outlived(made: Case) -> list[str]:
    """Processes that the build started, known by their folder for temporary files, and that live on without it."""
    deadline = time.monotonic() + 5
    while (alive := _of(made)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [f"process {pid} lives on" for pid in alive]


def _of(made: Case) -> list[str]:
    mark, found = os.fsencode(f"TMPDIR={made.temporary}"), []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in file.read_bytes().split(b"\0"):
                found.append(file.parent.name)
    return found


def at_once(made: Case, force: bool, apart: float) -> Outcome:
    """Two builds of one output, the second begun some seconds after the first: one of them, whole, and each says how it ended."""
    made.start_over(existing=force)
    first = begin(made, made.new, force=force)
    time.sleep(apart)
    second = begin(made, made.old, force=force)
    ends = [ended(each) for each in (first, second)]
    found, codes = made.found(), sorted(str(code) for code, _ in ends)
    wrong = [] if found in ("old", "new") else [f"at the output: {found}"]
    if codes != (["0", "0"] if force else ["0", "2"]):
        wrong.append(f"exit codes {codes}: {[said[-300:] for _, said in ends]}")
    refused = [said for code, said in ends if code == 2]
    wrong += [said for said in refused if "--force replaces it" not in said]
    wrong += [f"left {left}" for left in _left(made, {"out"})]
    return Outcome(found, tuple(wrong))


def verified_meanwhile(made: Case, builds: int) -> tuple[int, list[str]]:
    """`bertc verify` again and again while builds replace the artifact: (how often it ran, what was wrong)."""
    made.start_over(existing=True)
    wrong, tries = [], 0
    for number in range(builds):
        running = begin(made, (made.new, made.old)[number % 2])
        while running.process.exitcode is None:
            code, said = ended(_verify(made))
            tries += 1
            wrong += [] if code == 0 else [f"verify exited with {code}: {said[-300:]}"]
            running.process.join(0)
        code, said = ended(running)
        wrong += [] if code == 0 else [f"build exited with {code}: {said[-300:]}"]
    return tries, wrong


def _verify(made: Case) -> Running:
    said = made.folder / f"said-{random.getrandbits(32):08x}"
    ready, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_build, args=(["verify", str(made.out)], str(made.temporary), str(said), theirs))
    process.start()
    theirs.close()
    ready.recv()
    return Running(process, said)


def median_seconds(made: Case, tries: int = 3) -> float:
    """What the new build takes, undisturbed."""
    times = []
    for _ in range(tries):
        made.start_over(existing=True)
        began = time.perf_counter()
        ended(begin(made, made.new))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


UNREACHED = "a build with fewer writes"


def full_at(write: int, disk: Disk, made: Case, existing: bool, compiler: bool = False) -> Outcome:
    """A build that finds the disk full from a write on: exit code 3, what to do, and what was there before.

    `compiler`: a write of the process that compiles. Builds may differ by a write; one that has no such write finds UNREACHED.
    """
    made.start_over(existing)
    before = "old" if existing else "nothing"
    code, tried, said = disk.run(-1, write) if compiler else disk.run(write)
    if code == 0 and (compiler or tried < write):
        return Outcome(UNREACHED, ())
    found, last = made.found(), (said.splitlines() or [""])[-1]
    if code == 0 and disk.swap_failed:  # the folders were renamed instead
        before, wrong = "new", []
    else:
        told = code == 3 and "no room" in last and "Traceback" not in said
        wrong = [] if told else [f"write {write}: exit code {code}: {said[-1000:]}"]
    wrong += [] if found == before else [f"write {write}: at the output: {found}"]
    wrong += [f"left {left}" for left in _left(made, {"out"} if existing else set())]
    return Outcome(found, tuple(wrong))
