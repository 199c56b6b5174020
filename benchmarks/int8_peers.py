"""INT8 by others, on the same export and texts: ONNX Runtime's quantiser, and NVIDIA's modelopt in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertc.data import files, samples
from bertc.data.preprocess import preprocessors
from bertc.source.types import Source

PYTHON = "BERTC_MODELOPT_PYTHON"  # the interpreter of an environment with nvidia-modelopt[onnx]
# What NVIDIA's README calls; prints its own version and the seconds of the one call.
MODELOPT = """
import sys, time, numpy as np, modelopt
from modelopt.onnx.quantization import quantize
source, calibration, out, method = sys.argv[1:]
found = dict(np.load(calibration))
start = time.perf_counter()
quantize(source, quantize_mode="int8", calibration_data=found, calibration_method=method, output_path=out,
         calibration_eps=["cpu"], high_precision_dtype="fp16")
print("RESULT", modelopt.__version__, time.perf_counter() - start)
"""
LENGTH = 128  # tokens, what the checkpoint's tokenizer.json cuts and pads to


def batches(source: Source, texts: Sequence[str], batch: int, longest: int) -> Iterator[samples.Sample]:
    """Padded to the longest of a batch, in the order given."""
    limits, encoder, _ = preprocessors(source.graph.inputs, source.dims, source.assets, [{"length": _range(longest)}])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.txt")
        path.write_text("\n".join(texts), "utf-8")
        yield from files.samples_from_file(path, inputs=source.graph.inputs, dims=limits, encode=encoder, batch=batch).samples


def _range(longest: int) -> Any:
    from bertc.core.profiles import Range

    return Range(1, min(LENGTH, longest), longest)


def dynamic(model: Path, out: Path) -> None:
    """Weights once, activations at run time; per channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(model, out, per_channel=True, weight_type=QuantType.QInt8)


def static(model: Path, out: Path, source: Source, texts: Sequence[str], method: str, batch: int = 1) -> None:
    """QDQ per channel behind its own preprocessing, as its documentation recommends; S8S8. One text at a time: its histograms and
    extremes keep every tensor of every batch."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = (dict(sample.feeds) for sample in batches(source, texts, batch, LENGTH))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    ready = out.with_suffix(".ready.onnx")
    quant_pre_process(model, ready, skip_symbolic_shape=True)
    kind = QuantType.QInt8
    # Not a divisor of the number of texts: with nothing left for the last merge it says "No data is collected."
    options = {"CalibMaxIntermediateOutputs": 48} if method == "MinMax" else {}
    quantize_static(
        ready, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=kind, weight_type=kind,
        calibrate_method=CalibrationMethod[method], extra_options=options,
    )  # fmt: skip


def modelopt(model: Path, out: Path, source: Source, texts: Sequence[str], method: str) -> tuple[str, float]:
    """(its version, seconds of its call). LookupError where its environment is not named, RuntimeError where it fails."""
    python = os.environ.get(PYTHON)
    if not python:
        raise LookupError(f"not there: {PYTHON} names no interpreter")
    feeds = [sample.feeds for sample in batches(source, texts, len(texts), LENGTH)]
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder, "calibration.npz")
        np.savez(calibration, **feeds[0])
        words = [python, "-c", MODELOPT, str(model), str(calibration), str(out), method]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode or line is None:
        raise RuntimeError(f"failed: {(done.stderr.strip() or 'it said nothing').splitlines()[-1][:200]}")
    _, version, seconds = line.split()
    return version, float(seconds)
