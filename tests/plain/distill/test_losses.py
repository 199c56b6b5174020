"""Each loss against a computation by hand, or a property that its paper gives it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from bertc.distill import losses

MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TWO = {
    "cosine": lambda a, b: losses.cosine(a[:, 0], b[:, 0]),
    "similarity": lambda a, b: losses.similarity(a.reshape(6, 4), b.reshape(6, 4)),
    "logits": lambda a, b: losses.logits(a, b, 2.0, MASK),
    "score": lambda a, b: losses.logits(a[:, :, :1].mean(1), b[:, :, :1].mean(1), 2.0),
    "tokens": lambda a, b: losses.tokens(a, b, MASK),
    "embedding": lambda a, b: losses.embedding(a, b, MASK),
    "hidden": lambda a, b: losses.hidden([a, 2 * a], [b, 2 * b], MASK),
    "attention": lambda a, b: losses.attention(*([losses.attention_scores(each, each, 2)] for each in (a, b)), MASK),
    "relations": lambda a, b: losses.relations([a], [b], MASK, 2),
    "margin": lambda a, b: losses.margin(a, b),
}


@pytest.mark.parametrize("name", TWO)
def test_zero_at_equality_and_a_gradient_elsewhere(name: str) -> None:
    a, b = draw(2, 3, 4).requires_grad_(), draw(2, 3, 4, seed=1)
    assert float(TWO[name](b, b)) == pytest.approx(0, abs=1e-6)
    found = TWO[name](a, b)
    assert float(found.detach()) > 1e-3
    found.backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 1e-4 and bool(torch.isfinite(a.grad).all())


@pytest.mark.parametrize("name", ["tokens", "embedding", "hidden", "attention", "relations", "logits"])
def test_padding_counts_nothing(name: str) -> None:
    a, b = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    changed = a.clone()
    changed[1, 2] = 100.0
    assert float(TWO[name](changed, b)) == pytest.approx(float(TWO[name](a, b)), rel=1e-5)


def test_cosine_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    assert float(losses.cosine(a, b)) == pytest.approx(((1 - 24 / 25) + 1) / 2)


def test_logits_are_a_divergence_times_temperature_squared() -> None:
    a, b = draw(5, 3), draw(5, 3, seed=1)
    chances = [softmax(each.numpy() / 3, axis=1) for each in (a, b)]
    by_hand = 9 * np.mean([entropy(other, one) for one, other in zip(*chances, strict=True)])
    assert float(losses.logits(a, b, 3.0)) == pytest.approx(by_hand, rel=1e-4)


def test_similarity_looks_at_the_batch_alone_and_not_at_the_axes() -> None:
    """Vectors that are all turned by one rotation are as similar as before: nothing to learn. Widths may differ."""
    b = draw(6, 4)
    turned = b @ torch.linalg.qr(draw(4, 4, seed=2)).Q
    assert float(losses.similarity(turned, b)) == pytest.approx(0, abs=1e-5)
    assert float(losses.cosine(turned, b)) > 0.1
    assert float(losses.similarity(draw(6, 9, seed=3), b)) > 0
    assert float(losses.similarity(b[:2], b[:2] * 2)) == 0


def test_relations_by_hand() -> None:
    a, b = draw(1, 3, 4), draw(1, 3, 6, seed=1)
    chances = []
    for each in (a, b):
        split = each[0].reshape(3, 2, -1).transpose(0, 1).numpy()
        chances.append(softmax(split @ split.transpose(0, 2, 1) / math.sqrt(split.shape[-1]), axis=-1).reshape(6, 3))
    by_hand = np.mean([entropy(other, one) for one, other in zip(*chances, strict=True)])
    assert float(losses.relations([a], [b], torch.ones(1, 3), 2)) == pytest.approx(by_hand, rel=1e-4)


def test_attention_of_other_numbers_of_heads_compares_their_means() -> None:
    one, other = draw(2, 2, 3, 3), draw(2, 4, 3, 3, seed=1)
    means = [each.mean(1, keepdim=True) for each in (one, other)]
    assert float(losses.attention([one], [other], MASK)) == pytest.approx(float(losses.attention(*([m] for m in means), MASK)))


def test_labels_that_say_nothing() -> None:
    a = draw(3, 4).requires_grad_()
    both, none = torch.tensor([1, losses.IGNORED, 2]), torch.full((3,), losses.IGNORED)
    by_hand = -torch.log_softmax(a, -1)[[0, 2], [1, 2]].mean()
    assert float(losses.task(a, both).detach()) == pytest.approx(float(by_hand.detach()))
    assert float(losses.task(a, none).detach()) == 0
    assert float(losses.task(a[:, :1], torch.tensor([1.0, losses.IGNORED, 0.5])).detach()) == pytest.approx(
        float(((a[0, 0] - 1) ** 2 + (a[2, 0] - 0.5) ** 2).detach() / 2)
    )
