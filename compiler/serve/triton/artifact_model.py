"""Triton's Python backend over an artifact: the rows that Triton hands over together are batched by bertc's planner."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import BertcError, Feeds, Outputs
from ...verification import load_runner
from .. import planner
from ..batches import Batching, joined
from ..trial import try_padding


class Tokens:
    """What the planner asks of times: whether a batch costs its tokens. Nothing is measured here."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed

    def seconds(self, rows: np.ndarray, longest: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """In proportion to what is computed."""
        return np.asarray(tokens if self.packed else rows * longest, np.float64)


class TritonPythonModel:
    """`artifact/` beside model.py. Parameters of config.pbtxt: policy, max_rows, budget, packed."""

    def initialize(self, args: dict[str, str]) -> None:
        import triton_python_backend_utils as pb

        self.pb = pb
        config, folder = json.loads(args["model_config"]), Path(args["model_repository"])
        given = {name: each["string_value"] for name, each in config.get("parameters", {}).items()}
        self.expected = _expected(folder, config)
        self.runner = load_runner(folder / args["model_version"] / "artifact")
        encoder = self.runner.encoder() if self.runner.tokenizer else None
        batching = Batching.of(self.runner.inputs, self.runner.outputs, encoder.pad_id if encoder else 0)
        self.batching, note = try_padding(self.runner, batching, encoder)
        if note:
            pb.Logger.log_warn(f"{args['model_name']}: {note}")
        self.policy = planner.Policy(given["policy"], int(given["max_rows"]), 0.0, int(given["budget"]))
        self.cost = Tokens(given["packed"] == "yes")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One answer a request: its rows, or the error of one of them."""
        found: list[list[Feeds] | BertcError] = [self._rows(request) for request in requests]
        rows = [row for each in found if not isinstance(each, BertcError) for row in each]
        answers = iter(answer_rows(rows, self.batching, self.cost, self.policy, self.runner.run))
        return [self._response(each if isinstance(each, BertcError) else [next(answers) for _ in each]) for each in found]

    def _rows(self, request: Any) -> list[Feeds] | BertcError:
        names = [spec.name for spec in self.runner.inputs]
        try:
            feeds = {name: self.pb.get_input_tensor_by_name(request, name).as_numpy() for name in names}
            self._check_arrays(feeds)
            rows = self.batching.rows(feeds)
            return [self.runner.check(row) for row in rows]
        except BertcError as error:
            return error

    def _check_arrays(self, feeds: Feeds) -> None:
        """The first request is Triton's warm-up, of which is known what it holds.

        A Python backend that was built for numpy 1 (as of 24.10) hands over wrong values with numpy 2, without a word.
        """
        wanted, self.expected = self.expected, {}
        if any(np.ascontiguousarray(feeds[name]).tobytes()[: len(data)] != data for name, data in wanted.items()):
            # Of the call, not of a request: Triton 24.10 ends without a word at a warm-up request that is answered by an error.
            raise self.pb.TritonModelException(
                f"the server's Python backend hands over other values than it got: it was not built for numpy {np.__version__}; "
                "pip install 'numpy<2' in the Python that it runs"
            )

    def _response(self, found: BertcError | Sequence[Outputs | Exception]) -> Any:
        failed = [found] if isinstance(found, BertcError) else [each for each in found if isinstance(each, Exception)]
        if failed:
            return self.pb.InferenceResponse(error=self.pb.TritonError(str(failed[0])))
        outputs = [each for each in found if not isinstance(each, Exception)] if not isinstance(found, BertcError) else []
        made = joined(outputs) if not self.batching.whole else outputs[0]
        names = [spec.name for spec in self.runner.outputs]
        return self.pb.InferenceResponse([self.pb.Tensor(n, np.ascontiguousarray(made[n])) for n in names])


def _expected(folder: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of the first row of each input of the first warm-up request; {} without warm-up."""
    warmups = config.get("model_warmup") or [{"inputs": {}}]
    inputs = warmups[0]["inputs"].items()
    return {name: (folder / "warmup" / given["input_data_file"]).read_bytes() for name, given in inputs}


def answer_rows(
    rows: Sequence[Feeds], batching: Batching, cost: planner.Cost, policy: planner.Policy, run: Any
) -> list[Outputs | Exception]:
    """The outputs of each row, or why there are none. Rows of a batch that fails run one by one: one may be at fault alone."""
    now = time.monotonic()
    waiting = {at: planner.Row(at, batching.tokens(row), now, math.inf, batching.group(row)) for at, row in enumerate(rows)}
    answers: dict[int, Outputs | Exception] = {}
    while waiting:
        # By its max_wait of 0 the planner never waits: what is here is all that comes.
        chosen = planner.plan(list(waiting.values()), now, cost, policy).run
        answers |= _run([rows[at] for at in chosen], chosen, batching, run)
        for at in chosen:
            del waiting[at]
    return [answers[at] for at in range(len(rows))]


def _run(rows: Sequence[Feeds], keys: Sequence[int], batching: Batching, run: Any) -> dict[int, Outputs | Exception]:
    try:
        return dict(zip(keys, batching.split(run(batching.stack(rows)), rows), strict=True))
    except Exception as error:  # noqa: BLE001 - of an engine, too: it is the answer of this row, and the server goes on
        if len(rows) == 1:
            return {keys[0]: error}
    found: dict[int, Outputs | Exception] = {}
    for row, key in zip(rows, keys, strict=True):
        found |= _run([row], [key], batching, run)
    return found
