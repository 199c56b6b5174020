"""PyTorch on one side, a graph on the other: load a checkpoint, export a module, run it for the truth.

With heads.py the only part of the source that imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import logging
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..core import Dim, Feeds, Outputs, SourceError
from ..data import PROMPT_MASK, read_settings, settings_files
from ..graph import Graph, mark_origins
from ..graph import io_names as exported
from . import heads
from .chain import EMBEDDINGS, read_chain
from .checkpoint import Checkpoint, smallest_samples, takes_audio_mask
from .factory import FactoryModel, dims_of
from .loading import is_pooler, load_model, root_cause

MIN_OPSET = 20
POSITION_TABLES = frozenset({"position_embeddings", "embed_positions", "wpe"})
# MobileBERT puts the words beside a word next to it, and torch.export takes the one word beside it at length 2 for a constant.
SHORTEST_TRACED = {"mobilebert": 3}
EXAMPLE_BATCH, EXAMPLE_LENGTH, EXAMPLE_FRAMES = 2, 13, 7
FIXED = re.compile(r"specialized it to be a constant \((\d+)\)")


class _OtherThreads:
    """stderr for every thread but this one: torch prints the traced code when it refuses it; a progress bar goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch and transformers say nothing: what matters is checked and becomes an error or a note of bertc."""
    # Not imported for the sake of silence alone: a factory may do without transformers.
    hf_logging: Any = sys.modules.get("transformers.utils.logging")
    before, bars = logging.root.manager.disable, hf_logging is not None and hf_logging.is_progress_bar_enabled()
    logging.disable(logging.CRITICAL)
    if bars:
        hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(cast(TextIO, _OtherThreads(sys.stderr))):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            hf_logging.enable_progress_bar()


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
    if checkpoint.is_audio:
        made = _audio(checkpoint, model, task)
        # Tracing must be told "two frames or more" (below); the graph is right from one frame on.
        return made, dims_of(made) | {"samples": Dim("samples", smallest_samples(checkpoint.config, frames=1))}, notes
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
        raise SourceError(f"{type(model).__name__} does not run on a plain batch of token ids: {root_cause(error)}") from error


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
    smallest = smallest_samples(checkpoint.config, frames=2)
    samples = smallest_samples(checkpoint.config, EXAMPLE_FRAMES) + 1
    values = torch.linspace(-1.0, 1.0, EXAMPLE_BATCH * samples).reshape(EXAMPLE_BATCH, samples).sin()
    inputs = {"input_values": values}
    if takes_audio_mask(checkpoint):
        inputs["attention_mask"] = torch.ones(EXAMPLE_BATCH, samples, dtype=torch.int64)
    module = heads.Audio(model, "last_hidden_state" if task == "audio-features" else "logits").eval()
    dims = dict.fromkeys(inputs, ("batch", "samples"))
    return FactoryModel(module, inputs, dims, module.outputs, {"samples": (smallest, None)})


# ---- module -> graph -------------------------------------------------------------------------------------------------


def export_module(made: FactoryModel, opset: int) -> tuple[Graph, tuple[str, ...]]:
    """Export a module to a graph with the declared input names, output names and dimensions; also returns the output names.

    Weights are shared with the module. Raises SourceError naming input and dimension when the model's code does not work
    for every size of a declared dynamic dimension, and for everything else the exporter refuses.
    """
    if opset < MIN_OPSET:
        raise SourceError(f"opset {opset} is too old: bertc exports {MIN_OPSET} or newer (Gelu and wide LayerNormalization)")
    symbols = {name: torch.export.Dim(name, min=dim.min, max=dim.max) for name, dim in dims_of(made).items()}
    shapes = {n: {axis: symbols[d] for axis, d in enumerate(made.dims[n]) if isinstance(d, str)} for n in made.inputs}
    outputs = output_names(made)
    with quiet(), torch.no_grad():
        model = _to_onnx(made, shapes, opset)
    by_name = dict(zip(_call_order(made), model.graph.inputs, strict=True))
    model.graph.inputs[:] = [by_name[name] for name in made.inputs]
    if len(model.graph.outputs) != len(outputs):
        raise SourceError(f"{_name(made)} has {len(outputs)} outputs, its exported graph {len(model.graph.outputs)}")
    exported.name_io(model, list(made.inputs), outputs)
    exported.name_dims(model, made.dims)
    exported.scrub_paths(model)
    mark_origins(model)
    return Graph(model), outputs


def _to_onnx(made: FactoryModel, shapes: Mapping[str, dict[int, Any]], opset: int) -> Any:
    # torch.export makes one input of two that are the same tensor, and the graph then reads one name for both.
    args, kwargs = _arguments(made, {name: example.clone() for name, example in made.inputs.items()})
    dynamic = {name: shapes[name] for name in kwargs} if kwargs else tuple(shapes.values())
    # Two steps, because torch.onnx.export alone retries a model that refuses a dynamic size with that size fixed.
    try:
        program = torch.export.export(made.module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # the exporter raises what the model's code raises
        raise _explained(error, made) from error
    try:
        result = torch.onnx.export(program, dynamo=True, opset_version=opset, optimize=True, verbose=False)
    except Exception as error:
        raise SourceError(f"{_name(made)} cannot be expressed in ONNX opset {opset}: {root_cause(error)}") from error
    assert result is not None
    return result.model


def _call_order(made: FactoryModel) -> list[str]:
    """Input names in the order of forward's parameters, where they match; else in the declared order."""
    parameters = inspect.signature(made.module.forward).parameters
    matching = set(made.inputs) <= set(parameters)
    return [name for name in parameters if name in made.inputs] if matching else list(made.inputs)


def _arguments(made: FactoryModel, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Tensors by name, where forward has parameters of these names; else by position."""
    if set(made.inputs) <= set(inspect.signature(made.module.forward).parameters):
        return (), {name: tensors[name] for name in _call_order(made)}
    return tuple(tensors[name] for name in made.inputs), {}


def output_names(made: FactoryModel) -> tuple[str, ...]:
    """Names of the module's outputs, given or derived; runs it on its example. Raises SourceError if that is no flat tensors."""
    args, kwargs = _arguments(made, made.inputs)
    try:
        with torch.no_grad(), quiet():
            result = made.module(*args, **kwargs)
    except Exception as error:  # the user's own code
        raise SourceError(f"{_name(made)} fails on its own example: {root_cause(error)}") from error
    names, tensors = _flat(result)
    for name, value in zip(names, tensors, strict=True):
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise SourceError(f"{_name(made)} returns a {kind} as {name}; expected a tensor, or a flat tuple or dict of tensors")
    if made.outputs is not None and len(made.outputs) != len(names):
        raise SourceError(f"{_name(made)} returns {len(names)} tensors, {len(made.outputs)} output names are given")
    wanted = tuple(made.outputs or names)
    for position, name in enumerate(wanted):
        if name in made.inputs or name in wanted[:position]:
            what = "an input" if name in made.inputs else "another output"
            raise SourceError(f"{_name(made)}: output {name!r} has the name of {what}; give `outputs` with other names")
    return wanted


def _flat(result: Any) -> tuple[list[str], list[Any]]:
    if isinstance(result, Mapping):
        return [str(name) for name in result], list(result.values())
    if isinstance(result, tuple | list):
        names = list(getattr(result, "_fields", [f"output_{i}" for i in range(len(result))]))
        return names, list(result)
    return ["output"], [result]


def module_runner(made: FactoryModel, outputs: Sequence[str]) -> Callable[[Feeds], Outputs]:
    """Runs the module itself: numpy in, numpy out (floats as float32) in the graph's order of outputs."""

    def run(feeds: Feeds) -> Outputs:
        with torch.inference_mode(), quiet():
            args, kwargs = module_arguments(made, feeds)
            return outputs_to_arrays(made.module(*args, **kwargs), outputs)

    return run


def module_arguments(made: FactoryModel, feeds: Feeds) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The module's positional and named arguments from numpy arrays, in the types of its examples."""
    return _arguments(made, {n: torch.from_numpy(np.ascontiguousarray(feeds[n])).to(e.dtype) for n, e in made.inputs.items()})


def example_feeds(made: FactoryModel) -> dict[str, np.ndarray]:
    """The examples of a factory as feeds; bfloat16, which numpy lacks, as float32."""
    return {n: (e.float() if e.dtype is torch.bfloat16 else e).numpy(force=True) for n, e in made.inputs.items()}


def outputs_to_arrays(result: Any, outputs: Sequence[str]) -> Outputs:
    """What the module returned as numpy arrays by name, floats as float32."""
    found = [value.float() if value.is_floating_point() else value for value in _flat(result)[1]]
    return {name: value.numpy() for name, value in zip(outputs, found, strict=True)}


def state_sha256(module: nn.Module) -> str:
    """Hash of a module's weights and of its class's source where there is one, in hexadecimal."""
    digest = hashlib.sha256()
    with contextlib.suppress(OSError, TypeError):  # a class made in an interpreter has no source
        digest.update(inspect.getsource(type(module)).encode())
    for name, value in module.state_dict().items():
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# ---- what went wrong -------------------------------------------------------------------------------------------------


def _name(made: FactoryModel) -> str:
    inner = getattr(made.module, "model", None)
    return type(inner if isinstance(made.module, heads.TextHead | heads.Audio) else made.module).__name__


def _explained(error: Exception, made: FactoryModel) -> SourceError:
    """The exporter's refusal as an error that names the dimension, where it is about one."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if not lines or "Constraints violated" not in lines[0]:
        return SourceError(f"{_name(made)} cannot be exported: {root_cause(error)}")
    detail = next((line for line in lines[1:] if line.startswith(("You marked", "Not all values"))), lines[0])
    violated = lines[0].partition("(")[2]
    ports = [(dim, name) for name in made.inputs for dim in made.dims[name] if isinstance(dim, str)]
    named = [(d, n) for d, n in ports if re.search(rf"\b{d}\b", detail) or re.search(rf"\b{d}\b", violated)]
    dim, name = named[0] if named else ("?", "?")
    fixed = FIXED.search(detail)
    what = f"is fixed at {fixed[1]} by the model's code" if fixed else "does not take every size it was declared for"
    fixes = [f for f in lines if f.startswith(f"{dim} = ")]
    if fixes and fixes[-1].partition(" = ")[2] in {d for d, _ in ports}:
        other = fixes[-1].partition(" = ")[2]
        return SourceError(f"{_name(made)}: dimension {dim!r} of input {name!r} always equals {other!r}; give both one name")
    hint = f" (torch.export suggests: {fixes[-1]})" if fixes else ""
    return SourceError(f"{_name(made)}: dimension {dim!r} of input {name!r} {what}: {detail}{hint}")
