"""Small artifacts with the outputs that a server knows, and `bertc serve` as a process that tests ask over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import requests
import tiny
from onnx import TensorProto, numpy_helper

CLASSES = ("bad", "fair", "good")
# What stands over the encoder: nodes, output, its width.
POOLED = [
    ("Unsqueeze", "mask last", "spread"),
    ("Mul", "last_hidden_state spread", "kept"),
    ("ReduceSum", "kept axes", "summed", {"keepdims": 0}),
    ("ReduceSum", "mask axes", "count", {"keepdims": 1}),
    ("Div", "summed count", "sentence_embedding"),
]
HEADS: dict[str, tuple[list[Any], str, list[Any]]] = {
    "embedder": (POOLED, "sentence_embedding", ["batch", tiny.WIDTH]),
    "ranker": ([*POOLED, ("MatMul", "sentence_embedding head1", "logits")], "logits", ["batch", 1]),
    "classifier": ([*POOLED, ("MatMul", "sentence_embedding head3", "logits")], "logits", ["batch", 3]),
    "tokens": ([("MatMul", "last_hidden_state head3", "logits")], "logits", ["batch", "length", 3]),
}


def model(folder: Path, kind: str, *, changed: float = 0.0, heedless: bool = False) -> Path:
    """One of HEADS over tiny's encoder, with its tokenizer and labels; `heedless` of its mask, so that padding changes it."""
    rows, output, shape = HEADS[kind]
    rng = np.random.default_rng(3)
    values: dict[str, np.ndarray] = tiny.weights() | {"one": np.array(1, np.float32), "last": np.array([-1], np.int64)}
    values["wo"][3, 5] += changed
    values |= {f"head{n}": rng.standard_normal((tiny.WIDTH, n)).astype(np.float32) for n in (1, 3)}
    if heedless:
        values["low"] = np.array(0, np.float32)
    made = [oh.make_node(op, i.split(), [o], name=f"n_{o}", **dict(*extra)) for op, i, o, *extra in rows]
    inputs = [oh.make_tensor_value_info(name, TensorProto.INT64, tiny.DIMS) for name in ("input_ids", "attention_mask")]
    outputs = [oh.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    stored = [numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = oh.make_graph([*tiny.nodes(), *made], kind, inputs, outputs, stored)
    whole = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.shape_inference.infer_shapes(whole), folder / "model.onnx")
    tiny.write_tokenizer(folder)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"id2label": dict(enumerate(CLASSES))}))
    return folder / "model.onnx"


def artifact(folder: Path, kind: str, **how: Any) -> Path:
    """The model of a kind, built for ONNX Runtime without the slower proofs, and times of batches beside it for two workers."""
    import bertc
    from bertc.artifact import open_artifact
    from bertc.serve import ServingConfig, cost

    source = model(folder / f"{kind}-source", kind, **how)
    (found,) = bertc.build(source, folder / kind, precision="fp32", targets=["onnxruntime"], prove=False)
    workers, threads = ServingConfig(workers=2).cores()
    times = np.array([[1e-4], [5e-3]])
    known = cost.CostModel(np.array([1]), np.array([1, 64]), times, per_row=1e-3, workers=workers, threads=threads)
    cost.write_cost(open_artifact(found.path), known)
    return found.path


class Process:
    """A `bertc serve` that runs: its URL, its workers, and its log."""

    def __init__(self, words: Sequence[object], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-m", "bertc", "serve", *map(str, words)]
        own = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=own, start_new_session=True)
        try:
            self.url = self._url()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.client = requests.Session()

    def _url(self) -> str:
        end = time.monotonic() + 60
        while not (found := re.search(r"serving at (http://\S+)\n", self.log.read_text("utf-8"))):
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text("utf-8")
            time.sleep(0.02)
        return found[1]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def workers(self) -> list[int]:
        """The processes that compute."""
        found = []
        for file in Path("/proc").glob(f"{self.process.pid}/task/*/children"):
            found += [int(pid) for pid in file.read_text().split()]
        return [pid for pid in found if b"bertc.serve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def post(self, path: str, body: Any = None, **more: Any) -> requests.Response:
        more |= {} if body is None else {"json": body}
        return self.client.post(self.url + path, timeout=30, **more)

    def get(self, path: str) -> requests.Response:
        return self.client.get(self.url + path, timeout=30)

    def metrics(self) -> dict[str, float]:
        """`name{labels}`: value."""
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def events(self) -> list[str]:
        """What the log says; every line of it is JSON, but what the build's progress says."""
        return self.log.read_text("utf-8").splitlines()

    def stop(self, seconds: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serving(*words: object, log: Path, **more: Any) -> Iterator[Process]:
    """A server on a free port that is ended at the end, however the test went."""
    made = Process([*words, "--port", 0], log, **more)
    try:
        yield made
    finally:
        made.client.close()
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def until(true: Any, seconds: float = 20) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)
