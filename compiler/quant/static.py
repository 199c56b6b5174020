"""The stages of INT8, and of FP8, in order: sites -> observe (all of the data, or parts of it) -> fit -> search -> insert."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core import Advance, Feeds, Profile, RecipeError
from ..data import Layout, UnpaddedSamples, index_bounds, preprocess
from ..data import unpadded as rows
from ..graph import Graph
from ..source import Source
from ..verification import Truth
from . import fp8, judging
from .attention import Attention
from .calibration.observe import BLOCK, Observed, merge_parts, observe_sites, require_samples
from .fit import Fitted, fit_sites
from .gated import Gated
from .insert import insert_qdq
from .judging import JudgingRows
from .request import LowBitRequest
from .search import Judge, SearchResult, search_int8
from .sites import Sites, find_sites

MAX_CALIBRATION_ROWS = 1000  # rows: more of them moved no figure of benchmarks/bench_int8.py


@dataclasses.dataclass(frozen=True)
class StaticGraph:
    """The graph with its Q/DQ pairs, its document for the manifest, notes, and the judging rows with their float32 outputs."""

    graph: Graph
    document: Mapping[str, Any]
    notes: tuple[str, ...]
    judge: Judge
    chosen: tuple[Fitted, ...]
    truth: Truth


@dataclasses.dataclass(frozen=True)
class CalibrationRows:
    """The sites of a graph, the rows that judge, and those that calibrate (`chosen` of `rows`)."""

    sites: Sites
    judged: JudgingRows
    rows: UnpaddedSamples
    chosen: tuple[int, ...]


def open_calibration(graph: Graph, source: Source, request: LowBitRequest) -> CalibrationRows:
    """Find the sites and read the data. DataError for data that is missing or unfit, RecipeError for a graph without a site."""
    assert request.data is not None, "the recipe was refused without"
    bounds = index_bounds(source.graph)
    limits, encoder, audio = preprocess.preprocessors(graph.inputs, source.dims, source.assets, request.profiles, bounds)
    samples = rows.open_unpadded(request.data, graph.inputs, limits, encoder, audio)
    judged = judging.read_judging_rows(request.data, graph, source, request.profiles, calibrated=True, max_drop=request.max_drop)
    kernel = request.attention if request.kind == "int8" else None
    products = Attention(kernel, request.profiles) if kernel else None
    sites = find_sites(graph, opt_feeds(graph, source, request.profiles), products)
    if not sites.found:
        reasons = "; ".join(sorted(set(sites.refused.values()))) or "it has none"
        raise RecipeError(f"no GEMM of the graph can be quantised: {reasons}")
    return CalibrationRows(sites, judged, samples, _calibrating(judged))


def observe_rows(graph: Graph, begun: CalibrationRows, advance: Advance, part: tuple[int, int] = (1, 1)) -> Observed:
    """Observe part (I, N) of the rows that calibrate: whole blocks, so that the parts merge exactly (see `observe`)."""
    number, parts = part
    blocks = -(-len(begun.chosen) // BLOCK)
    first, end = ((at * blocks) // parts for at in (number - 1, number))
    mine = set(begun.chosen[first * BLOCK : end * BLOCK])
    makers = (make for at, make in enumerate(begun.rows.open()) if at in mine)
    return observe_sites(graph, begun.sites, (make() for make in makers), len(begun.chosen), advance, first)


def quantise_static(
    graph: Graph, source: Source, request: LowBitRequest, advance: Advance, parts: Sequence[Observed] = ()
) -> StaticGraph:
    """Quantise a lowered float32 graph as far as the budget allows. `parts`: results of `observe_rows`, of all rows in order.

    Raises what `calibration` raises, and RecipeError where no GEMM of the graph can be quantised.
    """
    begun = open_calibration(graph, source, request)
    sites, judged = begun.sites, begun.judged
    seen = require_samples(merge_parts(parts) if parts else observe_rows(graph, begun, advance))
    fitted, refused = (
        fp8.fit_fp8_sites(graph, sites, seen) if request.kind == "fp8" else fit_sites(graph, sites, seen, bits=request.bits)
    )
    if not fitted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise RecipeError(f"no GEMM of the graph can be quantised: {reasons}")
    judge = Judge.over(Gated(graph, fitted), judged.samples, source.task, judged.labels, Layout.of(graph.inputs, graph.outputs))
    searched = search_int8(judge, fitted, sites.total, request.max_drop, advance)
    chosen = tuple(fitted[name] for name in searched.chosen)
    data = {"name": begun.rows.name, "sha256": begun.rows.sha256, "calibrated": seen.samples, "tokens": seen.tokens,
          "judged": judged.rows, "apart": not all(judged.judges)}  # fmt: skip
    document = _document(request, sites, fitted, refused, searched, data)
    made = insert_qdq(graph, chosen) if chosen else graph
    notes = _notes(document, refused, sites, begun.rows)
    return StaticGraph(made, document, notes, judge, chosen, judging.truth_of_rows(judged, judge.truth))


def _calibrating(judged: JudgingRows) -> tuple[int, ...]:
    """The rows that do not judge, spread over the file where it has more than are needed."""
    both = all(judged.judges)
    kept = [both or not judges for size, judges in zip(judged.sizes, judged.judges, strict=True) for _ in range(size)]
    return tuple([at for at, keep in enumerate(kept) if keep][:: max(1, math.ceil(sum(kept) / MAX_CALIBRATION_ROWS))])


def opt_feeds(graph: Graph, source: Source, profiles: tuple[Profile, ...]) -> Feeds:
    """Ones at the sizes that the first profile is best at."""
    sizes = {name: dim.min for name, dim in source.dims.items()}
    sizes |= {name: dim.opt for name, dim in profiles[0].items()} if profiles else {}
    return {spec.name: np.ones(spec.shape_at(sizes), spec.dtype) for spec in graph.inputs}


def _document(
    request: LowBitRequest, sites: Sites, fitted: Mapping[str, Fitted], refused: Mapping[str, str], searched: SearchResult,
    data: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    point = searched.point
    return {
        "data": dict(data),
        "metric": point.measure.name,
        "budget": request.max_drop,
        "kind": request.kind,
        "weight_bits": request.bits,
        "share": round(point.share, 6) if searched.chosen else 0.0,
        "curve": [each.to_json() for each in searched.curve],
        "chosen": searched.at,
        "curve_rows": searched.curve[searched.at].measure.rows,
        "confirmed": searched.confirmed.to_json() if searched.confirmed else None,
        "why": searched.why.replace("int8", request.kind),
        "sites": [_site(each, searched, sites.total) for each in fitted.values()],
        "not_quantised": {**sites.refused, **refused},
    }  # fmt: skip


def _site(each: Fitted, searched: SearchResult, total: float) -> dict[str, Any]:
    alone = searched.sensitivity.get(each.site.name)
    return {
        "name": each.site.name,
        "kind": each.site.kind,
        "module": each.site.module,
        "flops_share": round(each.site.flops / total, 6),
        "int8": each.site.name in searched.chosen,
        "alpha": each.alpha,
        "shift": each.shift,
        "error": float(f"{each.error:.4g}"),
        "sensitivity": None if alone is None else float(f"{alone:.4g}"),
    }


def _notes(document: Mapping[str, Any], refused: Mapping[str, str], sites: Sites, samples: UnpaddedSamples) -> tuple[str, ...]:
    data, kind = document["data"], document["kind"]
    point = document["confirmed"] or document["curve"][document["chosen"]]
    span = "" if point["low"] is None else f" (95 % interval {point['low']:.5f} to {point['high']:.5f})"
    share = f"{kind}: {100 * point['share']:.1f} % of the GEMM FLOPs, {document['metric']} {point['value']:.5f}{span}"
    rows = f"{data['judged']} held-out rows of {data['name']}, {data['calibrated']} others calibrated"
    if not data["apart"]:
        rows = f"{data['judged']} rows of {data['name']} that also calibrated (too few to hold any out)"
    notes = [f"{share} on {rows}: {document['why']}"]
    left = point["kept_in_fp"]
    if left:
        named = ", ".join(left[:3]) + (" and more (report.json)" if len(left) > 3 else "")
        notes.append(f"{len(left)} of {len(document['sites'])} layers left in float: {named}")
    names: dict[str, list[str]] = {}
    for name, reason in {**sites.refused, **refused}.items():
        names.setdefault(reason, []).append(name)
    for reason, each in names.items():
        notes.append(f"not {kind}: {len(each)} GEMMs ({each[0]}{' ...' if len(each) > 1 else ''}): {reason}")
    return (*notes, *samples.notes)
