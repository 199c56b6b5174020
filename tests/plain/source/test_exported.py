"""The tests' own memory of exports: what could change an export is in the key, a path is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import exported
import models
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bertc.source.checkpoint import read_checkpoint  # noqa: E402
from bertc.source.torch_export import load_module  # noqa: E402


@pytest.fixture
def asked() -> tuple[Callable[..., Any], list[Any]]:
    """An export that counts, remembered."""
    calls: list[Any] = []

    def export(made: Any, opset: int) -> Any:
        calls.append(made)
        return models.opened("features").graph, (f"made {len(calls)}",)

    return exported.remembering(export), calls


def module(path: Any = None) -> Any:
    return load_module(read_checkpoint(path or models.one_layer("features")), "features")[0]


def test_an_equal_module_at_another_path_is_exported_once_and_each_has_a_graph_of_its_own(asked: Any, tmp_path: Any) -> None:
    remembered, calls = asked
    class_name, config_name, config = models.MODELS["features"]
    copy = models.save(class_name, config_name, {**config, "num_hidden_layers": 1}, tmp_path / "copy")
    found = [remembered(module(path), 20) for path in (None, copy)]
    assert len(calls) == 1
    assert found[0][0] is not found[1][0] and found[0][1] == found[1][1]


def in_weight(made: Any) -> Any:
    with torch.no_grad():
        next(made.module.parameters()).reshape(-1)[0] += 1
    return made


def in_setting(made: Any) -> Any:
    made.module.model.config.hidden_act = "relu"
    return made


def in_attribute(made: Any) -> Any:
    next(part for part in made.module.modules() if isinstance(part, torch.nn.LayerNorm)).eps = 0.5
    return made


def in_class(made: Any) -> Any:
    part = next(part for part in made.module.modules() if isinstance(part, torch.nn.Linear))
    part.__class__ = type("Linear", (torch.nn.Linear,), {"__module__": torch.nn.Linear.__module__, "forward": lambda self, x: x})
    return made


def in_example(made: Any) -> Any:
    return made._replace(inputs={name: value[:1] for name, value in made.inputs.items()})


def in_dims(made: Any) -> Any:
    return made._replace(limits={"length": (1, 3)})


@pytest.mark.parametrize("changed", [in_weight, in_setting, in_attribute, in_class, in_example, in_dims])
def test_what_differs_is_exported_by_itself(asked: Any, changed: Callable[[Any], Any]) -> None:
    remembered, calls = asked
    remembered(module(), 20)
    remembered(changed(module()), 20)
    assert len(calls) == 2


def test_another_opset_and_a_patched_exporter_are_exported_by_themselves(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered, calls = asked
    remembered(module(), 20)
    remembered(module(), 21)
    monkeypatch.setattr(torch.onnx, "export", torch.onnx.export)
    remembered(module(), 20)
    assert len(calls) == 3


def test_a_module_that_was_trained_since_is_not_given_for_what_it_was(asked: Any) -> None:
    """A kept graph shares the weights of its module."""
    remembered, calls = asked
    first = module()
    remembered(first, 20)
    in_weight(first)
    remembered(module(), 20)
    assert len(calls) == 2


def test_a_module_that_cannot_be_described_is_exported_each_time(asked: Any) -> None:
    remembered, calls = asked
    made = module()
    made.module.hook = lambda: np.zeros(1)
    remembered(made, 20)
    remembered(made, 20)
    assert len(calls) == 2
