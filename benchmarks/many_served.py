"""A server of artifacts in a process of its own, weighed once every model has answered.

`python -m benchmarks.many_served share|own ARTIFACT...` prints the MiB of the server and of its workers, and the seconds of its
start.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from bertc.core import Progress
from bertc.serve import Server
from bertc.serve.model import Request

from .bench_many_models import TEXTS, config, pss

ROUNDS = 4  # so that each worker answers for each model


async def main(share: bool, artifacts: list[Path]) -> None:
    server = Server(config(artifacts, share=share), Progress())
    start = time.perf_counter()
    await server.start()
    seconds = time.perf_counter() - start
    for model in server.models.values():
        for _ in range(ROUNDS):
            texts = [model.embed([text], Request(60.0, truncate=False), True, None) for text in TEXTS]
            await asyncio.gather(*texts)
    print(f"{pss()}\t{sum(map(pss, server.pool.processes))}\t{seconds}")
    await server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] == "share", list(map(Path, sys.argv[2:]))))
