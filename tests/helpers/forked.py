"""Processes of their own that are there at once: forked from a server that has loaded what a build loads and has run nothing."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

PRELOADED = ["bertc.cli._main", "bertc.pipeline", "bertc.cli.build", "onnxruntime", "scipy.stats", "onnxscript"]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


@dataclasses.dataclass(frozen=True)
class Child:
    """A process that can be interrupted and killed as any other, and what it said."""

    process: BaseProcess
    stderr: Connection

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, seconds: float = 60) -> tuple[int | None, str]:
        """(exit code, stderr) of a process that has ended, or does so in time."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it did not end"
        with open(self.stderr.fileno(), encoding="utf-8", closefd=False) as file:
            return self.process.exitcode, file.read()


def start(target: Callable[..., None], *arguments: object) -> Child:
    """`target(*arguments)` in a process. Its stderr is a pipe, which no limit on files holds for; 64 KiB fit."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_run, args=(target, theirs, arguments))
    process.start()
    theirs.close()
    return Child(process, ours)


def _run(target: Callable[..., None], stderr: Connection, arguments: tuple[object, ...]) -> None:
    os.dup2(stderr.fileno(), 2)
    target(*arguments)
