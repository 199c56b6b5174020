"""A worker process: it loads artifacts and runs batches, one after the other, over a socket that it inherits.

python -m bertc.serve.worker FD PARENT
"""

from __future__ import annotations

import dataclasses
import logging
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import BertcError, Missing, RunFailed, die_with_parent, profiles
from . import memory
from .frames import MOST_HEAD, SIZES, Head, pack, unpack_arrays, unpack_head

if TYPE_CHECKING:
    import numpy as np

    from ..runtime import Runner

LOG = logging.getLogger("bertc.serve")
KINDS: Mapping[type[BertcError], str] = {Missing: "missing", RunFailed: ""}  # any other is "ours"
TRIM_EVERY = 32  # requests: what batches of many models freed lies between what sessions keep, and grows without it


class Worker:
    """The loaded artifacts of one process."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.runners: dict[str, Runner] = {}
        self.asked = 0

    def serve(self) -> None:
        """Answer until the other side hangs up."""
        while (got := self._receive()) is not None:
            head, arrays = got
            self.asked += 1
            if head.op == "load" or self.asked % TRIM_EVERY == 0:
                memory.trim()
            try:
                answer, outputs = getattr(self, f"_{head.op}")(head, arrays)
            except BertcError as error:
                if isinstance(error, RunFailed):  # the engine's fault or the request's: nobody can tell
                    LOG.error("a batch failed: %s", error)
                kind = KINDS.get(type(error), "ours")
                answer, outputs = Head("failed", facts={"error": str(error), "kind": kind}), {}
            except Exception as error:  # a batch that fails must not take the worker down: the cause goes to who asked
                LOG.exception("a batch failed")
                answer, outputs = Head("failed", facts={"error": f"{type(error).__name__}: {error}", "kind": ""}), {}
            answer.job = head.job
            for part in pack(answer, outputs):
                self.link.sendall(part)

    def _prepare(self, head: Head, arrays: dict[str, np.ndarray]) -> tuple[Head, dict[str, np.ndarray]]:
        from . import preparing

        folder = Path(head.facts["folder"]) if head.facts["folder"] else None
        made = preparing.prepare(head.model, Path(head.facts["path"]), folder, head.facts["seen"])
        return Head("done", facts=dataclasses.asdict(made)), {}

    def _load(self, head: Head, arrays: dict[str, np.ndarray]) -> tuple[Head, dict[str, np.ndarray]]:
        from . import preparing

        runner, seconds = preparing.load(head.facts)
        self.runners[head.model] = runner
        limits = [{name: dataclasses.asdict(r) for name, r in each.items()} for each in runner.profiles]
        facts: dict[str, Any] = {"profiles": limits, "seconds": seconds}
        return Head("done", facts=facts), {}

    def _unload(self, head: Head, arrays: dict[str, np.ndarray]) -> tuple[Head, dict[str, np.ndarray]]:
        self.runners.pop(head.model, None)
        memory.release()
        return Head("done"), {}

    def _run(self, head: Head, arrays: dict[str, np.ndarray]) -> tuple[Head, dict[str, np.ndarray]]:
        start = time.perf_counter()
        outputs = self.runners[head.model].run(arrays)
        return Head("done", facts={"seconds": time.perf_counter() - start}), dict(outputs)

    def _receive(self) -> tuple[Head, dict[str, np.ndarray]] | None:
        sizes = self._exactly(SIZES.size)
        if sizes is None:
            return None
        head_bytes, data_bytes = SIZES.unpack(sizes)
        if head_bytes > MOST_HEAD:
            raise ValueError(f"a head of {head_bytes} bytes")
        body, data = self._exactly(head_bytes), self._exactly(data_bytes)
        if body is None or data is None:
            return None
        head = unpack_head(body)
        return head, unpack_arrays(head, data)

    def _exactly(self, size: int) -> bytearray | None:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            got = self.link.recv_into(view)
            if not got:
                return None
            view = view[got:]
        return data


def limits_of(facts: list[Any]) -> tuple[profiles.Profile, ...]:
    """The profiles of a loaded runner, as its worker told them."""
    return tuple({name: profiles.Range(**sizes) for name, sizes in each.items()} for each in facts)


def main() -> None:
    """Run a worker; the server that made it stops it by hanging up, and Ctrl-C is the server's to handle."""
    descriptor, parent = map(int, sys.argv[1:3])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as link:
        Worker(link).serve()


if __name__ == "__main__":
    main()
