"""A session of the TensorRT provider. It runs within the profiles: a size outside of them would compile another engine."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import BuildFailed, Feeds, Missing, Outputs, TensorSpec, profiles
from ...runtime import Runner, import_onnxruntime
from .._model_file import ModelFile
from . import tensorrt_options as options_
from .session import LIBRARIES, nodes_on_cpu

TENSORRT = "TensorRT 10 is missing: pip install 'tensorrt-cu13<11', and have its tensorrt_libs folder in LD_LIBRARY_PATH"


class TensorrtRunner(Runner):
    """One session on one GPU; the first load compiles the engine, the next reads it from the cache."""

    def __init__(self, model: ModelFile, manifest: Mapping[str, Any]) -> None:
        inputs, outputs = ([TensorSpec.from_json(d) for d in manifest[kind]] for kind in ("inputs", "outputs"))
        super().__init__(inputs, outputs, profiles.profiles_from_json(manifest["profiles"]))
        chosen = options_.checked_options(manifest["engine"]["session"], model.path)
        self._session = open_tensorrt_session(model, options_.provider_list(model.sha256, chosen, self.inputs, self.profiles))

    def _run(self, feeds: Feeds) -> Outputs:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))


def open_tensorrt_session(model: ModelFile, providers: list[tuple[str, dict[str, str]]]) -> Any:
    """Raises Missing where a provider does not load, BuildFailed where one refuses the model or leaves nodes to the CPU."""
    ort = import_onnxruntime()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    Path(providers[0][1]["trt_engine_cache_path"]).mkdir(parents=True, exist_ok=True)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    held = model.configure(options)
    try:
        session = ort.InferenceSession(model.given, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no public base class
        text = str(error).strip()
        if "install TensorRT" in text or "libnvinfer" in text:
            raise Missing(f"the TensorRT provider of onnxruntime-gpu does not load: {TENSORRT} ({text})") from error
        if "Failed to load" in text:
            raise Missing(f"the CUDA provider of onnxruntime-gpu does not load: {LIBRARIES} ({text})") from error
        raise BuildFailed(f"ONNX Runtime's TensorRT provider refuses {model.path}: {text}") from error
    del held  # ONNX Runtime has its own copy by now
    lost = [name for name, _ in providers if name not in session.get_providers()]
    if lost:
        raise Missing(f"{', '.join(lost)} did not load, ONNX Runtime would run without: {TENSORRT}; {LIBRARIES}")
    if found := nodes_on_cpu(session):
        raise BuildFailed(f"{model.path}: {len(found)} nodes would run on the CPU: {', '.join(found[:5])}")
    return session
