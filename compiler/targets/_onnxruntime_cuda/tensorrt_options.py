"""The options of ONNX Runtime's TensorRT provider: what a manifest says under engine.session, and what a session is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core import ArtifactError, Profile, TensorSpec, did_you_mean, profiles
from .._protocol import BuildRequest

PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
TYPES = {"fp16": ("fp16",), "bf16": ("bf16",), "int8": ("fp16", "int8"), "fp8": ("fp16", "int8")}
# A whole number, or "" for the cache of the user.
DEFAULTS: Mapping[str, Any] = {
    "providers": list(PROVIDERS),
    "device_id": 0,
    "enable": [],
    "builder_optimization_level": 3,
    "max_workspace_size": 0,  # bytes of scratch memory; 0: as much as the GPU has
    "cuda_graph": 0,
    "engine_cache": "",
}
LARGEST = {"device_id": 255, "builder_optimization_level": 5, "max_workspace_size": 2**48, "cuda_graph": 1}
KNOWN_TYPES = ("fp16", "bf16", "int8")


def session_options(request: BuildRequest) -> dict[str, Any]:
    """What load() runs with; recorded in the manifest, where a deployment may change it."""
    precision = request.precision.partition("-")[0] if request.precision != "int8-weights" else "fp16"
    return {**DEFAULTS, "enable": list(TYPES.get(precision, ()))}


def checked_options(given: Any, path: Path) -> dict[str, Any]:
    """The options of a manifest, completed. Raises ArtifactError for what is no option, or no value of one."""
    if not isinstance(given, Mapping):
        raise ArtifactError(f"{path}: engine.session is {given!r}; it is a table of options")
    chosen = {**DEFAULTS, **given}
    for name, value in chosen.items():
        where = f"{path}: engine.session.{name} is {value!r}"
        if name not in DEFAULTS:
            raise ArtifactError(f"{where}, which is no option{did_you_mean(name, tuple(DEFAULTS))}")
        if name in LARGEST and (type(value) is not int or not 0 <= value <= LARGEST[name]):
            raise ArtifactError(f"{where}; it is a whole number from 0 to {LARGEST[name]}")
        if name == "providers" and value != list(PROVIDERS):
            raise ArtifactError(f"{where}; this artifact is for {list(PROVIDERS)}: build the target onnxruntime for the CPU")
        if name == "engine_cache" and not isinstance(value, str):
            raise ArtifactError(f'{where}; it is a folder, or "" for the cache of the user')
        if name == "enable" and not (isinstance(value, list) and set(map(str, value)) <= set(KNOWN_TYPES)):
            raise ArtifactError(f"{where}; it is a list of {', '.join(KNOWN_TYPES)}")
    return chosen


def provider_list(
    sha256: str, chosen: Mapping[str, Any], inputs: Sequence[TensorSpec], ranges: Sequence[Profile]
) -> list[tuple[str, dict[str, str]]]:
    """The providers of an InferenceSession, in order: TensorRT, and CUDA for what TensorRT leaves."""
    kept = str(cache_folder(sha256, chosen))
    options = {
        "device_id": str(chosen["device_id"]),
        **{f"trt_{kind}_enable": "True" for kind in chosen["enable"]},
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": kept,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": kept,
        "trt_builder_optimization_level": str(chosen["builder_optimization_level"]),
        "trt_cuda_graph_enable": "True" if chosen["cuda_graph"] else "False",
        **profile_options(inputs, ranges),
    }
    if chosen["max_workspace_size"]:
        options["trt_max_workspace_size"] = str(chosen["max_workspace_size"])
    return [(PROVIDERS[0], options), (PROVIDERS[1], {"device_id": str(chosen["device_id"]), "use_tf32": "0"})]


def profile_options(inputs: Sequence[TensorSpec], ranges: Sequence[Profile]) -> dict[str, str]:
    """`input_ids:1x16,attention_mask:1x16`, an input once for each profile; {} where every size is fixed."""
    dynamic = [spec for spec in inputs if any(isinstance(dim, str) for dim in spec.dims)]
    if not dynamic or not ranges:
        return {}
    found: dict[str, list[str]] = {"min": [], "opt": [], "max": []}
    for profile in ranges:
        for spec in dynamic:
            for texts, shape in zip(found.values(), profiles.profile_shapes(spec, profile), strict=True):
                texts.append(f"{spec.name}:{'x'.join(map(str, shape))}")
    return {f"trt_profile_{which}_shapes": ",".join(texts) for which, texts in found.items()}


def cache_folder(sha256: str, chosen: Mapping[str, Any]) -> Path:
    """Where engines are kept: another model has another folder, since ONNX Runtime's own name for it is short."""
    if chosen["engine_cache"]:
        return Path(chosen["engine_cache"]).expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "bertc" / "onnxruntime-tensorrt" / sha256[:16]
