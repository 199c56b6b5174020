"""An artifact behind LitServe's batching by count: `python -m benchmarks.peers.litserve_server ARTIFACT PORT ROWS WAIT`.

As its documentation shows it: texts in, one padded batch, vectors out; `max_batch_size` requests, or those that came within
`batch_timeout`. Two workers of one thread.
"""

from __future__ import annotations

import sys
from typing import Any

import litserve

import bertc

WORKERS = 2


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Texts to vectors. Of the module, not of a function: its workers unpickle it."""

    def setup(self, device: str) -> None:
        self.runner = bertc.load(sys.argv[1])

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would be a schema to it
        return str(request["inputs"])

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> Any:
        return self.runner.embed(texts, normalize=True)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: Any) -> Any:
        return [output.tolist()]


if __name__ == "__main__":
    artifact, port, rows, wait = sys.argv[1:]
    api = Api(max_batch_size=int(rows), batch_timeout=float(wait), api_path="/embed")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=60)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False, log_level="warning")
