"""The network whose parts are candidates: whole it is the model, a part of it is what is cut out, and int8 is the engine's."""

from __future__ import annotations

import compressing
import numpy as np
import pytest
import torch

from bertc.compress import HUGGING_FACE, form_of, write_net
from bertc.core import Progress
from bertc.distill import Net
from bertc.search import Request, engines
from bertc.search.rounding import Int8Dynamic, rounded
from bertc.search.space import Candidate, Space, space_of
from bertc.search.supernet import active, cut_out, supernet_of

CLOSE = {"rtol": 0.0, "atol": 1e-5}  # float32, summed in another order
ASKED = Request("", size="1MB", multiple=8, threads=1, shape="2x8")


def opened(family: str) -> tuple[Net, Space, Net]:
    net = compressing.opened(compressing.checkpoint(family))
    space = space_of(net, ASKED)
    return net, space, supernet_of(net, space, compressing.encoded(net), 0, Progress())


@pytest.mark.parametrize("family", compressing.FAMILIES)
def test_a_part_is_what_is_cut_out_of_it(family: str) -> None:
    net, space, whole = opened(family)
    before = compressing.outputs(whole)
    torch.testing.assert_close(before, compressing.outputs(net), rtol=0.0, atol=2e-5)
    random = np.random.default_rng(1)
    for candidate in (space.smallest("fp32"), *(space.drawn(random) for _ in range(6))):
        with active(whole, candidate):
            part = compressing.outputs(whole)
        own = cut_out(whole, candidate)
        torch.testing.assert_close(part, compressing.outputs(own), **CLOSE)
        assert not torch.allclose(part, before, **CLOSE)
        assert not any(type(each).__name__ == "Sliced" for each in own.module.modules())
    torch.testing.assert_close(compressing.outputs(whole), before, rtol=0.0, atol=0.0)
    assert len(whole.layers) == whole.model.config.num_hidden_layers == 3


def test_gradients_reach_the_part_alone() -> None:
    _, _, whole = opened("bert")
    part = Candidate((0, 2), (1, 2), (16, 64), "fp32")
    whole.module.requires_grad_(True)
    feeds = {name: torch.from_numpy(each) for name, each in compressing.encoded(whole).batch(range(4)).items()}
    with active(whole, part):
        torch.autograd.backward(whole.run(feeds).output[0].sum())
    first, left_out, last = whole.layers
    slope = first.intermediate.dense.weight.grad
    assert slope[:16].abs().sum() > 0 and slope[16:].abs().sum() == 0
    assert first.attention.self.query.weight.grad[8:].abs().sum() == 0
    assert left_out.output.dense.weight.grad is None
    assert last.output.dense.weight.grad[:, 63].abs().sum() > 0


@pytest.mark.parametrize("family", compressing.FAMILIES)
def test_a_uniform_part_is_a_directory_that_opens_again(family: str, tmp_path) -> None:
    """Each family's config has its own name for the FFN's width."""
    _, space, whole = opened(family)
    own = cut_out(whole, space.made((0, 2), [4] * 3, [24] * 3, "fp32"))
    assert form_of(own) == HUGGING_FACE
    expected = compressing.outputs(own)
    write_net(own, tmp_path, "", 0, Progress())
    torch.testing.assert_close(compressing.outputs(compressing.opened(tmp_path)), expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("differing", [{"heads": (4, 4), "ffn": (24, 32)}, {"heads": (4, 3), "ffn": (24, 24)}])
def test_layers_that_differ_fit_no_config(differing) -> None:
    _, _, whole = opened("bert")
    assert form_of(cut_out(whole, Candidate((0, 2), precision="fp32", **differing))) == "export"


def test_simulated_int8_is_what_the_engine_computes() -> None:
    """Closer to the engine than float32 is, and as far from float32 as the engine."""
    net = compressing.opened(compressing.checkpoint("bert", 1))
    bench = engines.bench_of(net, ASKED)
    runner = engines.made(net, ("int8-dynamic",), bench, opened=True)["int8-dynamic"].runner
    assert runner is not None
    feeds = engines.feeds_of(net, bench)
    found = torch.from_numpy(next(iter(runner.run(feeds).values())))
    given = {name: torch.from_numpy(each) for name, each in feeds.items()}
    with torch.no_grad():
        exact = net.run(given).output[0]
        with Int8Dynamic("onnxruntime"):
            told = net.run(given).output[0]
    rounding = float((exact - found).pow(2).mean())
    assert rounding > 1e-8
    assert float((told - found).pow(2).mean()) < 0.6 * rounding
    assert 0.7 * rounding < float((told - exact).pow(2).mean()) < 1.4 * rounding


def test_a_rounded_student_learns_and_its_teacher_is_not_rounded() -> None:
    net = compressing.opened(compressing.checkpoint("bert", 1))
    given = {name: torch.from_numpy(each) for name, each in compressing.encoded(net).batch(range(4)).items()}
    assert rounded(net, "fp32", "onnxruntime") is net
    view = rounded(net, "int8-dynamic", "onnxruntime")
    net.module.requires_grad_(True)
    told, exact = view.run(given).output[0], net.run(given).output[0]
    assert not torch.equal(told, exact)  # and the module that both share computes as before outside of view.run
    slopes = [torch.autograd.grad(each.pow(3).sum(), net.layers[0].output.dense.weight)[0] for each in (told, exact)]
    # Straight through: about the slope of what is not rounded, and not 0 as that of a staircase.
    assert torch.cosine_similarity(slopes[0].flatten(), slopes[1].flatten(), dim=0) > 0.95
