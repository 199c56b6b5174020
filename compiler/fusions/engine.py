"""Fuse a graph: normalise, apply every rule in order, prove each match; check the counts against a fusion contract."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import CheckFailed, DataError, Dim, NotFused, RecipeError
from ..data import Sample
from ..data import synthetic as data
from ..graph import Graph, mark_origins, module_path, opset, sink_swaps
from ..graph import normalization as cleanup
from ..source import describe_quantised
from . import families
from .rewrite import Applied, Change, Prove, Refusal, apply_rules

if TYPE_CHECKING:
    import numpy as np
    from onnxscript.rewriter import pattern

    from ..ops import Body

# The order is this list. bias_gelu comes before linear, which would take the bias; attention is made of linear and sdpa.
ORDER = (
    "layernorm",
    "gelu",
    "weight_norm",
    "conv1d_gelu",
    "bias_gelu",
    "linear",
    "onnx_attention",
    "sdpa",
    "flat_attention",
    "rotary",
    "full_mask",
    "attention",
    "rotary_attention",
    "disentangled_attention",
    "past_attention",
    "cross_attention",
    "mask",
    "causal",
    "embeddings",
    "skip_layernorm",
)
SWAPPED = "cross_attention"  # behind it every attention is batch first, and the layers between them may be
SHOWN = 5
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block|blocks|albert_layers)\.(\d+)(?:\.|$)")


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused graph and what the rules did to it."""

    graph: Graph
    change: Change
    notes: tuple[str, ...] = ()


def fuse(
    graph: Graph,
    dims: Mapping[str, Dim],
    *,
    prove: bool = True,
    rules_file: Path | None = None,
    seed: int = 0,
    lowerings: Mapping[str, Mapping[str, Body]] | None = None,
    samples: Sequence[Sample] = (),
) -> Fused:
    """Clean and fuse a copy of `graph`, converted to opset 20 where it is older.

    With `prove` every match is replayed against what takes its place before it is kept.

    `lowerings` are the tables of the targets that will be built: what takes a match's place is proven for each of them too. One
    of the `samples` (synthetic ones if none are given) is run through the graph: matches are replayed on its activations as well.
    Raises RecipeError for a rules file that cannot be used, and NotFused for quantised activations or an old graph that cannot be
    converted.
    """
    if found := describe_quantised(graph):
        raise NotFused(f"activations are quantised already ({found}), and fusing needs floats; the graph runs as it is given")
    marked = graph.copy()
    mark_origins(marked.model)
    upgraded = opset.upgrade_opset(marked)
    clean = cleanup.normalize(upgraded.graph)
    prover: Prove | None = None
    notes: tuple[str, ...] = ()
    if prove:
        from .proof.prover import Prover

        captured, notes = _activations(graph, dims, samples, seed)
        prover = Prover(clean, dims, seed=seed, lowerings=lowerings, activations=captured)
    applied: list[Applied] = []
    refusals: list[Refusal] = []
    for name in ORDER:
        module = importlib.import_module(f".rules.{name}", __package__)
        clean, change = (
            module.apply(clean, prover)
            if hasattr(module, "apply")
            else apply_rules(clean, named_rules(name, module.RULES), prover, in_place=True)
        )
        applied += change.applied
        refusals += change.refusals
        if name == SWAPPED:
            clean = sink_swaps(clean)
    if rules_file is not None:
        clean, change = apply_rules(clean, named_rules(rules_file.stem, rules_from_file(rules_file)), prover, in_place=True)
        applied += change.applied
        refusals += change.refusals
    return Fused(clean, Change(tuple(applied), tuple(refusals)), (*upgraded.notes, *notes))


def _activations(
    graph: Graph, dims: Mapping[str, Dim], samples: Sequence[Sample], seed: int
) -> tuple[dict[str, Sequence[np.ndarray]], tuple[str, ...]]:
    """Captured values by name, and a note where there are none."""
    from .proof.activations import capture_activations

    try:
        found = capture_activations(graph, samples or data.synthetic_samples(graph, dims, seed))
    except DataError as error:
        return {}, (f"matches were proven on random activations only, because the graph does not run: {error}",)
    return {name: (array,) for name, array in found.items()}, ()


def named_rules(name: str, rules: Sequence[pattern.RewriteRule]) -> list[tuple[str, pattern.RewriteRule]]:
    """Rules under the name of their file."""
    return [(name, rule) for rule in rules]


def rules_from_file(path: Path) -> Sequence[pattern.RewriteRule]:
    """RULES of a user's Python file; it is run, so only a file the user names is read. RecipeError when it has none."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(f"--rules {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RecipeError(f"--rules {path} failed: {type(error).__name__}: {error}") from error
    rules = getattr(module, "RULES", None)
    if not rules:
        raise RecipeError(f"--rules {path} has no RULES, a list of onnxscript rewrite rules")
    return list(rules)


def layers_of(graph: Graph) -> int:
    """How many transformer layers the exporter's module paths tell of; 0 where it left none.

    ALBERT runs one layer many times under one path: its softmaxes are counted.
    """
    paths = [(node.op_type, module_path(node)) for node in graph.model.graph]
    found = {int(m[1]) for _, path in paths for m in LAYER.finditer(path)}
    runs = sum(op_type in ("Softmax", "Attention") and "albert_layers." in path for op_type, path in paths)
    return max(*found, runs - 1) + 1 if found else 0


def expect_fusions(graph: Graph, change: Change, family: str) -> None:
    """Check the counts against the fusion contract of a family (`bert`, or `bert:6` for its number of layers).

    Raises CheckFailed naming each rule that fell short, the layer, the node and the reasons of its candidates.
    """
    name, given = families.parse(family)
    layers = given or layers_of(graph)
    if layers == 0:
        raise RecipeError(f"the graph has no layer names to count; give the number of layers: --expect {name}:6")
    counts = change.counts()
    short = {
        rule: (counts.get(rule, 0), n) for rule, n in families.expected_counts(name, layers).items() if counts.get(rule, 0) < n
    }
    if short:
        raise CheckFailed("\n".join(_shortfall(rule, found, wanted, change) for rule, (found, wanted) in short.items()))


def _shortfall(rule: str, found: int, wanted: int, change: Change) -> str:
    misses = [r for r in change.refusals if r.rule == rule]
    reasons = "\n".join(f"    {each}" for each in misses[:SHOWN]) or "    no candidate in the graph"
    return f"{rule}: {found} of {wanted} found; candidates not fused:\n{reasons}"


def fusions_to_json(fused: Fused, before: Graph) -> dict[str, Any]:
    """Counts, matches and refusals, and operators before and after."""
    return {
        **fused.change.to_json(),
        "notes": list(fused.notes),
        "ops_before": before.op_counts(),
        "ops_after": fused.graph.op_counts(),
    }
