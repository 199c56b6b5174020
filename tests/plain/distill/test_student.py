"""Cutting a student: which layers, how wide, and what cannot be cut."""

from __future__ import annotations

import distilling
import models
import pytest
import torch

from bertc.core import InputError, Progress
from bertc.distill import Settings, cut, keep_layers, narrow, net_of
from bertc.distill.settings import check
from bertc.distill.student import choose
from bertc.source import open_trainable


def net(path=None):
    return net_of(open_trainable(str(path or distilling.teacher())), None)


def feeds():
    ids = torch.arange(5, 13).reshape(2, 4)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


@pytest.mark.parametrize(
    ("rule", "wanted", "layers"),
    [("even", 3, (1, 3, 5)), ("even", 2, (2, 5)), ("even", 4, (0, 2, 3, 5)), ("first", 2, (0, 1)), ("last", 2, (4, 5))],
)
def test_rules(rule: str, wanted: int, layers: tuple[int, ...]) -> None:
    assert choose(6, wanted, rule) == layers


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings(layers=5), "more than the teacher has: 4"),
        (Settings(layers=2, layer_map="0,1,2"), "differ"),
        (Settings(layer_map="0,4"), "0 to 3"),
        (Settings(layer_map="evn"), "even, first, last, search"),
        (Settings(layer_map="3,1"), "rising"),
        (Settings(layers=2, width=24), "multiple of the size of a head"),
        (Settings(layers=2, width=64), "at most"),
        (Settings(layers=2, ffn=65), "at most"),
    ],
)
def test_shapes_that_the_teacher_has_not(settings: Settings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        cut(net(), settings, lambda student: 0.0, Progress())


def test_layers_are_copies_and_the_teacher_keeps_its_own() -> None:
    teacher = net()
    student = keep_layers(teacher, (1, 3))
    assert [len(each.layers) for each in (teacher, student)] == [4, 2]
    assert student.model.config.num_hidden_layers == 2 and teacher.model.config.num_hidden_layers == 4
    for at, there in enumerate((1, 3)):
        one, other = student.layers[at].state_dict(), teacher.layers[there].state_dict()
        assert all(torch.equal(one[name], other[name]) for name in other)
    with torch.no_grad():
        next(student.module.parameters()).zero_()
    assert float(next(teacher.module.parameters()).detach().abs().sum()) > 0


def test_a_search_takes_the_best_of_all_choices() -> None:
    def score(student) -> float:
        wanted = net().layers[2].state_dict()["output.dense.bias"]
        return sum(torch.equal(layer.state_dict()["output.dense.bias"], wanted) for layer in student.layers)

    found = cut(net(), Settings(layers=1, layer_map="search"), score, Progress())
    assert found.layers == (2,) and "4 students" in found.notes[0]


@pytest.mark.parametrize("name", ["features", "token-classification", "roberta"])
def test_the_same_width_is_the_same_model(name: str) -> None:
    """All dimensions kept: every tensor lands where it was, in a BERT, a DistilBERT and a RoBERTa."""
    teacher = net(models.checkpoint(name))
    student, notes = narrow(teacher, teacher.width, teacher.ffn)
    given = {key: value for key, value in feeds().items() if key in teacher.origin.inputs}
    with torch.no_grad():
        one, other = (each.run(given).output for each in (student, teacher))
    one, other = (each[0] if isinstance(each, tuple) else each for each in (one, other))
    assert torch.equal(one, other) and not notes


def test_narrower_keeps_the_vectors_as_wide_as_the_teachers() -> None:
    teacher = net()
    student, notes = narrow(teacher, 16, 40)
    assert student.width == 16 and student.heads == 1 and student.model.config.intermediate_size == 40
    with torch.no_grad():
        one, other = (each.run(feeds()).output for each in (student, teacher))
    assert one.shape == other.shape == (2, 32) and "16" in notes[0]
    assert float((one != 0).sum(1).float().mean()) == 16


def test_dead_neurons_go_first() -> None:
    """FFN neurons that do nothing: cutting them changes nothing."""
    teacher = net()
    with torch.no_grad():
        for layer in teacher.layers:
            for each in (layer.intermediate.dense.weight, layer.intermediate.dense.bias):
                each[::2] = 0
    student, _ = narrow(teacher, None, 32)
    with torch.no_grad():
        one, other = (each.run(feeds()).output for each in (student, teacher))
    assert torch.allclose(one, other, atol=1e-6)


def test_lists_that_are_as_long_as_the_teacher_by_chance_stay() -> None:
    teacher = net()
    teacher.model.config.eos_token_id, teacher.model.config.layer_kinds = [1, 2, 3, 4], ["a", "b", "c", "d"]
    config = keep_layers(teacher, (1, 3)).model.config
    assert config.eos_token_id == [1, 2, 3, 4] and config.layer_kinds == ["b", "d"]


@pytest.mark.parametrize("weights", [{"losses": {"cosine": 1e30}}, {"teacher_weights": (1e308, 1e308)}])
def test_weights_that_overflow_are_refused(weights) -> None:
    with pytest.raises(InputError, match=r"1e\+06"):
        check(Settings(**weights))
