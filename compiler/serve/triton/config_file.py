"""config.pbtxt of a model, as a message of Triton's own schema: what an artifact and a serving.toml say, and what gets lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...artifact import Artifact
from ...core import InputError, TensorSpec
from ..batches import Batching
from ..config import ModelConfig, ServingConfig
from . import ragged

TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16",
}  # fmt: skip
BACKENDS = {"tensorrt": "tensorrt", "onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime"}
PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx"}
FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "python": "model.py"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A serving.toml as one model sees it."""

    config: ServingConfig = dataclasses.field(default_factory=ServingConfig)
    model: ModelConfig = dataclasses.field(default_factory=lambda: ModelConfig(""))

    @property
    def policy(self) -> Any:
        return self.config.policy_of(self.model)


@dataclasses.dataclass
class Made:
    """A configuration, and what is said of it."""

    message: Any
    notes: list[str] = dataclasses.field(default_factory=list)


def backend_of(found: Artifact, wanted: str) -> str:
    """The backend of Triton that runs an artifact. InputError for a target that none runs as it is."""
    if wanted == "python":
        return "python"
    if found.target not in BACKENDS:
        raise InputError(
            f"{found.path} is built for {found.target}, which no backend of Triton runs; those of {', '.join(BACKENDS)} are run. "
            "--backend python runs it by bertc.load"
        )
    return BACKENDS[found.target]


def engine_config(name: str, found: Artifact, backend: str, settings: Settings, plans: dict[str, str]) -> Made:
    """The model of the engine. `plans`: the plan of each compute capability, {} for one plan or another backend."""
    from tritonclient.grpc import model_config_pb2 as schema

    made = Made(schema.ModelConfig(name=name, backend=backend, platform=PLATFORMS.get(backend, "")))
    batched = not Batching.of(found.inputs, found.outputs).whole
    most = most_rows(found, settings) if batched else 0
    made.message.max_batch_size = most
    made.message.default_model_filename = FILES[backend]
    for plan, file in plans.items():
        made.message.cc_model_filenames[plan] = file
    # Requests of different lengths reach the Python model together, which pads them; other backends would join their values.
    _tensors(made.message, found, int(batched), backend == "python" and batched)
    if backend == "onnxruntime" and "packing" in found.manifest:
        _packed(made, found)
    _instances(made, found, backend, settings)
    _batching(made, found, backend, settings, batched)
    made.message.response_cache.enable = False
    if not batched:
        made.notes.append("not all tensors begin with one batch dimension: max_batch_size 0, requests are not batched")
    return made


def most_rows(found: Artifact, settings: Settings) -> int:
    """max_batch_size: what the profiles take, and for ONNX Runtime, which takes any, what serving.toml says."""
    first = found.inputs[0].dims[0]
    tops = [profile[first].max for profile in found.profiles if isinstance(first, str) and first in profile]
    return max(tops, default=settings.policy.max_rows)


def _tensors(message: Any, found: Artifact, skip: int, all_lengths: bool) -> None:
    for spec in found.inputs:
        made = message.input.add(name=spec.name, data_type=type_value(spec.dtype), dims=_dims(spec, skip))
        made.allow_ragged_batch = all_lengths and any(isinstance(dim, str) for dim in spec.dims[skip:])
    for spec in found.outputs:
        message.output.add(name=spec.name, data_type=type_value(spec.dtype), dims=_dims(spec, skip))


def type_value(dtype: str) -> Any:
    """What the schema calls a dtype of numpy. InputError for one that it does not have."""
    from tritonclient.grpc import model_config_pb2 as schema

    if dtype not in TYPES:
        raise InputError(f"Triton has no type {dtype}; it has {', '.join(TYPES)}")
    return schema.DataType.Value(f"TYPE_{TYPES[dtype]}")


def _dims(spec: TensorSpec, skip: int) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in spec.dims[skip:]]


def _instances(made: Made, found: Artifact, backend: str, settings: Settings) -> None:
    """Instance groups: every profile of a plan, workers of a CPU."""
    workers, threads = settings.config.cores()
    told = bool(settings.config.workers or settings.config.threads)
    if backend == "tensorrt":
        group = made.message.instance_group.add(count=1, kind="KIND_GPU")
        # Without this list Triton uses the first profile alone.
        group.profile.extend(str(at) for at in range(max(len(found.profiles), 1)))
    elif found.target == "onnxruntime":
        made.message.instance_group.add(count=workers, kind="KIND_CPU")
    else:
        made.message.instance_group.add(count=1, kind="KIND_CPU" if backend == "python" else "KIND_GPU")
    if backend == "onnxruntime" and found.target == "onnxruntime":
        made.message.parameters["intra_op_thread_count"].string_value = str(threads)
        made.message.parameters["inter_op_thread_count"].string_value = "1"
        if not told:
            made.notes.append(f"{workers} instances of {threads} threads, as this machine has cores: set workers in serving.toml")
    if backend == "python" and found.target == "onnxruntime":
        made.notes.append(f"each Python instance takes all cores unless tritonserver is started with OMP_NUM_THREADS={threads}")
    if told and found.target != "onnxruntime":
        made.notes.append("workers and threads of serving.toml are not used: they are of a CPU, and this engine has one instance")


def _batching(made: Made, found: Artifact, backend: str, settings: Settings, batched: bool) -> None:
    """The dynamic batcher and its queue, as near to the policy as Triton comes."""
    policy, limits = settings.policy, settings.config.limits
    if policy.name != "none" or backend == "python":
        batcher = made.message.dynamic_batching if batched else None
    else:
        batcher = None
        made.notes.append("policy none: no dynamic batching; its queue has no limit and no deadline then")
    if not batched:
        made.notes.append("limits.queue and limits.deadline_ms are of the dynamic batcher, which this model has not")
    if batcher is not None:
        batcher.max_queue_delay_microseconds = round(policy.max_wait * 1e6) if policy.name == "count" else 0
        queue = batcher.default_queue_policy
        queue.max_queue_size = limits.queue
        queue.default_timeout_microseconds = round(limits.deadline_ms * 1e3)
        queue.timeout_action = "REJECT"
        queue.allow_timeout_override = True
    made.notes += list(_lost(settings, backend, bool(made.message.batch_input)))
    if backend == "python" and batched:
        _planned(made, found, policy)


def _packed(made: Made, found: Artifact) -> None:
    """Ragged inputs, or why there are none."""
    if why := ragged.why_not(found):
        made.notes.append(
            f"the packed engine has no ragged inputs: {why}; Triton batches requests of one shape alone: send padded batches, or "
            "take --backend python"
        )
        return
    ragged.accept(made.message, found)
    made.notes.append(
        "requests of all lengths share a batch (ragged inputs): model.onnx is the packed engine behind nodes that make its "
        "batch. NOT RUN here: Triton's ONNX Runtime backend"
    )


def _planned(made: Made, found: Artifact, policy: Any) -> None:
    """What the Python model needs to plan within what Triton hands over."""
    name = "tokens" if policy.name == "cost" else policy.name
    if policy.name == "cost":
        made.notes.append("policy cost needs times measured where it runs: the Python model batches by tokens")
    values = {"policy": name, "max_rows": policy.max_rows, "budget": policy.budget}
    values["packed"] = "yes" if "packing" in found.manifest else "no"
    for key, value in values.items():
        made.message.parameters[key].string_value = str(value)


def _lost(settings: Settings, backend: str, all_lengths: bool) -> Sequence[str]:
    """What serving.toml says and Triton cannot."""
    policy, config = settings.policy, settings.config
    lost = []
    if policy.name in ("cost", "tokens") and backend != "python":
        lost.append(
            f"policy {policy.name} (neighbours in length, budget {policy.budget}) is not Triton's: its dynamic batcher joins "
            f"requests of {'all lengths' if all_lengths else 'one shape'}, by count, with no wait"
        )
    if config.target_ms:
        lost.append(f"target_ms {config.target_ms:g}: Triton knows deadlines, no targets")
    if config.memory:
        lost.append(f"memory {config.memory}: Triton loads all models; --model-control-mode=explicit loads some")
    if (config.host, config.port) != (ServingConfig().host, ServingConfig().port):
        lost.append("host and port are options of tritonserver: --http-address, --http-port")
    defaults = type(config.limits)()
    for name in ("rows", "body_bytes"):
        if getattr(config.limits, name) != getattr(defaults, name):
            lost.append(f"limits.{name}: Triton has no such limit; max_batch_size limits the rows of a request")
    return lost
