"""Whether a merged adapter computes what PEFT computes with it beside the weights.

PEFT merges each layer into the tensor that the layer holds. A tensor that two layers share (a decoder tied to the table of words,
layers that `layer_replication` repeats) would get the adapter of one of them in both, or of both in both: before the merge each
layer gets a tensor of its own, after it those that are still equal are one again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...core import SourceError

ROWS, LENGTH, SAMPLES = 2, 9, 16_000
CLOSE = 1e-4  # of the largest number: float32 sums in another order, through a whole model
Apart = list[tuple[str, str]]


def untie(wrapped: Any) -> Apart:
    """Give each module its own tensors; the names of those that were one, as they are after the merge."""
    first: dict[int, str] = {}
    apart = []
    for module, name, full in list(_parameters(wrapped)):
        value = module._parameters[name]
        if id(value) in first:
            module._parameters[name] = type(value)(value.detach().clone(), requires_grad=False)
            apart.append((_merged_name(first[id(value)]), _merged_name(full)))
        else:
            first[id(value)] = full
    return apart


def tie(merged: Any, apart: Apart) -> None:
    """Make those one again that the merge left equal: else a table is in the graph twice."""
    found = {full: (module, name) for module, name, full in _parameters(merged)}
    for one, other in apart:
        if one in found and other in found:
            (module, name), (second, its_name) = found[one], found[other]
            value = module._parameters[name]
            if value.equal(second._parameters[its_name]):
                second._parameters[its_name] = value


def _parameters(model: Any) -> Iterator[tuple[Any, str, str]]:
    """(module, name in it, full name), each module once: one that is called in many places is meant to be one."""
    for path, module in model.named_modules():
        for name, value in module._parameters.items():
            if value is not None:
                yield module, name, f"{path}.{name}" if path else name


def _merged_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def outputs(model: Any) -> list[np.ndarray] | None:
    """What a model makes of its `random_feed`; None where it has none."""
    import torch

    feed = random_feed(model)
    if feed is None:
        return None
    with torch.no_grad():
        made = model(**{model.main_input_name: torch.from_numpy(feed)}, return_dict=True)
    return [value.numpy() for value in made.to_tuple() if isinstance(value, torch.Tensor)]


def random_feed(model: Any) -> np.ndarray | None:
    """Random ids or samples; None for a model that takes neither alone."""
    rng = np.random.default_rng(0)
    takes = str(getattr(model, "main_input_name", ""))
    if takes == "input_ids":
        return rng.integers(0, int(model.config.vocab_size), (ROWS, LENGTH))
    if takes == "input_values" and hasattr(model.config, "conv_kernel"):
        return rng.standard_normal((ROWS, SAMPLES), dtype=np.float32)
    return None


def check(adapter: str, apart: list[np.ndarray] | None, merged: list[np.ndarray] | None) -> None:
    """Raises SourceError where a merged model computes something else than the model with its adapter beside it."""
    for index, (wanted, got) in enumerate(zip(apart or (), merged or (), strict=True)):
        error = float(np.abs(wanted - got).max() / (np.abs(wanted).max() or 1)) if wanted.shape == got.shape else float("inf")
        if not error <= CLOSE:
            raise SourceError(
                f"the adapter {adapter}, merged by PEFT, computes something else than beside the weights: output {index} is off "
                f"by {error:.1e} of its largest number; an adapter that has no merged form cannot be built, or it is damaged. If "
                "the merged model is the one you want, merge it with PEFT (merge_and_unload), save it with save_pretrained, and "
                "give that folder without --adapter"
            )
