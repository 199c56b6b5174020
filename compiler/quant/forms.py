"""What a low-bit precision makes of a lowered float32 graph: a function for each form, and an answer that says what to build."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import precision
from ..core import Advance, Profile, Progress
from ..graph import Graph
from ..source import Source
from ..targets import Int8Attention
from ..verification import Truth
from . import judging
from . import timed_choice as contest
from .calibration.observe import Observed
from .dynamic import count_integer_gemms, dynamic_int8
from .saturation import weight_bits
from .static import StaticGraph, StaticRequest, observe_rows, open_calibration, quantise_static
from .weights import weight_only


@dataclasses.dataclass(frozen=True)
class LowBitRequest:
    """A low-bit build. `base`: what is built where nothing of it is worth quantising. `data`: None for forms that need none.

    `max_drop`: the limit that a search keeps to (see `limit_of`), None to quantise all that can be.
    """

    precision: str
    target: str
    base: str
    attention: Int8Attention | None
    data: Path | None
    max_drop: float | None
    profiles: tuple[Profile, ...]


@dataclasses.dataclass(frozen=True)
class LowBitGraph:
    """The graph, and the precision it is to be typed in, which is not the one asked for where a measurement said so; the
    `int8` of the manifest, and what the report's has beside it, because it depends on the time or the machine; and rows of the
    user's data with what float32 answered, None where there is no data."""

    graph: Graph
    precision: str
    document: Mapping[str, Any]
    truth: Truth | None = None
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def drop_limit(budget: Mapping[str, float]) -> float | None:
    """What int8 may cost: `max_drop`, else the decisions that `agreement` lets change; None where nothing is limited."""
    if "max_drop" in budget:
        return budget["max_drop"]
    return 1 - budget["agreement"] if "agreement" in budget else None


def times_forms(precision: str, target: str) -> bool:
    """Whether it is measured on this machine which form of int8 is built, or none."""
    return precision == "int8" and target == "onnxruntime"


def quantise_graph(
    graph: Graph, source: Source, asked: LowBitRequest, name: str, watch: Progress, parts: Sequence[Observed] = ()
) -> LowBitGraph:
    """Raises what `quantise` and `dynamic` raise; the notes of what was done go to `watch`.

    `name`: of the build. `parts`: what `observed` gave for every part of the data, where that was done apart.
    """
    with watch.stage(f"{name}: quantise") as advance:
        if asked.precision == "int8-weights":
            return _weights(graph, source, asked, watch)
        if asked.precision == "int8-dynamic":
            return _dynamic(graph, source, asked, watch)
        made = quantise_static(graph, source, _request(asked), advance, parts)
    for note in made.notes:
        watch.note(note)
    if times_forms(asked.precision, asked.target):
        with watch.stage(f"{name}: compare forms"):
            return _fastest(graph, source, asked, made, watch)
    return _static(made, asked, watch)


def observe_part(graph: Graph, source: Source, asked: LowBitRequest, part: tuple[int, int], advance: Advance) -> Observed:
    """Part (I, N) of the calibration alone, for `prepare` to take. Raises what `quantise.calibration` raises."""
    return observe_rows(graph, open_calibration(graph, source, _request(asked)), advance, part)


def _request(asked: LowBitRequest) -> StaticRequest:
    kind = "fp8" if asked.precision == "fp8" else "int8"
    assert asked.data is not None, "the recipe was refused without"
    return StaticRequest(asked.data, asked.max_drop, asked.profiles, asked.attention, weight_bits(asked.target), kind)


def _static(made: StaticGraph, asked: LowBitRequest, watch: Progress) -> LowBitGraph:
    kept = asked.precision if made.chosen else asked.base
    if not made.chosen:
        said = f"nothing is {made.document['kind']}: {made.document['why']}; {kept} is built in its place"
        watch.note(f"{said} and judged by the limits of {kept}")
    return LowBitGraph(made.graph, kept, made.document, made.truth)


def _weights(graph: Graph, source: Source, asked: LowBitRequest, watch: Progress) -> LowBitGraph:
    made, refused = weight_only(graph)
    for why in sorted(set(refused.values())):
        watch.note(f"weights kept in floating point: {sum(each == why for each in refused.values())}: {why}")
    return LowBitGraph(
        made, asked.precision, {"kind": "int8-weights", "not_quantised": refused}, held_out_truth(graph, source, asked, watch)
    )


def _dynamic(graph: Graph, source: Source, asked: LowBitRequest, watch: Progress) -> LowBitGraph:
    bits = weight_bits(asked.target)
    made = dynamic_int8(graph, bits)
    document = {"kind": "int8-dynamic", "weight_bits": bits, "gemms": count_integer_gemms(made)}
    return LowBitGraph(made, asked.precision, document, held_out_truth(graph, source, asked, watch))


def _fastest(graph: Graph, source: Source, asked: LowBitRequest, made: StaticGraph, watch: Progress) -> LowBitGraph:
    found = contest.time_forms(graph, source, made, _request(asked), watch)
    watch.note(found.said())
    kept = {"fp32": asked.base, "static": asked.precision, "dynamic": "int8-dynamic"}[found.kept]
    return LowBitGraph(found.graph, kept, made.document, made.truth, {"candidates": found.to_json()})


def held_out_truth(graph: Graph, source: Source, asked: LowBitRequest, watch: Progress | None = None) -> Truth | None:
    """The rows that judge a form of `graph`, which is float32; None where no data was given. Where nothing calibrates, all of
    them judge, and what reading them said goes to `watch`."""
    if asked.data is None:
        return None
    from ..runtime import ReferenceRunner

    read = judging.read_judging_rows(
        asked.data, graph, source, asked.profiles, apart=asked.precision in precision.CALIBRATED, limit=asked.max_drop
    )
    if watch:
        for note in read.notes:
            watch.note(note)
    return judging.truth_of_rows(read, ReferenceRunner(graph).run)
