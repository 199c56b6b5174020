"""PyTorch on one side, a graph on the other: load a checkpoint, export a module, run it for the truth.

With heads.py the only part of the source that imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Dim, SourceError
from ..data import PROMPT_MASK, read_settings, settings_files
from ..graph import Graph, finite_masks, mark_origins
from ..graph import io_names as exported
from . import heads
from .chain import EMBEDDINGS, read_chain
from .checkpoint import Checkpoint, frames_squeezed, largest_samples, smallest_samples, takes_audio_mask
from .factory import FactoryModel, dims_of
from .loading import is_pooler, load_model, root_cause
from .mel import FRAMES, MelInput, frames_of_table
from .modules.calling import call_order, exportable, model_name, output_names
from .modules.calling import module_arguments as module_arguments
from .modules.calling import module_runner as module_runner
from .modules.calling import output_notes as output_notes
from .modules.calling import outputs_to_arrays as outputs_to_arrays
from .modules.free_dims import find_dims as find_dims
from .modules.tracing import trace
from .modules.wrappers import unwrap as unwrap
from .silence import quiet

MIN_OPSET = 20
POSITION_TABLES = frozenset({"position_embeddings", "embed_positions", "wpe"})
# MobileBERT puts the words beside a word next to it, and torch.export takes the one word beside it at length 2 for a constant.
SHORTEST_TRACED = {"mobilebert": 3}
EXAMPLE_BATCH, EXAMPLE_LENGTH, EXAMPLE_FRAMES = 2, 13, 7
FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")


# ---- checkpoint -> module --------------------------------------------------------------------------------------------


def load_module(
    checkpoint: Checkpoint, task: str, trust_remote_code: bool = False
) -> tuple[FactoryModel, dict[str, Dim], list[str]]:
    """The module of a task with examples and output names, its dynamic dimensions, and notes on what a user may not expect.

    Raises SourceError when transformers does not know the model, when weights that the task needs are not in the
    checkpoint (they would be random), or when any weight is NaN or infinite.
    """
    import transformers.utils.logging  # noqa: F401  quiet() silences what is there

    with quiet():
        model, missing, notes = load_model(checkpoint, task, trust_remote_code)
    pooler = any(is_pooler(name) for name in missing)
    if pooler and task == "features":
        notes.append("the checkpoint has no pooler weights: no pooler_output")
    check_finite(model, str(checkpoint.folder))
    if checkpoint.mel is not None:
        made = _mel(checkpoint.mel, model, task)
        notes += _table_notes(checkpoint)
        return made, {n: dataclasses.replace(d, min=1) for n, d in dims_of(made).items()}, notes
    if checkpoint.is_audio:
        made = _audio(checkpoint, model, task)
        notes += _table_notes(checkpoint)
        # Tracing must be told "two frames or more" (below); the graph is right from one frame on.
        least = smallest_samples(checkpoint.config, frames_squeezed(checkpoint.config))
        return made, dims_of(made) | {"samples": Dim("samples", least, largest_samples(checkpoint.config))}, notes
    made = _text(checkpoint, model, task, with_pooler=not pooler)
    # The graph is right from length 1 on; the check of the export runs it there.
    return made, {n: dataclasses.replace(d, min=1) if n == "length" else d for n, d in dims_of(made).items()}, notes


def check_finite(module: nn.Module, where: str) -> None:
    """Raises SourceError naming the first weights that hold NaN or infinity. Buffers may hold -inf (masks), not NaN."""
    bad = [name for name, value in module.named_parameters() if value.is_floating_point() and not _finite(value)]
    bad += [name for name, value in module.named_buffers() if value.is_floating_point() and bool(value.isnan().any())]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise SourceError(f"{where}: NaN or infinity in {', '.join(bad[:3])}{more}; the file is damaged or the training diverged")


def _finite(value: Tensor) -> bool:
    value = value.detach()
    # The sum is one pass with no temporary; it can overflow by itself, so only then is every element looked at.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _text(checkpoint: Checkpoint, model: nn.Module, task: str, with_pooler: bool) -> FactoryModel:
    lacking = [name for name in heads.TEXT_INPUTS[:2] if name not in inspect.signature(model.forward).parameters]
    if lacking:
        raise SourceError(
            f"{checkpoint.folder}: {type(model).__name__} takes no {' and no '.join(lacking)}; bertc reads masked text and "
            "raw-audio encoders, for anything else write a Python factory (package.module:function)"
        )
    names = heads.text_inputs(model)
    pooling = read_chain(checkpoint, task).pooling if task in EMBEDDINGS else None
    if pooling and pooling.kind == "Pooling" and pooling.config.get("include_prompt") is False:
        names = (*names, PROMPT_MASK)
    limit = position_limit(model)
    length = min(EXAMPLE_LENGTH, limit or EXAMPLE_LENGTH)
    inputs = _text_example(names, int(getattr(model.config, "vocab_size", 2)), EXAMPLE_BATCH + (length == EXAMPLE_BATCH), length)
    if task in EMBEDDINGS:
        width = read_settings(settings_files(checkpoint.root, checkpoint.place)).truncate_dim
        module: nn.Module = heads.embedding(model, read_chain(checkpoint, task), width)
    elif task == "features":
        module = heads.Features(model, with_pooler and _has_pooler(model, inputs))
    else:
        module = (heads.QuestionAnswering if task == "question-answering" else heads.Logits)(model)
    dims = dict.fromkeys(names, ("batch", "length"))
    shortest = SHORTEST_TRACED.get(str(checkpoint.config.get("model_type")), 1)
    return FactoryModel(module.eval(), inputs, dims, module.outputs, {"length": (shortest, limit)})  # type: ignore[arg-type]


def _has_pooler(model: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    try:
        # Not inference_mode: what a model caches in it cannot be exported afterwards.
        with torch.no_grad(), quiet():
            return model(**inputs, return_dict=True).get("pooler_output") is not None
    except Exception as error:  # whatever the model's code raises
        name = type(model).__name__
        if "pixel_values" not in inspect.signature(model.forward).parameters:
            raise SourceError(f"{name} does not run on a plain batch of token ids: {root_cause(error)}") from error
        advice = "write a Python factory (package.module:function) that returns the part that you want"
        if hasattr(getattr(model, "text_model", None), "save_pretrained"):
            saved = "AutoModel.from_pretrained(DIR).text_model.save_pretrained(TEXT)"
            advice = f"save its text tower, and copy the tokenizer to it: {saved}"
        why = f"{name} takes images (pixel_values) beside token ids, and bertc builds encoders of one"
        raise SourceError(f"{why}; {advice}") from error


def _text_example(names: Sequence[str], vocabulary: int, batch: int, length: int) -> dict[str, Tensor]:
    # Small ids are special tokens (padding among them), so stay clear of them where the vocabulary allows.
    low = min(10, vocabulary // 2)
    ids = low + torch.arange(batch * length, dtype=torch.int64).reshape(batch, length) % (vocabulary - low)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    made = {"input_ids": ids, "attention_mask": ones, "token_type_ids": zeros, PROMPT_MASK: ones}
    return {name: made[name] for name in names}


def position_limit(model: nn.Module) -> int | None:
    """The longest sequence the position embeddings allow; None where nothing limits it.

    A table with a padding index (RoBERTa) starts counting after it: 514 rows are 512 positions.
    """
    configured = getattr(model.config, "max_position_embeddings", None)
    limits = [int(configured)] if isinstance(configured, int) and configured > 0 else []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            skipped = module.padding_idx + 1 if module.padding_idx is not None else int(getattr(module, "offset", 0))
            limits.append(module.num_embeddings - skipped)
    return min(limits, default=None)


def _audio(checkpoint: Checkpoint, model: nn.Module, task: str) -> FactoryModel:
    # torch.export takes a size of 1 for a constant, and refuses a range of samples in which the frames can be 1.
    squeezed = frames_squeezed(checkpoint.config)
    smallest = smallest_samples(checkpoint.config, frames=2 * squeezed)
    # Where frames are squeezed, one too few for a whole group: the model fills that up, and by none is right as well.
    samples = smallest_samples(checkpoint.config, EXAMPLE_FRAMES * squeezed + squeezed - 1) + 1
    values = torch.linspace(-1.0, 1.0, EXAMPLE_BATCH * samples).reshape(EXAMPLE_BATCH, samples).sin()
    inputs = {"input_values": values}
    if takes_audio_mask(checkpoint):
        inputs["attention_mask"] = torch.ones(EXAMPLE_BATCH, samples, dtype=torch.int64)
    module = heads.Audio(model, "last_hidden_state" if task == "audio-features" else "logits").eval()
    dims = dict.fromkeys(inputs, ("batch", "samples"))
    return FactoryModel(module, inputs, dims, module.outputs, {"samples": (smallest, largest_samples(checkpoint.config))})


def _table_notes(checkpoint: Checkpoint) -> list[str]:
    frames = frames_of_table(checkpoint.config)
    told = "PyTorch makes a longer one for a longer recording, the graph takes no more (max_source_positions in config.json)"
    return [] if frames is None else [f"the table of relative positions has {frames} frames: {told}"]


def _mel(takes: MelInput, model: nn.Module, task: str) -> FactoryModel:
    sizes = {"batch": EXAMPLE_BATCH, FRAMES: EXAMPLE_LENGTH}
    shape = [size if isinstance(size, int) else sizes[size] for size in takes.dims]
    inputs = {takes.name: torch.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape).mul(100.0).sin()}
    dims = {takes.name: takes.dims}
    if takes.masked:
        inputs["attention_mask"] = torch.ones(shape[:2], dtype=torch.int64)
        dims["attention_mask"] = takes.dims[:2]
    head = heads.MelFrames if takes.name == "input_features" else heads.Audio
    module = head(model, "last_hidden_state" if task == "audio-features" else "logits").eval()
    limits = {FRAMES: (2, takes.longest)} if FRAMES in takes.dims else None
    return FactoryModel(module, inputs, dims, module.outputs, limits)


# ---- module -> graph -------------------------------------------------------------------------------------------------


def export_module(made: FactoryModel, opset: int) -> tuple[Graph, tuple[str, ...]]:
    """Export a module to a graph with the declared input names, output names and dimensions; also returns the output names.

    Weights are shared with the module. Raises SourceError naming input and dimension when the model's code does not work
    for every size of a declared dynamic dimension, and for everything else the exporter refuses.
    """
    if opset < MIN_OPSET:
        raise SourceError(f"opset {opset} is too old: bertc exports {MIN_OPSET} or newer (Gelu and wide LayerNormalization)")
    outputs = output_names(made)
    called = exportable(made)
    with quiet(), torch.no_grad():
        model = _to_onnx(called, opset)
    by_name = dict(zip(call_order(called), model.graph.inputs, strict=True))
    model.graph.inputs[:] = [by_name[name] for name in made.inputs]
    if len(model.graph.outputs) != len(outputs):
        raise SourceError(f"{model_name(made)} has {len(outputs)} outputs, its exported graph {len(model.graph.outputs)}")
    exported.name_io(model, list(made.inputs), outputs)
    exported.name_dims(model, made.dims)
    exported.scrub_paths(model)
    if any(isinstance(part, nn.MultiheadAttention) for part in made.module.modules()):
        finite_masks(model)
    mark_origins(model)
    return Graph(model), outputs


def _to_onnx(made: FactoryModel, opset: int) -> Any:
    # Two steps, because torch.onnx.export alone retries a model that refuses a dynamic size with that size fixed.
    program, translations = trace(made)
    try:
        result = torch.onnx.export(
            program, dynamo=True, opset_version=opset, optimize=True, verbose=False, custom_translation_table=translations
        )
    except Exception as error:
        raise SourceError(f"{model_name(made)} cannot be expressed in ONNX opset {opset}: {root_cause(error)}") from error
    assert result is not None
    return result.model


def example_feeds(made: FactoryModel) -> dict[str, np.ndarray]:
    """The examples of a factory as feeds; bfloat16, which numpy lacks, as float32."""
    return {n: (e.float() if e.dtype is torch.bfloat16 else e).numpy(force=True) for n, e in made.inputs.items()}


def state_sha256(module: nn.Module) -> str:
    """Hash of a module's weights and of its class's source where there is one, in hexadecimal."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError, TypeError):  # a class made in an interpreter has no source
        digest.update(inspect.getsource(type(module)).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
