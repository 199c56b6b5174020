"""The rules `sdpa` and `attention`: they fire, refuse with a reason, and give the numbers of numpy under every mask."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from fusing import fused, ops, parsed, run, softmax

from bertc.fusions.rules import attention, sdpa
from bertc.graph.model import Graph
from bertc.graph.normalization import MASK_LOW

TOLERANCE = 2e-6  # fp32, sums of at most 9 terms of size 1 to 10
# The scale and the mask term of each of sdpa.EXAMPLES.
SCALES = [1.0, 0.7, 1 / 0.7, 0.7, 0.7, 0.7, 0.7 * 0.6, 1 / np.sqrt(3), 0.3]
TERMS = ["", "mask", "mask", "both", "keep", "drop", "mask", "keep", "mask"]


def keeps(batch: int, length: int) -> dict[str, np.ndarray]:
    """bool [batch, length] of every shape of mask; `none` attends to nothing in its first row."""
    rng = np.random.default_rng(length)
    made = {name: np.ones((batch, length), bool) for name in ("full", "right", "left", "holes", "random", "none")}
    made["right"][0, max(1, length - 2) :] = False
    made["left"][0, : length - max(1, length - 2)] = False
    made["holes"][:, 1::3] = False
    made["random"] = rng.random((batch, length)) < 0.5
    made["random"][:, 0] = True
    made["none"][0] = False
    return made


def feeds_of(batch: int, length: int, keep: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    k = rng.standard_normal((batch, 2, length, 3)).astype(np.float32)
    made = {
        "q": rng.standard_normal(k.shape),
        "v": rng.standard_normal(k.shape),
        "bias": rng.standard_normal((1, 2, length, length)),
    }
    feeds = {name: (2 * array).astype(np.float32) for name, array in made.items()}
    keep = keep[:, None, None, :]
    mask = np.where(keep, 0, MASK_LOW).astype(np.float32)
    return {**feeds, "k": k, "k_t": k.transpose(0, 1, 3, 2).copy(), "keep": keep, "mask": mask, "f": np.array(1, np.float32)}


@pytest.mark.parametrize("index", range(len(sdpa.EXAMPLES)))
def test_sdpa_has_the_numbers_of_numpy(index: int) -> None:
    graph, change = fused(parsed(sdpa.EXAMPLES[index]))
    assert change.counts() == {"sdpa": 1}
    assert not {"Softmax", "Attention", "IsNaN"} & set(ops(graph))
    for batch, length in itertools.product((1, 3), (1, 5, 8)):
        for name, keep in keeps(batch, length).items():
            feeds = feeds_of(batch, length, keep)
            allowed = ~feeds["keep"] if TERMS[index] == "drop" else feeds["keep"]
            term = {"": 0, "mask": feeds["mask"], "both": feeds["mask"] + feeds["bias"]}.get(TERMS[index])
            term = np.where(allowed, 0, MASK_LOW) if term is None else term
            scores = SCALES[index] * feeds["q"].astype(np.float64) @ feeds["k_t"] + term
            got = run(graph, feeds)
            assert np.isfinite(got).all(), name
            # Beside LOW, scores are rounded to 2e-3: a row of nothing but masked scores is finite, and no more is promised.
            rows = np.broadcast_to((allowed | (np.ndim(term) == 0)).any(-1), got.shape[:3])
            np.testing.assert_allclose(got[rows], (softmax(scores) @ feeds["v"])[rows], atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(("text", "reason"), [*sdpa.NEAR_MISSES, *attention.NEAR_MISSES])
def test_refuses_with_the_reason(text: str, reason: str) -> None:
    graph, change = fused(parsed(text))
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]
    assert "FusedAttention" not in ops(graph)


@pytest.mark.parametrize("attribute", ["is_causal = 1", "softcap = 2.0"])
def test_what_the_attention_op_can_do_more_is_left_alone(attribute: str) -> None:
    graph, change = fused(parsed(sdpa.EXAMPLES[7].replace("Attention(", f"Attention <{attribute}> (")))
    assert ops(graph) == ["Attention"]
    assert not change.applied


def test_a_dropped_tail_never_leaves_nan() -> None:
    """A mask from outside may hold -inf: attended rows keep their numbers, a row of nothing is the mean of the values."""
    graph, _ = fused(parsed(sdpa.EXAMPLES[6]))
    assert "Max" in ops(graph)
    keep = keeps(3, 5)["none"]
    feeds = feeds_of(3, 5, keep)
    feeds["mask"] = np.where(feeds["keep"], 0, -np.inf).astype(np.float32)
    scores = 0.7 * 0.6 * feeds["q"].astype(np.float64) @ feeds["k_t"]
    got = run(graph, feeds)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[1:], (softmax(scores) @ feeds["v"])[1:], atol=TOLERANCE)
    assert np.abs(got[0]).max() <= np.abs(feeds["v"][0]).max()


def test_a_finite_mask_is_not_bounded() -> None:
    text = sdpa.EXAMPLES[6].replace("c = Add(a, mask)", "m = Where(keep, zero, low)\nc = Add(a, m)")
    graph, change = fused(parsed(text))
    assert change.counts() == {"sdpa": 1}
    assert "Max" not in ops(graph)


WEIGHTS = {
    name: np.random.default_rng(i).standard_normal((6, 6)).astype(np.float32) for i, name in enumerate(("wq", "wk", "wv", "wo"))
}
WEIGHTS |= {name: np.random.default_rng(i).standard_normal(6).astype(np.float32) for i, name in enumerate(("bq", "bv", "bo"), 9)}


def wide(text: str) -> Graph:
    """An example with two heads of 3 in the place of two heads of 1."""
    text = (
        text.replace("[B, S, 2]", "[B, S, 6]")
        .replace("[B, 2, S, 1]", "[B, 2, S, 3]")
        .replace("{0, 0, 2, 1}", "{0, 0, 2, 3}")
        .replace("{0, 0, 2}", "{0, 0, 6}")
    )
    names = ("wq", "wk", "wv", "wo", "bq", "bv", "bo")
    shapes = {name: ",".join(map(str, WEIGHTS[name].shape)) for name in names}
    for name in names:
        old = text[text.index(" " + name + " =") :]
        values = ", ".join(f"{x:.8g}" for x in WEIGHTS[name].reshape(-1))
        text = text.replace(old, f" {name} = {{{values}}}" + old[old.index("}") + 1 :])
        for before in ("float[2, 2]", "float[2]"):
            text = text.replace(f"{before} {name} =", f"float[{shapes[name]}] {name} =")
    return parsed(text)


def oracle(x: np.ndarray, mask: np.ndarray, biases: tuple[str, ...], scale: float, order: str = "qkv") -> np.ndarray:
    """Attention of two heads of 3, a head at a time; `order` says which weights play q, k and v."""
    parts = [x.astype(np.float64) @ WEIGHTS[f"w{n}"] + (WEIGHTS[f"b{n}"] if f"b{n}" in biases else 0) for n in order]
    heads = []
    for head in range(2):
        q, k, v = (part[..., 3 * head : 3 * head + 3] for part in parts)
        heads.append(softmax(scale * q @ k.transpose(0, 2, 1) + mask[:, 0]) @ v)
    return np.concatenate(heads, -1) @ WEIGHTS["wo"] + WEIGHTS["bo"]


@pytest.mark.parametrize(("index", "biases", "scale"), [(0, ("bq", "bv"), 0.7), (1, ("bq", "bv"), 0.21), (2, (), 0.7)])
def test_attention_has_the_numbers_of_numpy(index: int, biases: tuple[str, ...], scale: float) -> None:
    graph, change = fused(wide(attention.EXAMPLES[index]))
    assert change.counts() == {"attention": 1}
    assert ops(graph) == ["FusedAttention"]
    for batch, length in itertools.product((1, 3), (1, 5, 8)):
        x = np.random.default_rng(5).standard_normal((batch, length, 6)).astype(np.float32) / 2
        for name, keep in keeps(batch, length).items():
            if name == "none":
                continue  # what a row of nothing gives is `sdpa`'s, tested above
            mask = np.where(keep, 0, MASK_LOW).astype(np.float32)[:, None, None]
            wanted = oracle(x, mask, biases, scale)
            got = run(graph, {"x": x, "other": x, "mask": mask})
            np.testing.assert_allclose(got, wanted, atol=3e-5, err_msg=name)  # values of up to 20 behind three products
            if length > 1:
                assert np.abs(got - oracle(x, mask, biases, scale, "kqv")).max() > 1e-2, "q and k could be swapped unseen"


def test_packed_weights_are_the_ones_used() -> None:
    graph, _ = fused(wide(attention.EXAMPLES[0]))
    node = next(node for node in graph.model.graph if node.op_type == "FusedAttention")
    x = np.random.default_rng(5).standard_normal((2, 5, 6)).astype(np.float32)
    feeds = {"x": x, "other": x, "mask": np.zeros((2, 1, 1, 5), np.float32)}
    before = run(graph, feeds)
    q, k, v = np.split(node.inputs[2].const_value.numpy(), 3, axis=1)
    swapped = Graph(graph.model.clone())
    weight = next(node for node in swapped.model.graph if node.op_type == "FusedAttention").inputs[2]
    weight.const_value = ir.tensor(np.concatenate([k, q, v], axis=1), name=weight.name)
    assert np.abs(run(swapped, feeds) - before).max() > 1e-2


def test_a_packed_projection_keeps_its_weight() -> None:
    graph, change = fused(parsed(attention.EXAMPLES[3]))
    assert change.counts() == {"attention": 1}
    node = graph.model.graph[0]
    assert [value.name for value in node.inputs[2:4]] == ["w", "b"]
    assert node.attributes["num_heads"].as_int() == 2
