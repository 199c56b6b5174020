"""Integer outputs: labels, ranks, flags. They are equal or not; how far apart two labels are says nothing.

Where the source chose between two scores that are equal within the tolerance, either choice is right (a tie). The scores are not
among the outputs, so the graph says what it chose by: they are computed for the samples that disagree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from ..core import Feeds, counted
from ..data import Sample
from ..graph import Graph
from ..runtime import TapSession
from .closeness import OutputResult
from .decisions import Decision

_KEEPS = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten"})
_SIGMOIDS = frozenset({"Sigmoid", "HardSigmoid"})
_OF_ONE = _SIGMOIDS | {"Softmax"}  # their results are exact to a part of 1, not of themselves
_LARGEST = frozenset({"ArgMax", "ArgMin", "TopK"})
_COMPARED = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The node that chooses, the values it chooses by (names, or numbers) and the axis it chooses along."""

    node: str
    scores: tuple[str | np.ndarray, ...]
    axis: int = -1


class Ties:
    """Which different choices are ties in a graph: their scores differ by `allowed` of the largest one, or less.

    `of_one`: the outputs whose values are exact to a part of 1, however small they are (see OutputSums). `single`: those of a
    sigmoid, of which each value says something by itself; what stands beside it is another place, and no vector with it.
    """

    def __init__(self, graph: Graph, allowed: float) -> None:
        self._graph, self._allowed = graph, allowed
        self._open, self._sessions = contextlib.ExitStack(), dict[str, TapSession]()
        self.of_one = frozenset(str(v.name) for v in graph.model.graph.outputs if _comes_of(v, _OF_ONE))
        self.single = frozenset(str(v.name) for v in graph.model.graph.outputs if _comes_of(v, _SIGMOIDS))
        self._choices = {str(v.name): found for v in graph.model.graph.outputs if (found := _choice_of(v)) is not None}

    def _session(self, name: str, choice: _Choice) -> TapSession:
        if name not in self._sessions:
            scores = [score for score in choice.scores if isinstance(score, str)]
            self._sessions[name] = self._open.enter_context(TapSession(self._graph, scores))
        return self._sessions[name]

    def tied(self, name: str, expected: np.ndarray, got: np.ndarray, feeds: Feeds) -> np.ndarray:
        """For each element whether both choices are right, by the scores of this graph."""
        choice = self._choices.get(name)
        if choice is None:
            return expected == got
        found = self._session(name, choice).run(feeds)
        scores = [np.asarray(found[s] if isinstance(s, str) else s, np.float64) for s in choice.scores]
        largest = float(np.abs(scores[0][np.isfinite(scores[0])]).max(initial=0.0))
        peak = max(largest, float(np.finfo(np.float32).tiny))
        gap = _gap_of_pair(scores, expected.shape) if choice.node in _COMPARED else _gap(scores[0], choice.axis, expected, got)
        return (expected == got) | (np.zeros(expected.shape, bool) if gap is None else gap <= self._allowed * peak)


def _gap(scores: np.ndarray, axis: int, expected: np.ndarray, got: np.ndarray) -> np.ndarray | None:
    """How far the score of one choice is from that of the other, element by element."""
    shape, width = list(scores.shape), scores.shape[axis]
    others = scores.size // width
    if not others or expected.size % others or ((got < 0) | (got >= width) | (expected < 0) | (expected >= width)).any():
        return None
    shape[axis] = expected.size // others
    a, b = (np.take_along_axis(scores, choice.reshape(shape).astype(np.int64), axis) for choice in (expected, got))
    return np.where(a == b, 0.0, np.abs(a - b)).reshape(expected.shape)


def _gap_of_pair(scores: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray | None:
    gap = np.abs(scores[0] - scores[1])
    return gap.reshape(shape) if gap.size == math.prod(shape) else None


def _comes_of(output: ir.Value, operators: Collection[str]) -> bool:
    """Whether an output is that of one of these operators, moved about at most."""
    node = output.producer()
    while node is not None and not node.domain and node.op_type in _KEEPS | {"Transpose"} and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and not node.domain and node.op_type in operators


def _choice_of(output: ir.Value) -> _Choice | None:
    """The choice that an integer output is, behind casts and reshapes."""
    if output.dtype is None or output.dtype.is_floating_point():
        return None
    value, node = output, output.producer()
    while node is not None and not node.domain and node.op_type in _KEEPS and node.inputs[0] is not None:
        value, node = node.inputs[0], node.inputs[0].producer()
    if node is None or node.domain or (node.op_type == "TopK" and value is not node.outputs[1]):
        return None
    if node.op_type in _COMPARED:
        scores = [found for found in map(_score, node.inputs) if found is not None]
        computed = len(scores) == 2 and any(isinstance(score, str) for score in scores)
        return _Choice(node.op_type, tuple(scores)) if computed else None
    if node.op_type not in _LARGEST or node.inputs[0] is None or node.inputs[0].producer() is None:
        return None
    axis = node.attributes.get("axis")
    return _Choice(node.op_type, (str(node.inputs[0].name),), axis.as_int() if axis else (-1 if node.op_type == "TopK" else 0))


def _score(value: ir.Value | None) -> str | np.ndarray | None:
    """A computed value by its name, a constant as numbers; None for an input, which is the same on both sides."""
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    if constant is not None:
        return constant.numpy()
    return str(value.name) if value is not None and value.producer() is not None else None


class ChoiceSums:
    """Running counts of one integer output."""

    def __init__(self, name: str, ties: Callable[[str, np.ndarray, np.ndarray, Feeds], np.ndarray] | None) -> None:
        self.name, self._ties = name, ties
        self.vectors = self.changed = self.tied = self.uncompared = self.width = self._rows = 0
        self.worst = ""

    def add(self, expected: np.ndarray, got: np.ndarray, sample: Sample, batch: int) -> None:
        if sample.dead_rows and (expected.ndim == 0 or len(expected) != batch):
            self.uncompared += 1
            return
        wrong = expected != got
        alive = np.ones(expected.shape, bool)
        if sample.dead_rows:
            alive[list(sample.dead_rows)] = False
        right = expected == got
        if self._ties is not None and (wrong & alive).any():
            right = self._ties(self.name, expected, got, sample.feeds)
        self.vectors += int(alive.sum())
        self.width = expected.shape[-1] if expected.ndim > 1 else 1
        self._rows += int(alive.any(axis=tuple(range(1, alive.ndim))).sum()) if alive.ndim else 1
        self.tied += int((wrong & right & alive).sum())
        lost = ~right & alive
        self.changed += int(lost.sum())
        if lost.any() and not self.worst:
            self.worst = sample.where(int(np.argwhere(np.atleast_1d(lost))[0][0]))

    def result(self) -> OutputResult:
        """Its relative error is nothing that a label has, and 0; `changed` counts."""
        signal = 10 * math.log10(self.vectors / self.changed) if self.changed else math.inf
        return OutputResult(
            self.name, 0.0, 0.0, 1.0, 1.0, signal, self.vectors, self.width, 0, self.uncompared, self.worst, self.worst,
            changed=self.changed, tied=self.tied, integer=True,
        )  # fmt: skip

    def decision(self) -> Decision:
        note = counted(self.tied, "tie") if self.tied else ""
        return Decision(self.name, self.vectors - self.changed, self.vectors, self.worst, note, self._rows)
