"""The losses, each a function of what student and teacher give, with the paper and the place that it comes from.

`mask` is 1 at a token and 0 at padding. Each loss is 0 (or its least value, for `logits` and `labels`) where both agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a label that says nothing, as in torch's cross entropy


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - the cosine of two vectors of a text, the mean over texts [batch, width].

    Reimers and Gurevych, "Making Monolingual Sentence Embeddings Multilingual", 2020, section 2 (p. 2), imitate vectors by
    their squared distance, which for vectors of length 1 is twice this.
    """
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def similarity(student: Tensor, teacher: Tensor, temperature: float = 0.05) -> Tensor:
    """How each text of a batch is similar to the others: cross entropy of the teacher's softmax over them, less its own entropy.

    Fang et al., "SEED: Self-supervised Distillation", ICLR 2021, section 3.2 (p. 4); the batch stands for their queue.
    Student and teacher may have different widths. A batch of fewer than 3 texts has nothing to compare.
    """
    if len(student) < 3:
        return student.sum() * 0.0
    of_student, of_teacher = (F.normalize(each.float(), dim=-1) for each in (student, teacher))
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    rows = [(each @ each.T / temperature)[apart].view(len(each), -1) for each in (of_student, of_teacher)]
    return _divergence(*rows)


def logits(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """KL divergence of softened classes, times temperature squared; [batch, classes], or [batch, length, classes] under a mask.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2 (eq. 1, p. 2; the factor: p. 3). One
    class is a score: there the squared difference (their section 2.1, the limit of high temperature).
    """
    student, teacher = student.float(), teacher.float()
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    if mask is not None:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
        if not len(student):
            return student.sum() * 0.0
    return temperature**2 * _divergence(student / temperature, teacher / temperature)


def tokens(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 - the cosine of the last hidden state of each token [batch, length, width].

    Sanh et al., "DistilBERT", 2019, section 2 (L_cos, p. 2).
    """
    return ((1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)) * mask).sum() / mask.sum()


def embedding(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of what enters the first layer. Jiao et al., "TinyBERT", 2020, section 3.1 (eq. 9, p. 4)."""
    return _squared(student, teacher, mask)


def hidden(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states, the mean over pairs of layers; a student that is narrower comes projected.

    Jiao et al., "TinyBERT", 2020, section 3.1 (eq. 8, p. 4).
    """
    return torch.stack([_squared(*pair, mask) for pair in zip(student, teacher, strict=True)]).mean()


def attention(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores before the softmax, the mean over heads [batch, heads, length, length].

    Jiao et al., "TinyBERT", 2020, section 3.1 (eq. 7, p. 4), which takes scores, not probabilities: it converges faster. Where
    the numbers of heads differ, the means over heads are compared.
    """
    both = mask[:, None, :, None] * mask[:, None, None, :]
    found = []
    for one, other in zip(student, teacher, strict=True):
        one, other = one.float(), other.float()
        if one.shape[1] != other.shape[1]:
            one, other = one.mean(1, keepdim=True), other.mean(1, keepdim=True)
        found.append((((one - other) ** 2) * both).sum() / (both.sum() * one.shape[1]))
    return torch.stack(found).mean()


def relations(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor, heads: int) -> Tensor:
    """KL divergence of softmax(A A^T / sqrt(d)) for the queries, keys and values A of one layer, split into `heads` anew.

    Wang et al., "MiniLMv2", 2021, section 3.1 (p. 4): so the widths of student and teacher may differ.
    """
    return torch.stack([_relation(*pair, mask, heads) for pair in zip(student, teacher, strict=True)]).mean()


def margin(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of (score of the right passage - score of a wrong one).

    Hofstätter et al., "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation", 2020,
    section 3 (Margin-MSE, p. 4): a bi-encoder learns from a cross-encoder, whose scores have another scale.
    """
    return F.mse_loss(student.float(), teacher.float())


def masked_lm(student: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the words that were masked. Devlin et al., "BERT", 2019, section 3.1 (task 1, p. 4)."""
    return task(student, labels)


def task(student: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of classes with the labels of a person; squared difference where there is one class, a score.

    IGNORED says nothing. Hinton et al., 2015, section 2 (p. 3) add it to the softened loss.
    """
    if student.shape[-1] == 1:
        known = wanted != IGNORED
        found = (student.squeeze(-1).float() - wanted.float())[known]
        return (found**2).mean() if len(found) else student.sum() * 0.0
    flat = wanted.reshape(-1).long()
    if not bool((flat != IGNORED).any()):
        return student.sum() * 0.0
    return F.cross_entropy(student.float().reshape(-1, student.shape[-1]), flat, ignore_index=IGNORED)


def attention_scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Q K^T / sqrt(d) of [batch, length, width] split into heads."""
    q, k = (_split(each.float(), heads) for each in (queries, keys))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _relation(student: Tensor, teacher: Tensor, mask: Tensor, heads: int) -> Tensor:
    hidden_keys = (mask[:, None, None, :] == 0).expand(-1, heads, mask.shape[1], -1)
    rows = mask.bool()[:, None, :].expand(-1, heads, -1)
    found = []
    for each in (student, teacher):
        split = _split(each.float(), heads)
        scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
        found.append(scores.masked_fill(hidden_keys, -1e4)[rows])
    return _divergence(*found)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of two rows of logits, the mean over rows."""
    return F.kl_div(F.log_softmax(student, -1), F.log_softmax(teacher, -1), reduction="batchmean", log_target=True)


def _squared(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    difference = (student.float() - teacher.float()) ** 2
    return (difference.mean(-1) * mask).sum() / mask.sum()
