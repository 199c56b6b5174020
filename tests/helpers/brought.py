"""What other tools leave behind, brought to the command line: a build in process, and what its artifact computes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bertc.cli import _main as cli

FLOAT32, FLOAT16 = "onnxruntime-fp32", "null-fp16"
# Of max |wanted|. float32 sums in another order; float16 rounds every value to 11 bits, and these are two layers deep.
LIMITS = {FLOAT32: 1e-5, FLOAT16: 2e-2}
Feeds = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Built:
    """The exit code of a build, all that it printed, and its folder."""

    code: int
    said: str
    folder: Path

    def graph(self, of: str = FLOAT32) -> Path:
        """The .onnx file of one of its artifacts: what its target runs, or would compile."""
        where = self.folder / of if (self.folder / of).is_dir() else self.folder
        return next(where / name for name in ("model.onnx", "graph.onnx") if (where / name).is_file())

    def fusions(self, of: str = FLOAT32) -> dict[str, int]:
        """Rule -> how often it was applied, by the report."""
        where = self.folder / of if (self.folder / of).is_dir() else self.folder
        return json.loads((where / "report.json").read_text("utf-8"))["passes"]["counts"]


def command(*words: object) -> Built:
    """A command line of bertc, in this process."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        code = cli.run([str(word) for word in words])
    return Built(code, told.getvalue(), Path())


def build(source: object, into: Path, *words: object, targets: Sequence[str] = ("onnxruntime=fp32", "null=fp16")) -> Built:
    """`bertc build SOURCE`."""
    named = [word for target in targets for word in ("--target", target)]
    return dataclasses.replace(command("build", source, *named, "-o", into, *words), folder=into)


def answers(path: Path, feeds: Feeds, optimised: bool = True) -> dict[str, np.ndarray]:
    """ONNX Runtime's outputs of a file; feeds that the file has no input for are left out, the others get its types."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = {i.name: feeds[i.name].astype(TYPES.get(i.type, feeds[i.name].dtype)) for i in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))


TYPES = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32, "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
}  # fmt: skip


def off(got: np.ndarray, wanted: np.ndarray, mask: np.ndarray | None = None) -> float:
    """max |got - wanted| / max |wanted|, at the positions that `mask` keeps; another shape is infinitely far off."""
    if got.shape != wanted.shape:
        return float("inf")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    if mask is not None:
        got, wanted = got[mask > 0], wanted[mask > 0]
    return float(np.abs(got - wanted).max() / np.abs(wanted).max()) if np.isfinite(got).all() else float("inf")


def text_feeds(rows: int = 3, length: int = 11, words: int = 300, types: bool = False) -> dict[str, np.ndarray]:
    """Random ids; every row is padded from another position on."""
    rng = np.random.default_rng(1)
    mask = np.ones((rows, length), np.int64)
    for row in range(1, rows):
        mask[row, max(1, length // (row + 1)) :] = 0
    feeds = {"input_ids": rng.integers(5, words, (rows, length)), "attention_mask": mask}
    return feeds | ({"token_type_ids": rng.integers(0, 2, (rows, length))} if types else {})
