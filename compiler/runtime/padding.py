"""Feeds padded to a bucket, and outputs cut back: the same few shapes again and again, whatever the requests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core import DataError, Profile, TensorSpec, derived, is_mask

if TYPE_CHECKING:
    from ..core import Feeds, Outputs

IDS = "input_ids"
BY_NAME: Mapping[str, str] = {}  # of an artifact that does not tell the kinds of its masks
INVERTED = "inverted"  # a mask that is 1 where padding is


def pad_value(name: str, pad_id: int, masks: Mapping[str, str]) -> int:
    """What stands in an input where padding is."""
    return pad_id if name == IDS else int(masks.get(name) == INVERTED)


def padded_dim(inputs: Sequence[TensorSpec], masks: Mapping[str, str] = BY_NAME) -> str:
    """The dimension that padding makes longer: the last one of the mask. DataError where padding would change the result.

    `masks`: the kinds by input, as the manifest has them; without them an input is a mask by its name.
    """
    floats = [spec.name for spec in inputs if np.dtype(spec.dtype).kind not in "iub"]
    if floats:
        raise DataError(f"input {floats[0]!r} is not token ids: padding would change the result; run without padding")
    known = [s for s in inputs if (s.name in masks if masks else is_mask(s.name, s.dtype)) and len(s.dims) > 1]
    found = {spec.dims[-1] for spec in known}
    if len(found) != 1 or not isinstance(dim := next(iter(found)), str):
        raise DataError("the model has no mask [batch, length] to mark padding; run without padding")
    sums = {text for spec in inputs for text in spec.dims if isinstance(text, str) and derived(text)}
    computed = sorted(text for text in sums if text == dim or dim in getattr(derived(text), "names", ()))
    if computed:
        raise DataError(
            f"the model has a size that is computed from others ({computed[0]}), which padding would not be; run without padding"
        )
    return dim


def pad_feeds(
    feeds: Feeds, inputs: Sequence[TensorSpec], buckets: Sequence[Profile], pad_id: int, masks: Mapping[str, str] = BY_NAME
) -> dict[str, np.ndarray]:
    """Feeds [.., length] padded on the right to the smallest bucket that holds all their sizes; dtypes stay.

    Raises DataError for a model that padding is no good for, and for sizes that no bucket holds.
    """
    dim = padded_dim(inputs, masks)
    sizes = sizes_of(feeds, inputs)
    bound = _bound(sizes, dim, buckets)
    made = {}
    for spec in inputs:
        array = np.asarray(feeds[spec.name])
        after = [bound - sizes[dim] if d == dim else 0 for d in spec.dims]
        value = pad_value(spec.name, pad_id, masks)
        made[spec.name] = np.pad(array, [(0, n) for n in after], constant_values=value) if any(after) else array
    return made


def sizes_of(feeds: Feeds, inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """The size of each named dimension. DataError for a missing input or a wrong rank."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        if spec.name not in feeds or np.ndim(feeds[spec.name]) != len(spec.dims):
            found = f"shape {list(np.shape(feeds[spec.name]))}" if spec.name in feeds else "nothing"
            raise DataError(f"input {spec} got {found}: cannot be padded")
        named = zip(spec.dims, np.shape(feeds[spec.name]), strict=True)
        sizes |= {dim: size for dim, size in named if isinstance(dim, str)}
    return sizes


def _bound(sizes: Mapping[str, int], dim: str, buckets: Sequence[Profile]) -> int:
    def holds(bucket: Profile) -> bool:
        others = [(r, sizes[name]) for name, r in bucket.items() if name != dim and name in sizes]
        return sizes[dim] <= bucket[dim].max and all(r.min <= size <= r.max for r, size in others)

    found = [bucket[dim].max for bucket in buckets if dim in bucket and holds(bucket)]
    if not found:
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items())
        known = " or ".join(",".join(f"{name}={r.min}..{r.max}" for name, r in p.items()) for p in buckets)
        raise DataError(f"no bucket of this artifact fits {asked} (its profiles: {known or 'none'})")
    return min(found)


def cut_outputs(
    outputs: Outputs, inputs: Sequence[TensorSpec], specs: Sequence[TensorSpec], feeds: Feeds, masks: Mapping[str, str] = BY_NAME
) -> Outputs:
    """Outputs as long as the unpadded `feeds`. DataError for an output whose length is computed from theirs."""
    dim = padded_dim(inputs, masks)
    length = sizes_of(feeds, inputs)[dim]
    made = {}
    for spec in specs:
        derived = [d for d in spec.dims if isinstance(d, str) and d != dim and dim in re.findall(r"\w+", d)]
        if derived:
            raise DataError(f"output {spec} has a size computed from {dim} and cannot be cut back; run without padding")
        made[spec.name] = outputs[spec.name][tuple(slice(length) if d == dim else slice(None) for d in spec.dims)]
    return made
