"""Engines of int8 graphs: kernels, bytes, and what the builder's log proves; pure forms, a peer's graph, and mixed plans."""

from __future__ import annotations

import dataclasses
import itertools
import random
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from bertc import precision
from bertc.core import profiles
from bertc.core.errors import BuildFailed
from bertc.graph.model import Graph, load_graph, save_graph
from bertc.precision._value_ranges import Evidence
from bertc.quant.fit import Fitted
from bertc.quant.insert import insert_qdq
from bertc.quant.sites import ATTENTION, Site
from bertc.source.types import Source
from bertc.targets import BuildRequest, Built, tensorrt_rtx

from .tools import table

SM, SEEDS = "sm89", 10
HEAD = ["graph", "kernels a layer", "kernels", "plan, MB", "GEMMs proven int8"]


@dataclasses.dataclass(frozen=True)
class Engine:
    """What one compilation made, or why it made nothing."""

    layers: str
    count: int
    nbytes: int
    int8: str

    def row(self, name: str) -> list[str]:
        return [name, self.layers, str(self.count), f"{self.nbytes / 1e6:.1f}", self.int8]


def engine(graph: Graph, mode: str, source: Source) -> Engine:
    """Compile a typed graph. BuildFailed where the compiler refuses it or a quantised GEMM does not read int8."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.onnx")
        save_graph(graph, path)
        sizes = (profiles.parse_profile("", source.dims),)
        return _told(tensorrt_rtx.build(BuildRequest(graph, path, Path(folder), mode, (SM,), sizes)))


def _told(built: Built) -> Engine:
    facts = built.facts
    layers = facts["kernels"].get("layers", {})
    counts = sorted(set(layers.values() if isinstance(layers, dict) else layers), key=str)
    found = facts["gemms"]
    proven = f"{found['int8']} of {found['asked']} asked" if "asked" in found else "0"
    return Engine(" to ".join(map(str, (counts[0], counts[-1]))) if len(counts) > 1 else str(*counts), facts["kernels"]["count"],
                  facts["engine_bytes"], proven)  # fmt: skip


def of_peer(path: Path, source: Source) -> list[str] | str:
    """The row of a peer's file, or why it is none."""
    try:
        return engine(load_graph(path), "int8", source).row("modelopt.onnx")[1:]
    except BuildFailed as why:
        return str(why)


def typed(graph: Graph, source: Source, evidence: Evidence, mode: str = "int8") -> Graph:
    return precision.get(mode).apply(graph, evidence).graph


def boundaries(sites: Sequence[Site], int8: Collection[str]) -> int:
    """Changes of precision between consecutive sites in graph order."""
    kinds = [site.name in int8 for site in sites]
    return sum(a != b for a, b in itertools.pairwise(kinds))


def drawn(fitted: Sequence[Fitted], seed: int) -> list[Fitted]:
    """A random half of the sites, without the attentions whose projection is not among them."""
    rng = random.Random(seed)
    chosen = {each.site.name for each in fitted if rng.random() < 0.5}
    return [f for f in fitted if f.site.name in chosen and (f.site.kind != ATTENTION or f.site.needs in chosen)]


def mixed(graph: Graph, fitted: Sequence[Fitted], source: Source, evidence: Evidence, pure: int) -> str:
    """Ten random plans against the better pure form, `pure` kernels, and one more a boundary."""
    sites, rows, over = [each.site for each in fitted], [], []
    for seed in range(SEEDS):
        some = drawn(fitted, seed)
        kernels = engine(typed(insert_qdq(graph, some), source, evidence), "int8", source).count
        changes = boundaries(sites, {each.site.name for each in some})
        over.append(kernels - pure - changes)
        rows.append([str(seed), str(len(some)), str(changes), str(pure + changes), str(kernels)])
    worst = max(over)
    said = f"Worst: {worst} above that" if worst > 0 else f"All within it; the closest by {-worst}"
    head = ["plan (seed)", f"int8 sites of {len(sites)}", "boundaries", "better pure form + boundaries", "kernels"]
    return table(head, rows) + f"\n\n{said}; {sum(each > 0 for each in over)} of {SEEDS} plans are above."
