"""Wrappers that change no number of the module inside: torch.compile, DataParallel and their like. They are taken off."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed import is_available
from torch.optim.swa_utils import AveragedModel

from ...core import SourceError


def unwrap(module: nn.Module, where: str) -> tuple[nn.Module, list[str]]:
    """The module without its wrappers, those inside of it included, and a note of each kind that was taken away.

    Changes the module in place. Raises SourceError for what holds no code to export (TorchScript) or only a part of its weights.
    """
    _refuse(module, where)
    found: dict[str, list[str]] = {}
    plain = _unwrapped(module, "", found)
    _take_off_inside(plain, "", found)
    return plain, [_note(kind, places) for kind, places in found.items()]


def _take_off_inside(module: nn.Module, place: str, found: dict[str, list[str]]) -> None:
    if getattr(module, "_compiled_call_impl", None) is not None:  # module.compile(), in place
        module._compiled_call_impl = None
        found.setdefault("torch.compile", []).append(place)
    for name, child in list(module.named_children()):
        where = f"{place}.{name}".strip(".")
        plain = _unwrapped(child, where, found)
        if plain is not child:
            setattr(module, name, plain)
        _take_off_inside(plain, where, found)


def _note(kind: str, places: list[str]) -> str:
    inside = [place for place in places if place]
    shown = ", ".join(inside[:3]) + (f" and {len(inside) - 3} more" if len(inside) > 3 else "")
    return f"{kind} taken off {shown or 'the model'}: the module inside of it is exported"


def _unwrapped(module: nn.Module, place: str, found: dict[str, list[str]]) -> nn.Module:
    while (inner := _inside(module)) is not None:
        kind, module = inner
        found.setdefault(kind, []).append(place)
    return module


def _inside(module: nn.Module) -> tuple[str, nn.Module] | None:
    """(the wrapper's name, what it wraps)."""
    original = getattr(module, "_orig_mod", None)
    if isinstance(original, nn.Module):
        return "torch.compile", original
    for kind in _wrappers():
        if isinstance(module, kind):
            return kind.__name__, module.module  # type: ignore[return-value]  # a wrapper's module is one
    return None


def _wrappers() -> Iterator[type[nn.Module]]:
    yield from (nn.DataParallel, AveragedModel)
    if is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel

        yield from (nn.parallel.DistributedDataParallel, FullyShardedDataParallel)


def _refuse(module: nn.Module, where: str) -> None:
    for name, part in module.named_modules():
        inner = f"its part {name!r}" if name else "it"
        if isinstance(part, torch.jit.ScriptModule):
            raise SourceError(
                f"{where}: {inner} is TorchScript ({type(part).__name__}), which torch.export does not take. Return the "
                "nn.Module that it was made of, or write it with torch.onnx.export(..., dynamo=False) and give the .onnx file"
            )
    shards = [name for name, value in module.named_parameters() if _is_shard(value)]
    if shards:
        raise SourceError(
            f"{where}: {len(shards)} weights are parts spread over processes ({shards[0]}, {type(module).__name__}). Load the "
            "full state dict (get_model_state_dict of torch.distributed.checkpoint.state_dict, full_state_dict=True) into the "
            "plain module, and return that"
        )


def _is_shard(value: torch.Tensor) -> bool:
    return type(value).__name__ in ("DTensor", "FlatParameter") or hasattr(value, "_local_tensor")
