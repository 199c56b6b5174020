"""The float32 weights that an artifact's half-precision ones were rounded from: those of its source, fused and lowered again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ... import targets
from ...core import BertcError
from ...fusions import engine as fusing
from ...graph import Graph
from ...runtime import HALVES, release_pages
from ...source import opening as source
from ...source import options_for

if TYPE_CHECKING:
    from ...artifact import Artifact
    from ...source import GivenSource


class UnroundedWeights:
    """Weights by the name that the artifact's graph has for them; read on use."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol], mapped: Graph) -> None:
        self.names, self._tensors = frozenset(tensors), tensors
        # A weight that is cut out of another is read through it, which would hold its pages.
        self._mapped = [v.const_value for v in mapped.model.graph.initializers.values() if v.const_value is not None]

    def read(self, name: str) -> np.ndarray:
        """float32."""
        array = np.ascontiguousarray(self._tensors[name].numpy(), np.float32)
        for tensor in self._mapped:
            release_pages(tensor)
        return array


def find_unrounded_weights(found: Artifact, graph: Graph, against: GivenSource | None) -> tuple[UnroundedWeights | None, str]:
    """The originals of a graph's half-precision weights, and a sentence where there are none, or not of all.

    A weight is taken for another's original only if it becomes that one, bit for bit, when it is rounded.
    """
    halves = {
        n: v.const_value for n, v in graph.model.graph.initializers.items() if v.dtype in HALVES and v.const_value is not None
    }
    if not halves:
        return None, ""
    rounded = "the artifact's rounded weights are used"
    if against is None:
        return None, f"no --against SOURCE: {rounded}"
    try:
        sha256, plain = source.open_graph(against.reference, options_for(found, against))
        if sha256 != found.manifest["source"]["sha256"]:
            return None, f"{against} is not the source that the artifact was built from: {rounded}"
        lowered = _lowered(found, plain)
    except BertcError as error:
        return None, f"the graph of {against} is not available ({error}): {rounded}"
    unrounded = {}
    for name, tensor in halves.items():
        original = lowered.get(name.rpartition(".")[0])
        if original is not None and _rounds_to(original, tensor):
            unrounded[name] = original
        release_pages(tensor)
    missing = [name for name in halves if name not in unrounded]
    if not missing:
        return UnroundedWeights(unrounded, plain), ""
    kept = f"{len(missing)} of {len(halves)} weights keep the artifact's rounded values ({', '.join(missing[:3])})"
    return UnroundedWeights(unrounded, plain), f"{kept}: not in the source, or changed by more than rounding"


def _lowered(found: Artifact, graph: Graph) -> dict[str, ir.TensorProtocol]:
    """Weights before they were typed. Nothing is proven again: what does not round to the artifact's weights is not used."""
    target = targets.get(found.target)
    if target.FUSES and found.manifest.get("passes") is not None:
        graph = fusing.fuse(graph, found.dims, prove=False).graph
    lowered = target.lower(graph, tuple(found.manifest["target"]["sms"]))
    return {n: v.const_value for n, v in lowered.model.graph.initializers.items() if v.const_value is not None}


def _rounds_to(original: ir.TensorProtocol, tensor: ir.TensorProtocol) -> bool:
    if tuple(original.shape.numpy()) != tuple(tensor.shape.numpy()):
        return False
    with np.errstate(over="ignore"):
        rounded = original.numpy().astype(tensor.dtype.numpy())
    return bool(np.array_equal(rounded.view(np.uint16), tensor.numpy().view(np.uint16)))
