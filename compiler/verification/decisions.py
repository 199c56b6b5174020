"""Whether an engine decides as its source does: the class, the tag, the span, the neighbour, the transcript."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..data import Sample, mask_feeds

Arrays = Mapping[str, np.ndarray]
TIE = 1e-6  # two neighbours whose cosines in the source differ by less are one choice: copies of a text, within fp32 rounding
BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Decision:
    """How many of `total` decisions agreed. No total: no decision could be compared, and `note` says why.

    `units` of them are independent: the rows where one row has many (tokens), half the rows where a decision is between two
    (Hoeffding, J. American Statistical Association 58, 1963, section 5a).
    """

    name: str
    agreed: int
    total: int
    worst: str = ""  # the first row that decided otherwise
    note: str = ""
    units: int = 0

    @property
    def value(self) -> float | None:
        """The agreeing fraction, None where nothing was compared."""
        return self.agreed / self.total if self.total else None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"agreement": self.value}


class DecisionCounter(Protocol):
    """One kind of decision, fed batch by batch."""

    def add(self, expected: Arrays, got: Arrays, sample: Sample) -> None: ...
    def result(self) -> Decision | None: ...


def decision_counters(task: str, blank: int = 0) -> tuple[DecisionCounter, ...]:
    """The decisions of a task; () where it has none (features, audio-features, a custom model)."""
    makers: dict[str, Callable[[], tuple[DecisionCounter, ...]]] = {
        "sequence-classification": lambda: (BatchDecisions("class", _classes), PairOrder()),
        "token-classification": lambda: (BatchDecisions("class of each position", _positions),),
        "masked-lm": lambda: (BatchDecisions("token of each position", _positions),),
        "question-answering": lambda: (BatchDecisions("answer span", _spans),),
        "sentence-embedding": lambda: (Neighbours(),),
        "audio-classification": lambda: (BatchDecisions("class", _classes),),
        "audio-frame-classification": lambda: (BatchDecisions("labels of each frame", _frames),),
        "ctc": lambda: (BatchDecisions("transcript", lambda e, g, s: _transcripts(e, g, s, blank)),),
    }
    return makers[task]() if task in makers else ()


def has_decisions(task: str) -> bool:
    """Whether a task has decisions to compare."""
    return bool(decision_counters(task))


# (agreement of each decision, row of each decision), or the reason why there is none
Compared = tuple[np.ndarray, np.ndarray] | str


class BatchDecisions:
    """Decisions that each batch settles by itself."""

    def __init__(self, name: str, compare: Callable[[Arrays, Arrays, Sample], Compared]) -> None:
        self.name, self.compare = name, compare
        self.agreed = self.total = self.units = 0
        self.worst = self.note = ""

    def add(self, expected: Arrays, got: Arrays, sample: Sample) -> None:
        compared = self.compare(expected, got, sample)
        if isinstance(compared, str):
            self.note = compared
            return
        agree, rows = compared
        live = ~np.isin(rows, sample.dead_rows)
        self.agreed += int(agree[live].sum())
        self.total += int(live.sum())
        self.units += len(np.unique(rows[live]))
        wrong = rows[live & ~agree]
        if len(wrong) and not self.worst:
            self.worst = sample.where(int(wrong[0]))

    def result(self) -> Decision:
        return Decision(self.name, self.agreed, self.total, self.worst, self.note, self.units)


def _matching_output(expected: Arrays, got: Arrays, name: str, rank: int) -> tuple[np.ndarray, np.ndarray] | str:
    """The output of that name, else the first of that rank."""
    ranked = [key for key, array in expected.items() if array.ndim == rank]
    if name in ranked:
        return expected[name], got[name]
    if ranked:
        return expected[ranked[0]], got[ranked[0]]
    return f"no output {name!r} and none of rank {rank} among {', '.join(expected)}"


def _classes(expected: Arrays, got: Arrays, sample: Sample) -> Compared:
    """argmax over [batch, classes]; the sign where there is a single logit."""
    matching = _matching_output(expected, got, "logits", 2)
    if isinstance(matching, str):
        return matching
    e, g = matching
    agree = (e[:, 0] > 0) == (g[:, 0] > 0) if e.shape[1] == 1 else e.argmax(-1) == g.argmax(-1)
    return agree, np.arange(len(e))


def _unmasked(sample: Sample, shape: tuple[int, ...]) -> np.ndarray:
    """Live positions [batch, length] by the first mask of that shape; all of them where there is none."""
    fitting = [mask for mask in mask_feeds(sample.feeds).values() if mask.shape == shape]
    return fitting[0] != 0 if fitting else np.ones(shape, bool)


def _positions(expected: Arrays, got: Arrays, sample: Sample) -> Compared:
    """argmax over [batch, length, classes] at each unmasked position."""
    matching = _matching_output(expected, got, "logits", 3)
    if isinstance(matching, str):
        return matching
    e, g = matching
    live = _unmasked(sample, e.shape[:2])
    return (e.argmax(-1) == g.argmax(-1))[live], np.nonzero(live)[0]


def _spans(expected: Arrays, got: Arrays, sample: Sample) -> Compared:
    """argmax of start_logits and of end_logits [batch, length] over unmasked positions, both equal."""
    if not {"start_logits", "end_logits"} <= set(expected):
        return f"no outputs 'start_logits' and 'end_logits' among {', '.join(expected)}"
    live = _unmasked(sample, expected["start_logits"].shape)
    agree = np.ones(len(live), bool)
    for name in ("start_logits", "end_logits"):
        e, g = (np.where(live, outputs[name], -np.inf).argmax(-1) for outputs in (expected, got))
        agree &= e == g
    return agree, np.arange(len(live))


def _transcripts(expected: Arrays, got: Arrays, sample: Sample, blank: int) -> Compared:
    """Greedy CTC of [batch, frames, symbols]: equal strings of ids. Frames of right padding are left out."""
    matching = _matching_output(expected, got, "logits", 3)
    if isinstance(matching, str):
        return matching
    e, g = (array.argmax(-1) for array in matching)
    frames = live_frames(sample, *e.shape)
    agree = [ctc_collapse(a[:n], blank) == ctc_collapse(b[:n], blank) for a, b, n in zip(e, g, frames, strict=True)]
    return np.array(agree, bool), np.arange(len(e))


def _frames(expected: Arrays, got: Arrays, sample: Sample) -> Compared:
    """The labels of each frame of [batch, frames, labels]: any number holds at once (speakers), by the signs of their logits."""
    matching = _matching_output(expected, got, "logits", 3)
    if isinstance(matching, str):
        return matching
    e, g = (array > 0 for array in matching)
    live = np.arange(e.shape[1]) < np.array(live_frames(sample, *e.shape[:2]))[:, None]
    return (e == g).all(-1)[live], np.nonzero(live)[0]


def live_frames(sample: Sample, rows: int, frames: int) -> list[int]:
    """How many frames of each row come from audio: as far into the frames as the last live sample is into the audio."""
    found = [mask for mask in mask_feeds(sample.feeds).values() if mask.ndim == 2 and len(mask) == rows]
    if not found:
        return [frames] * rows
    live = found[0] != 0
    ends = np.where(live.any(1), live.shape[1] - live[:, ::-1].argmax(1), 0)
    return [int(-(-frames * end // live.shape[1])) for end in ends]


def ctc_collapse(ids: Sequence[int] | np.ndarray, blank: int = 0) -> tuple[int, ...]:
    """Greedy CTC: repeated ids become one, then blanks go (Graves et al. 2006, section 3.1)."""
    ids = np.asarray(ids)
    kept = np.ones(len(ids), bool)
    kept[1:] = ids[1:] != ids[:-1]
    return tuple(int(i) for i in ids[kept & (ids != blank)])


class RowStore:
    """Rows of one output of the source and of the engine, kept in memory because the decision is between rows."""

    def __init__(self) -> None:
        self.expected: list[np.ndarray] = []
        self.got: list[np.ndarray] = []
        self.rows: list[str] = []
        self.note = ""

    def keep(self, e: np.ndarray, g: np.ndarray, sample: Sample) -> None:
        live = [row for row in range(len(e)) if row not in sample.dead_rows]
        self.expected.append(e[live].astype(np.float32))
        self.got.append(g[live].astype(np.float32))
        self.rows += [sample.where(row) for row in live]

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.expected), np.concatenate(self.got)


class PairOrder(RowStore):
    """The order of all pairs of scores, for models with a single logit (rankers); equal scores of the source do not count."""

    def add(self, expected: Arrays, got: Arrays, sample: Sample) -> None:
        matching = _matching_output(expected, got, "logits", 2)
        if not isinstance(matching, str) and matching[0].shape[1] == 1:
            self.keep(matching[0][:, 0], matching[1][:, 0], sample)

    def result(self) -> Decision | None:
        if not self.rows:
            return None
        e, g = self.arrays()
        agreed = total = 0
        worst = ""
        for at in range(len(e) - 1):
            order, other = np.sign(e[at] - e[at + 1 :]), np.sign(g[at] - g[at + 1 :])
            wrong = (order != 0) & (order != other)
            total += int((order != 0).sum())
            agreed += int(((order != 0) & ~wrong).sum())
            if wrong.any() and not worst:
                worst = f"{self.rows[at]} and {self.rows[at + 1 + int(wrong.argmax())]}"
        note = "" if total else "not enough: no two different scores"
        return Decision("order of pairs", agreed, total, worst, note, min(total, len(e) // 2))


class Neighbours(RowStore):
    """The nearest other vector of each vector, by cosine."""

    def add(self, expected: Arrays, got: Arrays, sample: Sample) -> None:
        matching = _matching_output(expected, got, "sentence_embedding", 2)
        if isinstance(matching, str):
            self.note = matching
            return
        self.keep(*matching, sample)

    def result(self) -> Decision:
        name = "nearest neighbour"
        if self.note or len(self.rows) < 3:
            return Decision(name, 0, 0, note=self.note or f"not enough: {len(self.rows)} vectors, 3 needed")
        e, g = (_unit(array) for array in self.arrays())
        agree = np.ones(len(e), bool)
        for start in range(0, len(e), BLOCK):
            near, chosen = _cosines(e, start), _cosines(g, start).argmax(1)
            at = np.arange(len(chosen))
            agree[start : start + BLOCK] = near[at, chosen] >= near.max(1) - TIE
        agree &= np.isfinite(g).all(1)
        worst = "" if agree.all() else self.rows[int((~agree).argmax())]
        return Decision(name, int(agree.sum()), len(agree), worst, units=len(agree))


def _unit(array: np.ndarray) -> np.ndarray:
    return np.asarray(array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def _cosines(unit: np.ndarray, start: int) -> np.ndarray:
    """Cosines [block, all] of a block of rows with all rows; with itself: minus infinity."""
    cosines = np.asarray(unit[start : start + BLOCK] @ unit.T)
    at = np.arange(len(cosines))
    cosines[at, start + at] = -np.inf
    return cosines
