"""Branches of a model's code on sizes: the graph is right on both sides, or the model is refused."""

from __future__ import annotations

import models
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bertc.core import SourceError  # noqa: E402
from bertc.source.factory import FactoryModel  # noqa: E402
from bertc.source.torch_export import export_module, module_runner  # noqa: E402


class Squeezed(torch.nn.Module):
    """Pairs of positions become one and two again; what is left over is filled up."""

    def __init__(self, group):
        super().__init__()
        self.group, self.out = group, torch.nn.Linear(8, 8 * group)
        self.pool = torch.nn.AvgPool1d(group, group)

    def forward(self, x):
        length = x.shape[1]
        y = self.out(self.pool(x.transpose(1, 2)).transpose(1, 2)).tanh()
        y = y.reshape(y.shape[0], y.shape[1] * self.group, 8)
        if y.shape[1] < length:
            y = torch.nn.functional.pad(y, (0, 0, 0, length - y.shape[1]))
        return y


class Doubled(torch.nn.Module):
    """Another computation for long inputs: no graph has both."""

    def forward(self, x):
        return x.tanh() * 2 if x.shape[1] > 30 else x.tanh()


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = torch.nn.MaxPool1d(3, 2, 1)

    def forward(self, x):
        return self.pool(x.transpose(1, 2)).transpose(1, 2)


def exported(module, length, shortest=2):
    made = FactoryModel(
        module.eval(), {"x": torch.randn(2, length, 8)}, {"x": ("batch", "length", 8)}, ("y",), {"length": (shortest, None)}
    )
    return export_module(made, 20)[0], module_runner(made, ("y",))


def check_lengths(graph, run, lengths):
    rng = np.random.default_rng(0)
    for length in lengths:
        feeds = {"x": rng.standard_normal((3, length, 8)).astype(np.float32)}
        assert models.relative_error(models.run_graph(graph, feeds)["y"], run(feeds)["y"]) < 1e-5, length


@pytest.mark.parametrize(("group", "length"), [(2, 12), (2, 13), (3, 12), (3, 14)])
def test_a_branch_that_one_side_is_right_for(group, length):
    """Traced on the side that fills nothing up, it would be wrong for every other length: the other side is traced then."""
    check_lengths(*exported(Squeezed(group), length, 2 * group), (*range(2 * group, 25), 500, 501, 502))


@pytest.mark.parametrize("length", [12, 40])
def test_two_computations_are_refused(length):
    with pytest.raises(SourceError, match=r"does not take every size|ends at 30"):
        exported(Doubled(), length)


def test_a_pooling_has_no_fixed_length():
    check_lengths(*exported(Pooled(), 12), (2, 3, 14, 101))


class Far(torch.nn.Module):
    """Another computation for inputs beyond a size that no short example comes near."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x.tanh() * 2 if x.shape[1] > self.size else x.tanh()


@pytest.mark.parametrize("size", [3000, 5000, 8191])
def test_a_branch_is_found_up_to_the_limit_of_a_long_model(size):
    made = FactoryModel(
        Far(size).eval(), {"x": torch.randn(2, 12, 8)}, {"x": ("batch", "length", 8)}, ("y",), {"length": (2, 8192)}
    )
    with pytest.raises(SourceError, match=str(size)):
        export_module(made, 20)


@pytest.mark.parametrize(
    ("limit", "broken"), [(4096, ()), (8192, (5001, 8192)), (70_000, (65_905, 70_000)), (480_000, (480_000,))]
)
def test_guards_are_tried_up_to_the_limit(limit, broken):
    from bertc.core import Dim
    from bertc.source.modules import guards

    made = FactoryModel(Far(1), {"x": torch.randn(2, 12, 8)}, {"x": ("batch", "length", 8)})
    found = guards._sides("L['x'].size()[1] <= 5000", made, {"batch": Dim("batch"), "length": Dim("length", 2, limit)})
    assert set(broken) <= set(found.breaks) and not [size for size in found.breaks if size <= 5000]
