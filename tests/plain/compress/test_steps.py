"""Each step: what is left is the original without the parts, the parts are those that matter least, refusals say what to do."""

from __future__ import annotations

import copy

import compressing
import pytest
import torch

from bertc.compress import ffn, heads, low_rank, sharing
from bertc.compress.importance import Moments, change, taylor, worth
from bertc.compress.layers import drop
from bertc.compress.parts import check_family, linear_of, parts_of, rounded
from bertc.core import InputError, Progress, silent
from bertc.distill import Net

CLOSE = {"rtol": 0.0, "atol": 2e-5}  # float32, summed in another order


def net_of(family: str = "bert") -> Net:
    return compressing.opened(compressing.checkpoint(family))


def copied(net: Net) -> Net:
    return Net(copy.deepcopy(net.module), net.origin, net.encoder)


@torch.no_grad()
def silenced(net: Net, name: str, gone: dict[int, list[int]]) -> Net:
    """The net in which some inputs of the module `together` or `second` of each layer count for nothing."""
    made = copied(net)
    for at, columns in gone.items():
        parts = parts_of(made)[at]
        parts.get(getattr(parts, name)).weight[:, columns] = 0
    return made


@pytest.mark.parametrize("family", compressing.FAMILIES)
def test_pruned_is_the_original_with_zeros(family: str) -> None:
    """Of each family: heads (other numbers in each layer, twice) and neurons that are gone are heads and neurons that give 0."""
    net = net_of(family)
    check_family(net)
    kept = [torch.tensor([0, 2, 3]), torch.tensor([1]), torch.tensor([0, 1, 2, 3])]
    pruned = heads.with_heads(net, kept)
    assert [each.heads for each in parts_of(pruned)] == [3, 1, 4]
    gone = {0: [1], 1: [0, 2, 3]}
    zeroed = silenced(net, "together", {at: [h * 8 + i for h in each for i in range(8)] for at, each in gone.items()})
    torch.testing.assert_close(compressing.outputs(pruned), compressing.outputs(zeroed), **CLOSE)
    assert not torch.allclose(compressing.outputs(pruned), compressing.outputs(net), **CLOSE)

    again = heads.with_heads(pruned, [torch.tensor([1, 2]), torch.tensor([0]), torch.tensor([0, 1, 2, 3])])
    zeroed = silenced(zeroed, "together", {0: list(range(8))})
    torch.testing.assert_close(compressing.outputs(again), compressing.outputs(zeroed), **CLOSE)

    rows = [torch.arange(at, 64, 2) for at in (0, 1, 0)]
    narrow = ffn.with_neurons(net, rows)
    zeroed = silenced(net, "second", {at: list(range(1 - at % 2, 64, 2)) for at in range(3)})
    torch.testing.assert_close(compressing.outputs(narrow), compressing.outputs(zeroed), **CLOSE)
    config = narrow.model.config.to_dict()
    assert config.get("intermediate_size", config.get("hidden_dim")) == 32  # DistilBERT's name


def test_a_dead_head_and_dead_neurons_go_first() -> None:
    net = silenced(net_of(), "together", {1: list(range(16, 24))})
    found = heads.prune(compressing.work_of(net), 1 / 12, 8, Progress())
    assert found.facts["kept"] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert not found.uniform
    torch.testing.assert_close(compressing.outputs(found.net), compressing.outputs(net), **CLOSE)

    dead = {at: list(range(at, 64, 4)) for at in range(3)}
    net = silenced(net_of(), "second", dead)
    narrow = ffn.prune(compressing.work_of(net), 0.25, 8, Progress())
    assert narrow.facts["after"] == 48
    torch.testing.assert_close(compressing.outputs(narrow.net), compressing.outputs(net), **CLOSE)


def test_a_layer_that_does_nothing_goes_first() -> None:
    net = copied(net_of())
    with torch.no_grad():
        layers = net.layers
        one = layers[1]
        for linear in (one.attention.output.dense, one.output.dense):
            linear.weight.zero_()
            linear.bias.zero_()
        for norm in (layers[0].output.LayerNorm, one.attention.output.LayerNorm, one.output.LayerNorm):
            norm.weight.fill_(1.0)
            norm.bias.zero_()
    found = drop(compressing.work_of(net), 1, Progress())
    assert found.facts["gone"] == (1,)
    assert found.layers == (0, 2)
    assert found.net.model.config.num_hidden_layers == 2
    torch.testing.assert_close(compressing.outputs(found.net), compressing.outputs(net), rtol=0.0, atol=1e-4)


def test_taylor_tells_what_leaving_out_does() -> None:
    """The heads' order by Taylor expansion is that of the change of the output when one is taken out, but for near ties."""
    from scipy.stats import spearmanr

    net = net_of()
    parts = parts_of(net)
    encoded = compressing.encoded(net)
    tables = taylor(net, encoded, [each.get(each.together) for each in parts], 0, silent)
    told = torch.cat([worth(table, 8) for table in tables]).tolist()
    measured = []
    for layer in range(3):
        for head in range(4):
            without = silenced(net, "together", {layer: list(range(8 * head, 8 * head + 8))})
            measured.append(change(without, net, encoded, silent))
    assert spearmanr(told, measured).statistic > 0.7


def test_low_rank() -> None:
    net = net_of()
    full = low_rank.with_rank(net, 32, [None] * 6)
    torch.testing.assert_close(compressing.outputs(full), compressing.outputs(net), rtol=0.0, atol=1e-4)
    work = compressing.work_of(net)
    made = low_rank.factorise(work, 0.5, 8, Progress())
    plain = low_rank.factorise(work, 0.5, 8, Progress(), weighted=False)
    assert made.facts["rank"] == plain.facts["rank"] == 16
    assert made.facts["weights"] == pytest.approx(16 * (32 + 64) / (32 * 64))
    lost = [change(each.net, net, work.encoded, silent) for each in (made, plain)]
    assert lost[0] < lost[1]


def test_weighting_by_inputs_keeps_what_the_data_uses() -> None:
    """Inputs that live in few directions, with a mean: weighted, rank 8 is all that is needed; plain SVD loses much."""
    torch.manual_seed(0)
    linear = linear_of(torch.randn(48, 32), torch.randn(48))
    x = torch.randn(500, 8) @ torch.randn(8, 32) + 3 * torch.randn(32)
    seen = Moments()
    seen.add(x)
    exact = linear(x)
    weighted, plain, whole = (low_rank.product(linear, rank, m)(x) for rank, m in ((8, seen), (8, None), (32, seen)))
    torch.testing.assert_close(weighted, exact, rtol=0.0, atol=0.05)
    lost = [float((each - exact).detach().pow(2).mean()) for each in (weighted, plain)]
    assert lost[1] > 100 * lost[0]
    torch.testing.assert_close(whole, exact, rtol=1e-5, atol=1e-4)


def test_sharing_folds_and_comes_apart() -> None:
    net = net_of()
    found = sharing.share(compressing.work_of(net), "best", Progress())
    assert set(found.facts["changes"]) == {"mean", "0", "1", "2"}
    assert found.facts["changes"][str(found.facts["of"])] == min(found.facts["changes"].values())
    assert sharing.is_shared(found.net)
    each = [sum(p.numel() for p in n.module.parameters()) for n in (net, found.net)]
    layer = sum(p.numel() for p in net.layers[0].parameters())
    assert each[0] - each[1] == 2 * layer
    separate = sharing.apart(found.net)
    assert not sharing.is_shared(separate)
    torch.testing.assert_close(compressing.outputs(separate), compressing.outputs(found.net), rtol=0.0, atol=0.0)
    mean = sharing.folded(net, "mean").layers[0].output.dense.weight
    torch.testing.assert_close(mean, torch.stack([x.output.dense.weight for x in net.layers]).mean(0))

    pruned = heads.with_heads(net, [torch.tensor([0]), torch.tensor([0, 1]), torch.tensor([0, 1, 2])])
    with pytest.raises(InputError, match="mean"):
        sharing.share(compressing.work_of(pruned), "mean", Progress())
    assert "mean" not in sharing.share(compressing.work_of(pruned), "best", Progress()).facts["changes"]


@pytest.mark.parametrize(
    ("wanted", "whole", "multiple", "count"), [(1152, 1536, 64, 1152), (1100, 1536, 64, 1088), (48, 64, 8, 48), (5, 32, 64, 5)]
)
def test_rounding(wanted: float, whole: int, multiple: int, count: int) -> None:
    found, note = rounded(wanted, whole, multiple, "FFN")
    assert found == count
    assert bool(note) == (wanted != count or multiple >= whole)


def test_heads_go_in_groups() -> None:
    """Of 12 heads of 32 two go together: widths stay multiples of 64. No layer loses its last group."""
    scores = [torch.arange(12.0) + 12 * layer for layer in range(2)]
    kept = heads.choose(scores, 6, 2)
    assert [each.tolist() for each in kept] == [list(range(6, 12)), list(range(12))]
    kept = heads.choose(scores, 23, 2)
    assert [each.tolist() for each in kept] == [[10, 11], [10, 11]]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda work: drop(work, 3, Progress()), "1 to 2"),
        (lambda work: ffn.prune(work, 0.01, 16, Progress()), "--multiple"),
        (lambda work: heads.prune(work, 0.001, 8, Progress()), "--multiple"),
        (lambda work: low_rank.factorise(work, 33, 8, Progress()), "which is 32"),
        (lambda work: low_rank.factorise(work, 0.9, 8, Progress()), "up to 21"),
    ],
)
def test_what_takes_nothing_out_or_everything_is_refused(step, words: str) -> None:
    with pytest.raises(InputError, match=words):
        step(compressing.work_of(net_of()))


def test_other_families_are_refused_by_name() -> None:
    import models

    decoder = models.save("BertModel", "BertConfig", {**compressing.SHAPE, "is_decoder": True}, models.folder() / "bert-decoder")
    with pytest.raises(InputError, match="decoder"):
        check_family(compressing.opened(decoder))
    shared = models.save(
        "AlbertModel", "AlbertConfig", {**compressing.SHAPE, "embedding_size": 16}, models.folder() / "compress-albert"
    )
    with pytest.raises(InputError, match=r"albert.*mpnet"):
        check_family(compressing.opened(shared))
