"""What a step minimises: the losses that were chosen, each with its weight, of one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data import Tags
from . import losses
from .nets import Net, tensors
from .teachers import Teachers, mixed_logits
from .texts import Encoded, Example

NEEDS_LAYERS = ("embedding", "hidden", "attention", "relations")
RELATION_HEADS = 12
CACHED = ("sentence-embedding", "sequence-classification")  # one vector a text: computed once, not in every epoch
LOWEST = -1e4


@dataclasses.dataclass
class Lesson:
    """Encoded texts, and what the teachers gave for each of them where that is one vector a text."""

    examples: Sequence[Example]
    encoded: Encoded
    targets: Sequence[np.ndarray] = ()
    pairs: bool = False  # rows 2 i and 2 i + 1 are the two texts of example i

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def lengths(self) -> np.ndarray:
        found = self.encoded.lengths
        return found.reshape(-1, 2).sum(1) if self.pairs else found

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        return np.stack([2 * chosen, 2 * chosen + 1], 1).flatten() if self.pairs else chosen


@dataclasses.dataclass
class Batch:
    """One batch as the losses see it."""

    feeds: dict[str, Tensor]
    mask: Tensor
    rows: np.ndarray
    chosen: np.ndarray
    words: Tensor | None = None  # of a masked LM: the masked tokens, else IGNORED


class Objective(nn.Module):
    """The weighted sum of losses of a student and its teachers. Its own parameters are projections between widths, which learn
    with the student and are then thrown away."""

    def __init__(
        self,
        student: Net,
        teachers: Teachers,
        layers: Sequence[int],
        weights: Mapping[str, float],
        temperature: float,
        **more: Any,
    ) -> None:
        super().__init__()
        self.student, self.teachers, self.layers = student, teachers, tuple(layers)
        self.weights, self.temperature = dict(weights), temperature
        self.seed, self.mask_share = int(more.get("seed", 0)), float(more.get("mask_share", 0.15))
        deep = [name for name in NEEDS_LAYERS if name in self.weights]
        own = tuple(range(len(self.layers)))
        last = ("tokens" in self.weights and student.task == "masked-lm") or "relations" in deep
        hidden = {*(own if "hidden" in deep else ()), *((own[-1],) if last else ())}
        self.hidden = tuple(sorted({*hidden, *((-1,) if "embedding" in deep else ())}))
        self.projected = own if "attention" in deep else (own[-1:] if "relations" in deep else ())
        self.online = bool(deep) or student.task not in CACHED
        self.project = nn.ModuleDict()
        width, wide = student.width, teachers.first.width
        if width != wide:
            names = [name for name in ("embedding", "hidden", "tokens") if name in self.weights]
            self.project = nn.ModuleDict({name: nn.Linear(width, wide) for name in names})

    def forward(self, lesson: Lesson, chosen: np.ndarray, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the rows `chosen`, and each loss by its name without its weight."""
        batch = self._batch(lesson, chosen, step)
        student = self.student.run(batch.feeds, self.hidden, self.projected)
        teacher = None
        if self.online:
            there = tuple(self._of_teacher(at) for at in self.hidden)
            teacher = self.teachers.see(batch.feeds, there, tuple(self._of_teacher(at) for at in self.projected))
        found = {name: getattr(self, f"_{name.replace('-', '_')}")(lesson, batch, student, teacher) for name in self.weights}
        total = torch.stack([self.weights[name] * value for name, value in found.items()]).sum()
        return total, {name: float(value.detach()) for name, value in found.items()}

    def _of_teacher(self, at: int) -> int:
        return at if at < 0 else self.layers[at]

    def _batch(self, lesson: Lesson, chosen: np.ndarray, step: int) -> Batch:
        rows = lesson.rows(chosen)
        feeds = tensors(lesson.encoded.batch(rows), self.teachers.device)
        mask = feeds["attention_mask"].float()
        if "masked-lm" not in self.weights:
            return Batch(feeds, mask, rows, chosen)
        feeds["input_ids"], words = mask_words(feeds, self.student.encoder, self.mask_share, (self.seed, step))
        return Batch(feeds, mask, rows, chosen, words)

    # ---- one a loss ----

    def _cosine(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        return losses.cosine(student.output, self._mean_vector(lesson, batch))

    def _similarity(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        pairs = zip(self.teachers.shares, lesson.targets, strict=True)
        found = [share * losses.similarity(student.output, self._at(target, batch)) for share, target in pairs]
        return torch.stack(found).sum()

    def _logits(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        if lesson.targets and teacher is None:
            found = [self._at(target, batch) for target in lesson.targets]
            return losses.logits(student.output, mixed_logits(found, self.teachers.shares, self.temperature), self.temperature)
        if isinstance(student.output, tuple):  # start and end of an answer: the positions are the classes
            both = zip(student.output, teacher.output, strict=True)
            hide = batch.mask == 0
            parts = [(one.float().masked_fill(hide, LOWEST), two.float().masked_fill(hide, LOWEST)) for one, two in both]
            return torch.stack([losses.logits(*part, self.temperature) for part in parts]).mean()
        by_token = student.output.ndim == 3
        mask = (batch.words != losses.IGNORED) if batch.words is not None else (batch.mask if by_token else None)
        return losses.logits(student.output, teacher.output, self.temperature, mask)

    def _tokens(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        if self.student.task == "masked-lm":
            last = len(self.layers) - 1
            one, other = student.hidden[last], teacher.hidden[self.layers[last]]
        else:
            one, other = (each.output[0] if isinstance(each.output, tuple) else each.output for each in (student, teacher))
        return losses.tokens(self._fitted("tokens", one), other, batch.mask)

    def _embedding(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        return losses.embedding(self._fitted("embedding", student.entering), teacher.entering, batch.mask)

    def _hidden(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        pairs = [(self._fitted("hidden", student.hidden[at]), teacher.hidden[there]) for at, there in enumerate(self.layers)]
        return losses.hidden([one for one, _ in pairs], [other for _, other in pairs], batch.mask)

    def _attention(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        found: list[list[Tensor]] = [[], []]
        for at, there in enumerate(self.layers):
            for side, seen, place, net in ((0, student, at, self.student), (1, teacher, there, self.teachers.first)):
                q, k = seen.projected[place, "query"], seen.projected[place, "key"]
                found[side].append(losses.attention_scores(q, k, net.heads))
        return losses.attention(found[0], found[1], batch.mask)

    def _relations(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        last, roles = len(self.layers) - 1, ("query", "key", "value")
        one = [student.projected[last, role] for role in roles]
        other = [teacher.projected[self.layers[last], role] for role in roles]
        return losses.relations(one, other, batch.mask, relation_heads(self.student.width, self.teachers.first.width))

    def _margin(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        """Of each pair against the passage of the next one in the batch."""
        queries, passages = student.output[0::2].float(), student.output[1::2].float()
        right = torch.cosine_similarity(queries, passages)
        wrong = torch.cosine_similarity(queries, passages.roll(-1, 0))
        pairs = [(text[0], text[1]) for at in batch.chosen for text in (lesson.examples[at].text,)]
        others = [(query, other) for (query, _), (_, other) in zip(pairs, [*pairs[1:], pairs[0]], strict=True)]
        scored = self.teachers.scores([*pairs, *others])
        return losses.margin(right - wrong, scored[: len(pairs)] - scored[len(pairs) :])

    def _masked_lm(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        assert batch.words is not None, "_batch() masks for this loss"
        return losses.masked_lm(student.output, batch.words)

    def _labels(self, lesson: Lesson, batch: Batch, student: Any, teacher: Any) -> Tensor:
        return losses.task(student.output, label_array(lesson.encoded, batch.rows, batch.mask))

    # ---- targets ----

    def _fitted(self, name: str, value: Tensor) -> Tensor:
        return self.project[name](value) if name in self.project else value

    def _at(self, target: np.ndarray, batch: Batch) -> Tensor:
        return torch.from_numpy(target[batch.rows]).to(batch.mask.device)

    def _mean_vector(self, lesson: Lesson, batch: Batch) -> Tensor:
        return mean_vectors([self._at(each, batch) for each in lesson.targets], self.teachers.shares)


def mean_vectors(targets: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the directions of vectors that are as wide as the first teacher's; others teach similarities alone."""
    fitting = [(w, each) for w, each in zip(weights, targets, strict=True) if each.shape[-1] == targets[0].shape[-1]]
    return torch.stack([w * nn.functional.normalize(each.float(), dim=-1) for w, each in fitting]).sum(0)


def relation_heads(width: int, wide: int) -> int:
    """The most relation heads, up to RELATION_HEADS, that both widths can be split into."""
    return next(heads for heads in range(RELATION_HEADS, 0, -1) if width % heads == 0 and wide % heads == 0)


def mask_words(feeds: Mapping[str, Tensor], encoder: Any, share: float, seed: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(ids, labels): of the chosen tokens 80 % become [MASK], 10 % a random one, 10 % stay (Devlin et al., 2019, p. 4)."""
    ids = feeds["input_ids"].cpu().numpy()
    random = np.random.default_rng(seed)
    mask_id = encoder.tokenizer.token_to_id("[MASK]")
    mask_id = encoder.tokenizer.token_to_id("<mask>") if mask_id is None else mask_id
    special = np.isin(ids, list(encoder.special_ids)) | (feeds["attention_mask"].cpu().numpy() == 0)
    chosen = (random.random(ids.shape) < share) & ~special
    labels = np.where(chosen, ids, losses.IGNORED)
    kind = random.random(ids.shape)
    made = np.where(chosen & (kind < 0.8), ids if mask_id is None else mask_id, ids)
    made = np.where(
        chosen & (kind >= 0.8) & (kind < 0.9), random.integers(0, encoder.tokenizer.get_vocab_size(), ids.shape), made
    )
    device = feeds["input_ids"].device
    return torch.from_numpy(made).to(device), torch.from_numpy(labels).to(device)


def label_array(encoded: Encoded, rows: np.ndarray, mask: Tensor) -> Tensor:
    """The labels of a batch: a class or a number a row, or a class a token; IGNORED where there is none."""
    gold = [encoded.labels[at] for at in rows]
    if not any(isinstance(each, Tags) for each in gold):
        values = [losses.IGNORED if each is None else getattr(each, "value", each) for each in gold]
        return torch.tensor(values, device=mask.device)
    made = np.full(tuple(mask.shape), losses.IGNORED, np.int64)
    for at, (row, each) in enumerate(zip(rows, gold, strict=True)):
        if each is not None:
            left = encoded.encoder.padding_side == "left"
            shift = mask.shape[1] - len(encoded.rows[row]["input_ids"]) if left else 0
            made[at, [place + shift for place in each.positions]] = each.ids
    return torch.from_numpy(made).to(mask.device)
