"""An artifact behind Ray Serve's batching by count: `python -m benchmarks.peers.ray_server ARTIFACT PORT ROWS WAIT`.

As its documentation shows it: a replica a core, `serve.batch` in each, texts in, one padded batch, vectors out.
"""

from __future__ import annotations

import sys
from typing import Any

import ray
from ray import serve

import bertc

REPLICAS = 2


def embedder(artifact: str, rows: int, wait: float) -> Any:
    """The application."""

    @serve.deployment(num_replicas=REPLICAS, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=64)
    class Embed:
        def __init__(self) -> None:
            self.runner = bertc.load(artifact)

        @serve.batch(max_batch_size=rows, batch_wait_timeout_s=wait)
        async def run(self, texts: list[str]) -> list[Any]:
            return [[each.tolist()] for each in self.runner.embed(texts, normalize=True)]

        async def __call__(self, request: Any) -> Any:
            return await self.run((await request.json())["inputs"])

    return Embed.bind()


if __name__ == "__main__":
    artifact, port, rows, wait = sys.argv[1:]
    ray.init(num_cpus=REPLICAS + 1, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(embedder(artifact, int(rows), float(wait)), route_prefix="/embed", blocking=True)
