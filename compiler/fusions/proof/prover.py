"""The proof of a match: the matched nodes against the canonical body of what replaces them, and against each target's lowering.

Both sides become small ONNX models whose inputs are everything that comes from outside, weights too. So one ONNX Runtime
session serves every layer of the same structure, each match is still proven with its own weights, and nothing is compared with
itself: the two sides share no node. The feeds are made in `feeds.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...core import BertcError, BuildFailed, Dim, stop_if_exhausted
from ...graph import DOMAIN, OPSET, Graph, Refused, constant_of, extend_match, model_from_nodes, outer_values
from ...ops import Body
from ...ops import expansion as canonical
from ...runtime import open_session, reference_options
from ..rewrite import Match
from .feeds import DEAD, ROWS, Case, Feeder, find_masks, fixed_rows, keep_digits

Arrays = Mapping[ir.Value, np.ndarray]

LOWEST = -1e4  # what a mask writes where nobody looks is this or less; -inf may become such a number
BLOCK = 2**18  # numbers
EXTREME = 1e9  # such values are compared apart: beside -3.4e38 a mask of 1 in place of 0 is no error at all


@dataclasses.dataclass(frozen=True)
class _Side:
    """One side as a model: the values it reads, in the order of the session's inputs, and its session."""

    what: str
    inputs: tuple[ir.Value, ...]
    session: Any
    model: ir.Model

    def run(self, feeds: Arrays) -> list[np.ndarray]:
        return self.session.run(None, {f"i{index}": feeds[value] for index, value in enumerate(self.inputs)})


class Prover:
    """Answers for one match at a time: the largest relative error found, or a sentence why it must not be kept.

    `dims` are the ranges of the graph's named dimensions, `lowerings` a table of bodies by target, `activations` captured arrays
    by value name: where all that a match reads was captured, they are fed as well. The relative error of an output is
    max|a-b| / max|b| over the places where the original is finite; there the fused form must be finite too.
    """

    def __init__(
        self,
        graph: Graph,
        dims: Mapping[str, Dim],
        seed: int = 0,
        tolerance: float = 1e-5,
        lowerings: Mapping[str, Mapping[str, Body]] | None = None,
        activations: Mapping[str, Sequence[np.ndarray]] | None = None,
    ) -> None:
        self.opsets = {key: version for key, version in graph.model.opset_imports.items() if key != DOMAIN}
        self.functions = dict(graph.model.functions)
        self.ir_version = max(graph.model.ir_version or 0, 10)
        self.tolerance = tolerance
        self.lowerings = dict(lowerings or {})
        self.activations = dict(activations or {})
        self._feeder = Feeder(graph, dims, seed)
        self._sessions: dict[bytes, Any] = {}

    def __call__(self, match: Match) -> float | str:
        try:
            return self._prove(match)
        except (Refused, BertcError) as why:
            return f"not proven: {why}"

    def _prove(self, match: Match) -> float:
        read = outer_values(match.new_nodes)
        nodes = extend_match(match.nodes, read)
        given = outer_values(nodes)
        unknown = [v for v in read if constant_of(v) is None and v not in given]
        if unknown:
            raise Refused(f"the new node reads {unknown[0].name!r}, which the matched nodes do not depend on")
        for before, after in zip(match.outputs, match.new_outputs, strict=True):
            after.type, after.shape = before.type, before.shape  # a lowering may read them
        constants = {v: c.numpy() for v in {**given, **read} if (c := constant_of(v)) is not None}
        old = self._side("the original", nodes, match.outputs, None)
        new = [self._side("the canonical body", match.new_nodes, match.new_outputs, {})]
        new += [self._side(f"{target}'s lowering", match.new_nodes, match.new_outputs, t) for target, t in self.lowerings.items()]
        shared = [v for v in given if v in read]
        fed = [v for v in given if v not in constants]
        masks = find_masks(nodes, fed, match)
        if fixed := fixed_rows(fed, match.outputs):
            with contextlib.suppress(Refused):  # then a size is written into one of the sides, and all cases are replayed at it
                first = itertools.islice(self._feeder.cases(nodes, fed, match, constants, shared), 1)
                own = self._compare(itertools.chain(first, self._captured(fed, masks)), constants, old, _unlike(new), match)
                free = [self._of_any_rows(side, fed, fixed) for side in (old, *_unlike(new))]
                few = self._feeder.cases(nodes, fed, match, constants, shared, fixed)
                return max(own, self._compare(few, constants, free[0], free[1:], match))
        cases = self._feeder.cases(nodes, fed, match, constants, shared)
        return self._compare(itertools.chain(cases, self._captured(fed, masks)), constants, old, _unlike(new), match)

    def _captured(self, values: Sequence[ir.Value], masks: set[ir.Value]) -> Iterator[Case]:
        arrays = [self.activations.get(str(v.name)) for v in values]
        if not values or any(a is None for a in arrays):
            return
        for index, taken in enumerate(zip(*arrays, strict=False)):
            feeds = dict(zip(values, taken, strict=True))
            feeds |= {v: keep_digits(feeds[v]) for v in masks if feeds[v].dtype.kind == "f" and feeds[v].ndim}
            yield Case(f"captured activations {index}", feeds)

    def _compare(self, cases: Iterable[Case], constants: Arrays, old: _Side, new: Sequence[_Side], match: Match) -> float:
        worst, compared = 0.0, 0
        failed = ""
        for case in cases:
            feeds = {**constants, **case.feeds}
            try:
                wanted = old.run(feeds)
            except Exception as reason:
                stop_if_exhausted(reason)
                failed = f"{case.label}: {_line(reason)}"
                if case.may_fail:
                    continue
                raise Refused(f"the original could not be run ({failed})") from reason
            for number, side in enumerate(new[:1] if case.weights else new):
                judged = dataclasses.replace(case, dead=DEAD) if case.rounded and number else case
                error = _run(side, judged, feeds, wanted, match.outputs)
                if not error <= self.tolerance:
                    raise Refused(
                        f"{side.what} has a relative error of {error:.3g} ({case.label}), above {self.tolerance:g}; "
                        "check the order of its inputs and its attributes"
                    )
                worst = max(worst, error)
            compared += any(np.isfinite(array).any() for array in wanted if array.size)
        if not compared:
            raise Refused(f"nothing could be compared: {failed or 'the original gives no finite number for any input'}")
        return worst

    def _side(
        self, what: str, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value], lowerings: Mapping[str, Body] | None
    ) -> _Side:
        """`lowerings` None: the original, at the opset of its graph; a new side needs at least the bodies' opset."""
        model, inputs = model_from_nodes(nodes, outputs, dict(self.opsets), self.ir_version)
        model.functions.update({key: function.clone() for key, function in self.functions.items()} if _calls(nodes, self) else {})
        if lowerings is not None or any(node.domain == DOMAIN for node in nodes):
            model.opset_imports[""] = max(model.opset_imports.get("", 0), OPSET)
        canonical.inline(model, lowerings or {})
        for value in list(model.graph.initializers.values()):  # weights that a lowering made
            model.graph.initializers.pop(str(value.name))
            model.graph.inputs.append(value)
            inputs.append(value)
        for index, value in enumerate(model.graph.inputs):
            value.name = f"i{index}"
        return _Side(what, tuple(inputs), self._session(model, what), model)

    def _of_any_rows(self, side: _Side, fed: Sequence[ir.Value], rows: int) -> _Side:
        """The same nodes with inputs that take any number of rows."""
        model = side.model.clone()
        for value, given in zip(side.inputs, model.graph.inputs, strict=True):
            if value in fed and value.shape is not None and value.shape[0] == rows:
                given.shape = ir.Shape(["rows", *value.shape.dims[1:]])
        return dataclasses.replace(side, session=self._session(model, side.what), model=model)

    def _session(self, model: ir.Model, what: str) -> Any:
        _rename(model.graph)
        data = ir.to_proto(model).SerializeToString(deterministic=True)
        key = hashlib.sha256(data).digest()
        if key not in self._sessions:
            self._sessions[key] = _open(data, what)
        return self._sessions[key]


def _unlike(sides: Sequence[_Side]) -> list[_Side]:
    """The sides that are models of their own, in order: what a target does not lower is the canonical body to the byte."""
    found: dict[tuple[int, tuple[ir.Value, ...]], _Side] = {}
    for side in sides:
        found.setdefault((id(side.session), side.inputs), side)
    return list(found.values())


def _open(data: bytes, what: str) -> Any:
    try:
        return open_session(data, reference_options())
    except BuildFailed as error:
        raise Refused(f"ONNX Runtime rejects {what}: {_line(error.__cause__)}") from error


def _run(side: _Side, case: Case, feeds: Arrays, wanted: Sequence[np.ndarray], outputs: Sequence[ir.Value]) -> float:
    made = {v: c.numpy() for v in side.inputs if v not in feeds and (c := constant_of(v)) is not None}
    try:
        got = side.run({**feeds, **made})
    except Exception as error:
        stop_if_exhausted(error)
        raise Refused(f"{side.what} does not run where the original does ({case.label}): {_line(error)}") from error
    what = f"{side.what} ({case.label})"
    return max(distance(*_living(a, b, case, v, what), what) for a, b, v in zip(got, wanted, outputs, strict=True))


def _living(got: np.ndarray, wanted: np.ndarray, case: Case, value: ir.Value, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Both without the dead row, which is looked at here."""
    if case.dead is None or wanted.shape != got.shape or wanted.dtype.kind != "f" or not wanted.ndim:
        return got, wanted
    axis, each = _batch_axis(value, wanted, case.batch)
    rows = range(case.dead * each, (case.dead + 1) * each)
    if (np.isfinite(wanted.take(rows, axis)) & ~np.isfinite(got.take(rows, axis))).any():
        raise Refused(f"{what} gives NaN or Inf; a fully masked row must stay finite")
    return np.delete(got, rows, axis), np.delete(wanted, rows, axis)


def _batch_axis(value: ir.Value, array: np.ndarray, batch: str | None) -> tuple[int, int]:
    """Where the batch is in an output and what each row has there (heads may be folded into it; 0: no batch), by its name.

    The first axis, if it is as long, where the name tells nothing.
    """
    dims = [dim if isinstance(dim, ir.SymbolicDim) and dim.value else None for dim in value.shape or ()]
    for axis, dim in enumerate(dims):
        if dim is not None and (dim.value == batch or _symbols(dim) == {batch}) and array.shape[axis] % ROWS == 0:
            return axis, array.shape[axis] // ROWS
    return 0, int(array.shape[:1] == (ROWS,))


def _symbols(dim: ir.SymbolicDim) -> set[str]:
    try:
        return {str(name) for name in dim.free_symbols()}
    except ValueError:  # not arithmetic
        return set()


def distance(got: np.ndarray, wanted: np.ndarray, what: str = "the new form") -> float:
    """max|got - wanted| / max|wanted| over finite places, infinite for other integers. Raises Refused for what is never right."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise Refused(f"{what} gives {got.dtype}{list(got.shape)}, the original {wanted.dtype}{list(wanted.shape)}")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else np.inf
    if np.array_equal(got, wanted):  # no NaN in either
        return 0.0
    differences, peaks = [0.0, 0.0], [0.0, 0.0]
    for a, b in zip(_blocks(got), _blocks(wanted), strict=True):
        finite = np.isfinite(b)
        if (finite & ~np.isfinite(a)).any() or (np.isnan(a) & ~np.isnan(b)).any():
            raise Refused(f"{what} gives NaN or Inf; a fully masked row must stay finite")
        if (np.isinf(b) & ~(a * np.sign(b) >= -LOWEST)).any():
            raise Refused(f"{what} gives ordinary numbers where the original is infinite")
        extreme = finite & (np.abs(b) >= EXTREME)
        for at, part in enumerate((extreme, finite & ~extreme)):
            kept = b[part]
            differences[at] = max(differences[at], float(np.abs(a[part] - kept).max(initial=0)))
            peaks[at] = max(peaks[at], float(np.abs(kept).max(initial=0)))
    return max(map(_relative, differences, peaks))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Its numbers in float64, a few at a time: activations of a fixed size take gigabytes."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK].astype(np.float64)


def _relative(difference: float, peak: float) -> float:
    return difference / peak if peak else (np.inf if difference else 0.0)


def _line(error: BaseException | None) -> str:
    return str(error).strip().splitlines()[0][:300]


def _calls(nodes: Sequence[ir.Node], prover: Prover) -> bool:
    return any(node.op_identifier() in prover.functions for node in nodes)


def _rename(graph: ir.Graph) -> None:
    """Names by position and no metadata, so that equal structures have equal bytes."""
    for position, node in enumerate(graph):
        node.name = f"n{position}"
        node.metadata_props.clear()
        for index, value in enumerate(node.outputs):
            value.name = f"v{position}.{index}"
            if value not in graph.outputs:
                value.type = value.shape = None
            else:
                value.shape = None
