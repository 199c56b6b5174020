"""Quantise a lowered float32 graph in the requested form: static int8, fp8, dynamic int8, int8 weights, or the fastest."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .. import precision
from ..core import Advance, Progress
from ..graph import Graph
from ..source import Source
from ..verification import Truth
from . import judging, timed_choice
from .calibration.observe import Observed
from .dynamic import count_integer_gemms, dynamic_int8
from .request import LowBitRequest
from .static import StaticGraph, observe_rows, open_calibration, quantise_static
from .weights import weight_only


@dataclasses.dataclass(frozen=True)
class LowBitGraph:
    """The quantised graph and the precision to type it in, which a measurement may have changed from the requested one.

    `document`: the `int8` of the manifest. `measured`: what only the report has, because it depends on the time or the machine.
    `truth`: rows of the user's data with the float32 outputs, None without data.
    """

    graph: Graph
    precision: str
    document: Mapping[str, Any]
    truth: Truth | None = None
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def times_forms(precision: str, target: str) -> bool:
    """Whether the forms of int8 are timed on this machine, to build the fastest of them or none."""
    return precision == "int8" and target == "onnxruntime"


def quantise_graph(
    graph: Graph, source: Source, request: LowBitRequest, name: str, watch: Progress, parts: Sequence[Observed] = ()
) -> LowBitGraph:
    """Quantise a lowered float32 graph; notes go to `watch`. Raises what `quantise_static` and `dynamic_int8` raise.

    `name`: of the build. `parts`: results of `observe_part`, one for each part of the data, where that was done apart.
    """
    with watch.stage(f"{name}: quantise") as advance:
        if request.precision == "int8-weights":
            return _weights(graph, source, request, watch)
        if request.precision == "int8-dynamic":
            return _dynamic(graph, source, request, watch)
        made = quantise_static(graph, source, request, advance, parts)
    for note in made.notes:
        watch.note(note)
    if times_forms(request.precision, request.target):
        with watch.stage(f"{name}: compare forms"):
            return _fastest(graph, source, request, made, watch)
    return _static(made, request, watch)


def observe_part(graph: Graph, source: Source, request: LowBitRequest, part: tuple[int, int], advance: Advance) -> Observed:
    """Part (I, N) of the calibration alone, for `quantise_graph`. Raises what `open_calibration` raises."""
    return observe_rows(graph, open_calibration(graph, source, request), advance, part)


def _static(made: StaticGraph, request: LowBitRequest, watch: Progress) -> LowBitGraph:
    if made.chosen:
        return LowBitGraph(made.graph, request.precision, made.document, made.truth)
    reason = f"no layer is {made.document['kind']}: {made.document['why']}"
    watch.note(f"{reason}; {request.base} is built instead, within the budget of {request.base}")
    return LowBitGraph(made.graph, request.base, made.document, made.truth)


def _weights(graph: Graph, source: Source, request: LowBitRequest, watch: Progress) -> LowBitGraph:
    made, refused = weight_only(graph)
    for reason, count in sorted(collections.Counter(refused.values()).items()):
        watch.note(f"weights left in float: {count}: {reason}")
    document = {"kind": "int8-weights", "not_quantised": refused}
    return LowBitGraph(made, request.precision, document, held_out_truth(graph, source, request, watch))


def _dynamic(graph: Graph, source: Source, request: LowBitRequest, watch: Progress) -> LowBitGraph:
    made = dynamic_int8(graph, request.bits)
    document = {"kind": "int8-dynamic", "weight_bits": request.bits, "gemms": count_integer_gemms(made)}
    return LowBitGraph(made, request.precision, document, held_out_truth(graph, source, request, watch))


def _fastest(graph: Graph, source: Source, request: LowBitRequest, made: StaticGraph, watch: Progress) -> LowBitGraph:
    choice = timed_choice.time_forms(graph, source, made, request)
    watch.note(choice.summary())
    kept = {"fp32": request.base, "static": request.precision, "dynamic": "int8-dynamic"}[choice.kept]
    return LowBitGraph(choice.graph, kept, made.document, made.truth, {"candidates": choice.to_json()})


def held_out_truth(graph: Graph, source: Source, request: LowBitRequest, watch: Progress | None = None) -> Truth | None:
    """Rows that judge a low-bit form of `graph`, with its float32 outputs; None without data. Notes of reading go to `watch`.

    The held-out rows where others calibrate, else all.
    """
    if request.data is None:
        return None
    from ..runtime import ReferenceRunner

    calibrated = request.precision in precision.CALIBRATED
    rows = judging.read_judging_rows(
        request.data, graph, source, request.profiles, calibrated=calibrated, max_drop=request.max_drop
    )
    if watch:
        for note in rows.notes:
            watch.note(note)
    return judging.truth_of_rows(rows, ReferenceRunner(graph).run)
