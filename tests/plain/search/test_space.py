"""What is searched: sizes of layers, candidates and the trials that say them, limits with their units."""

from __future__ import annotations

import compressing
import numpy as np
import optuna
import pytest

from bertc.core import InputError
from bertc.search import Budget, Candidate, Request
from bertc.search.cost import Cost
from bertc.search.request import quantity
from bertc.search.space import Space, sizes_of, space_of


def space(depth: int = 4, *, uniform: bool = False) -> Space:
    heads = (4,) if uniform else (1, 2, 4)
    return Space(depth, heads, (16, 32, 64), ("fp32", "int8-dynamic"), uniform, {})


@pytest.mark.parametrize(
    ("whole", "multiple", "sizes"),
    [
        (1536, 64, (256, 512, 768, 1024, 1280, 1536)),
        (12, 2, (2, 4, 6, 8, 10, 12)),
        (3072, 64, (512, 1024, 1536, 2048, 2560, 3072)),
        (64, 64, (64,)),
        (4, 1, (1, 2, 3, 4)),
        (100, 64, (64, 100)),
    ],
)
def test_sizes(whole: int, multiple: int, sizes: tuple[int, ...]) -> None:
    assert sizes_of(whole, multiple) == sizes


@pytest.mark.parametrize("uniform", [False, True])
def test_a_candidate_is_what_its_own_parameters_suggest(uniform: bool) -> None:
    where = space(uniform=uniform)
    random = np.random.default_rng(0)
    drawn = [*where.anchors(), *(where.drawn(random) for _ in range(30)), where.smallest("int8-dynamic")]
    for each in drawn:
        assert where.suggested(optuna.trial.FixedTrial(where.parameters(each))) == each
        assert not uniform or (len(set(each.ffn)) == 1 and set(each.heads) == {4})
    assert {len(each.layers) for each in drawn} == {1, 2, 3, 4}


def test_a_trial_without_layers_keeps_one() -> None:
    where = space(2)
    nothing = {"layer_0": 0, "layer_1": 0, "heads_0": 2, "heads_1": 0, "ffn_0": 0, "ffn_1": 1, "precision": "fp32"}
    assert where.suggested(optuna.trial.FixedTrial(nothing)) == Candidate((1,), (1,), (32,), "fp32")


def test_what_a_model_cannot_be_searched_for_is_said() -> None:
    net = compressing.opened(compressing.checkpoint("mpnet"))
    found = space_of(net, Request("", size="1MB", multiple=8))
    assert found.heads == (4,)
    assert "bias" in found.not_searched["heads"]
    assert "hidden width" in found.not_searched
    net = compressing.opened(compressing.checkpoint("bert"))
    assert space_of(net, Request("", size="1MB", multiple=8)).heads == (1, 2, 3, 4)
    wide = space_of(net, Request("", size="1MB"))
    assert {"heads", "FFN width"} <= set(wide.not_searched)


def test_limits() -> None:
    assert quantity("latency", "2ms") == pytest.approx(0.002)
    assert quantity("latency", "1.5 s") == 1.5
    assert (quantity("size", "20MB"), quantity("size", "20MiB")) == (20e6, 20 * 2**20)
    for kind, text in (
        ("latency", "2"),
        ("latency", "0ms"),
        ("latency", "2MB"),
        ("size", "-1MB"),
        ("size", "2 ms"),
        ("size", ""),
    ):
        with pytest.raises(InputError, match="as in"):
            quantity(kind, text)


@pytest.mark.parametrize("value", [0.0001234, 0.00412345, 1.23456])
def test_the_option_that_an_error_names_holds(value: float) -> None:
    told = Budget("latency", 1.0, "").option(value).partition(" ")[2]
    assert value <= quantity("latency", told) < 1.01 * value
    told = Budget("size", 1.0, "").option(value * 1e9).partition(" ")[2]
    assert Budget("size", quantity("size", told), told).holds(Cost(float("nan"), value * 1e9, 0, 0))
