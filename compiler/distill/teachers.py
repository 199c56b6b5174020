"""One teacher or several: frozen, run without gradients, and shown at the end to be what they were at the start."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Advance, CheckFailed, InputError, silent
from ..source import torch_export
from .nets import Net, Seen, tensors
from .settings import shares
from .texts import Encoded, Example, encode

AT_ONCE = 128  # texts


@dataclasses.dataclass
class Teachers:
    """`nets` are of one task and give the target by their `shares`; `rerankers` score pairs. The first one is who the student is
    cut from, and whose layers it is compared with."""

    nets: tuple[Net, ...]
    shares: tuple[float, ...]
    rerankers: tuple[Net, ...] = ()
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    hashes: tuple[str, ...] = ()

    @property
    def first(self) -> Net:
        return self.nets[0]

    def freeze(self) -> None:
        """No gradients, no dropout; and the hash of every parameter and buffer, for `check_untouched`."""
        for net in (*self.nets, *self.rerankers):
            net.module.eval().requires_grad_(False).to(self.device)
        self.hashes = self._hashes()

    def check_untouched(self) -> None:
        """CheckFailed where a teacher is not what it was: what was learned from it would be learned from something else."""
        for at, (now, before) in enumerate(zip(self._hashes(), self.hashes, strict=True)):
            if now != before:
                name = (*self.nets, *self.rerankers)[at].origin.root
                raise CheckFailed(
                    f"the teacher {name} changed while the student learned (sha256 of its weights {before[:12]}..., then "
                    f"{now[:12]}...): the student is of no use. Nothing may write to a frozen teacher: please report this"
                )

    def _hashes(self) -> tuple[str, ...]:
        return tuple(torch_export.state_sha256(net.module) for net in (*self.nets, *self.rerankers))

    @torch.no_grad()
    def see(self, feeds: dict[str, Tensor], hidden: tuple[int, ...], projected: tuple[int, ...]) -> Seen:
        """What the first teacher makes of a batch, its output mixed with those of the others."""
        with self.autocast():
            seen = self.first.run(feeds, hidden, projected)
            outputs = [seen.output, *(net.run(feeds).output for net in self.nets[1:])]
        if len(outputs) > 1:
            seen.output = self._mixed(outputs)
        return seen

    def _mixed(self, outputs: Sequence[Any]) -> Any:
        if isinstance(outputs[0], tuple):
            return tuple(self._mixed(each) for each in zip(*outputs, strict=True))
        if self.first.task.endswith(("classification", "answering", "-lm")):
            return mixed_logits(outputs, self.shares)
        return sum(share * each.float() for share, each in zip(self.shares, outputs, strict=True))

    def vectors(
        self, examples: Sequence[Example], student: Encoded, advance: Advance, *, exact: bool = False
    ) -> list[np.ndarray]:
        """What each teacher gives for each text, [texts, width], in float32. `exact`: computed in float32, too, to judge by."""
        found = []
        for at, net in enumerate(self.nets):
            same = same_tokens(net, self.first) and net.encoder.max_length == student.encoder.max_length
            encoded = (
                student if same and set(net.origin.inputs) == set(student.rows[0]) else encode(examples, net.encoder, silent)
            )
            context = contextlib.nullcontext if exact else self.autocast

            def count(done: int, total: int, at: int = at) -> None:
                advance(at * total + done, len(self.nets) * total)

            found.append(outputs_of(net, encoded, self.device, context, count))
        return found

    @torch.no_grad()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> Tensor:
        """How relevant the rerankers find each pair, 0 to 1, their mean."""
        found = []
        for net in self.rerankers:
            feeds = tensors(net.encoder.encode(list(pairs)), self.device)
            with self.autocast():
                found.append(torch.sigmoid(net.run(feeds).output.float().squeeze(-1)))
        return torch.stack(found).mean(0)


def teachers_of(nets: Sequence[Net], weights: Sequence[float]) -> Teachers:
    """The teachers, each in its part. Raises InputError for those that cannot teach together."""
    first = nets[0]
    rerankers = [net for net in nets[1:] if first.task == "sentence-embedding" and _scores_pairs(net)]
    others = [net for net in nets if net not in rerankers]
    for net in others[1:]:
        if net.task != first.task:
            raise InputError(
                f"{net.origin.root} is for {net.task}, the first teacher for {first.task}; several teachers share a task, or are "
                "rerankers (sequence-classification of one label) beside a sentence embedding"
            )
        if first.task not in ("sentence-embedding", "sequence-classification") and not same_tokens(net, first):
            raise InputError(
                f"{net.origin.root} has another vocabulary than {first.origin.root}: token by token nothing can be compared"
            )
        _check_classes(net, first)
    return Teachers(tuple(others), shares(weights, len(others)), tuple(rerankers))


def _scores_pairs(net: Net) -> bool:
    return net.task == "sequence-classification" and int(net.model.config.num_labels) == 1


def _check_classes(net: Net, first: Net) -> None:
    if first.task.endswith("classification") and net.model.config.id2label != first.model.config.id2label:
        raise InputError(
            f"{net.origin.root} has the classes {list(net.model.config.id2label.values())[:6]}, {first.origin.root} has "
            f"{list(first.model.config.id2label.values())[:6]}; teachers of one student have the same, in the same order"
        )


def same_tokens(one: Net, other: Net) -> bool:
    """Whether two tokenizers give a text the same ids: by their vocabulary and by what they do before it."""
    return bool(one is other or one.encoder.tokenizer.to_str() == other.encoder.tokenizer.to_str())


def mixed_logits(outputs: Sequence[Tensor], weights: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Logits of the weighted mean of the teachers' probabilities (Hinton et al., 2015, section 2: the geometric mean is the
    other choice); of scores, their weighted mean."""
    if outputs[0].shape[-1] == 1:
        return torch.stack([w * each.float() for w, each in zip(weights, outputs, strict=True)]).sum(0)
    parts = [w * torch.softmax(each.float() / temperature, -1) for w, each in zip(weights, outputs, strict=True)]
    return temperature * torch.stack(parts).sum(0).clamp(min=1e-12).log()


@torch.no_grad()
def outputs_of(
    net: Net,
    encoded: Encoded,
    device: torch.device,
    context: Callable[[], contextlib.AbstractContextManager[Any]],
    advance: Advance,
) -> np.ndarray:
    """The vectors of all texts, computed in the order of their lengths: little padding."""
    order = np.argsort(encoded.lengths, kind="stable")
    made: np.ndarray | None = None
    done = 0
    for chunk in _chunks(order):
        with context():
            found = net.run(tensors(encoded.batch(chunk), device)).output.float().cpu().numpy()
        made = np.zeros((len(order), found.shape[1]), np.float32) if made is None else made
        made[chunk] = found
        done += len(chunk)
        advance(done, len(order))
    assert made is not None, "read_texts() refuses empty data"
    return made


def _chunks(order: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(order), AT_ONCE):
        yield order[start : start + AT_ONCE]
