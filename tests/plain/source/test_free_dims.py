"""A factory that names no dims: the batch is found by trying two rows, and what stays 1 is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bertc.source.factory import FactoryModel
from bertc.source.modules.free_dims import find_dims

LAYERS, HEADS, WIDTH = 2, 2, 4


class Step(nn.Module):
    """A decoder's step: keys and values of all layers in one stack [2 x layers, batch, heads, past, width]."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, HEADS * WIDTH)

    def forward(self, ids: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        q = x.reshape(x.shape[0], x.shape[1], HEADS, WIDTH).transpose(1, 2)
        for layer in range(LAYERS):
            keys, values = torch.cat([past[2 * layer], q], 2), torch.cat([past[2 * layer + 1], q], 2)
            q = torch.softmax(q @ keys.transpose(-1, -2), -1) @ values
        return q


class Plain(nn.Module):
    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return x + bias


class OneRow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, 12) * 2.0


def found(module: nn.Module, **inputs: torch.Tensor) -> tuple[dict[str, Any], str]:
    made, notes = find_dims(FactoryModel(module.eval(), inputs, {}))
    return dict(made.dims), "; ".join(notes)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_stack_of_caches_has_its_rows_on_axis_1(rows: int) -> None:
    ids, past = torch.zeros(rows, 3, dtype=torch.int64), torch.randn(2 * LAYERS, rows, HEADS, 5, WIDTH)
    dims, notes = found(Step(), ids=ids, past=past)
    assert dims["ids"] == ("batch", "length") and dims["past"] == (2 * LAYERS, "batch", HEADS, "past_d3", WIDTH)
    assert ("by trying two" in notes and "axis 1 of 'past'" in notes) == (rows == 1)
    assert "stays 1" not in notes


def test_one_word_at_a_time_stays_1_and_is_said() -> None:
    ids, past = torch.zeros(1, 1, dtype=torch.int64), torch.randn(2 * LAYERS, 1, HEADS, 5, WIDTH)
    dims, notes = found(Step(), ids=ids, past=past)
    assert dims["ids"] == ("batch", 1) and dims["past"][1] == "batch"
    assert "stays 1" in notes and "axis 1 of 'ids'" in notes and "'past'" not in notes.partition("stays 1")[2]


def test_a_leading_1_that_is_spread_stays_1_and_is_said() -> None:
    """[1, 1, length] beside [batch, heads, length]."""
    dims, notes = found(Plain(), x=torch.randn(2, 3, 5), bias=torch.randn(1, 1, 5))
    assert dims["x"][0] == "batch" and dims["bias"][:2] == (1, 1)
    assert "stays 1" in notes and "axis 0, 1 of 'bias'" in notes


def test_a_stack_that_is_none_leaves_the_batch_to_the_first_axes() -> None:
    """Two rows on axis 1 of a bias for each head do not fit; two rows of `x` alone do."""
    dims, notes = found(Plain(), x=torch.randn(1, 3, 5), bias=torch.randn(3, 1))
    assert dims["x"][0] == 1 and "axis 0 of 'x'" in notes.partition("stays 1")[2]
    dims, notes = found(Plain(), x=torch.randn(1, 3, 4, 5), bias=torch.randn(3, 1, 5))
    assert dims["x"][0] == "batch" and dims["bias"][1] == 1
    assert "axis 1 of 'bias'" in notes.partition("stays 1")[2]


def test_a_model_of_one_row_says_so() -> None:
    dims, notes = found(OneRow(), x=torch.randn(1, 12))
    assert dims["x"][0] == 1
    assert "fixed at 1" in notes and "stays 1" in notes
