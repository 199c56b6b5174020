"""layernorm, gelu, bias_gelu and skip_layernorm: each example fires, each near-miss says why not, and the numbers are those."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rules import captured, feeds, fuse, lines, relative_error, rules

FILES = ("layernorm", "gelu", "bias_gelu", "skip_layernorm")
OPS = {"LayerNormalization", "Gelu", "FusedGelu", "FusedBiasGelu", "FusedSkipLayerNorm", "FusedSkipRmsNorm"}
EXAMPLES = [(name, index) for name in FILES for index in range(len(rules(name).EXAMPLES))]
NEAR_MISSES = [(name, index) for name in FILES for index in range(len(rules(name).NEAR_MISSES))]
# float32 against float64 over four elements.
TOLERANCE = 1e-5


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_fires_once(name: str, index: int) -> None:
    _, after, change = fuse(name, rules(name).EXAMPLES[index])
    assert change.counts() == {name: 1}
    assert sum(node.op_type in OPS for node in after.model.graph) == 1


@pytest.mark.parametrize(("name", "index"), NEAR_MISSES)
def test_refuses_with_the_reason(name: str, index: int) -> None:
    text, reason = rules(name).NEAR_MISSES[index]
    before, after, change = fuse(name, text)
    assert change.counts() == {}
    assert any(reason in refusal.reason for refusal in change.refusals), [str(r) for r in change.refusals]
    assert lines(after) == lines(before)


def gelu(x: np.ndarray, form: str) -> np.ndarray:
    if form == "quick":
        return x / (1 + np.exp(-1.702 * x))
    if form == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layernorm(x: np.ndarray, epsilon: float, gamma: np.ndarray, beta: np.ndarray | None = None) -> np.ndarray:
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return normal * gamma + (0 if beta is None else beta)


def meaning(op: str, attributes: dict, given: list[np.ndarray | None]) -> list[np.ndarray]:
    """What the outputs of an operator are, in float64, from the papers."""
    x = given[0]
    assert x is not None
    if op == "LayerNormalization":
        return [layernorm(x, attributes["epsilon"], *given[1:])]
    if op in ("Gelu", "FusedGelu"):
        return [gelu(x, attributes.get("form") or {"none": "erf"}.get(attributes["approximate"], "tanh"))]
    if op == "FusedBiasGelu":
        return [gelu(x + given[1], attributes["form"])]
    total = x + given[1] + (0 if given[2] is None else given[2])
    if op == "FusedSkipRmsNorm":
        return [total / np.sqrt((total**2).mean(-1, keepdims=True) + attributes["epsilon"]) * given[3], total]
    return [layernorm(total, attributes["epsilon"], *given[3:]), total]


@pytest.mark.parametrize(("name", "index"), EXAMPLES)
def test_the_new_node_means_what_the_old_ones_computed(name: str, index: int) -> None:
    before, after, _ = fuse(name, rules(name).EXAMPLES[index])
    if any(node.domain for node in before.model.graph):
        pytest.skip("made of operators that only bertc defines; test_bias_gelu_* read the result")
    node = next(n for n in after.model.graph if n.op_type in OPS)
    values = captured(before, [v.name for n in before.model.graph for v in n.outputs], feeds(before))
    constants = {k: v.const_value.numpy() for k, v in after.model.graph.initializers.items()}
    given = [None if v is None else {**constants, **values}[v.name].astype(np.float64) for v in node.inputs]
    wanted = meaning(node.op_type, {k: a.value for k, a in node.attributes.items()}, given)
    for output, expected in zip(node.outputs, wanted, strict=False):
        assert relative_error(values[output.name].astype(np.float64), expected) <= TOLERANCE


def test_layernorm_golden() -> None:
    _, after, _ = fuse("layernorm", rules("layernorm").EXAMPLES[0])
    assert lines(after) == ["LayerNormalization(x, g, b; axis=-1, epsilon=1e-05) -> y"]


def test_a_gamma_that_is_no_vector_stays_behind_the_norm() -> None:
    text = rules("layernorm").EXAMPLES[3].replace("float[4] g = {1.0, 0.5, 2.0, -1.0}", "float[4, 1] g = {1.0, 0.5, 2.0, -1.0}")
    _, after, change = fuse("layernorm", text.replace("[B, S, 4]", "[B, 4, 4]"))
    assert lines(after) == ["LayerNormalization(x, x.ones; axis=-1, epsilon=1e-05) -> n", "Mul(g, n) -> y"]
    assert any("g is not a vector as wide as the input" in r.reason for r in change.refusals)


def test_gelu_golden() -> None:
    golden = [lines(fuse("gelu", text)[1]) for text in rules("gelu").EXAMPLES]
    assert golden == [
        ["Gelu(x; approximate=none) -> y"],
        ["FusedGelu(x; form=erf) -> y"],
        ["Gelu(x; approximate=tanh) -> y"],
        ["FusedGelu(x; form=tanh) -> y"],
        ["FusedGelu(x; form=quick) -> y"],
    ]


def test_bias_gelu_golden() -> None:
    golden = [lines(fuse("bias_gelu", text)[1]) for text in rules("bias_gelu").EXAMPLES]
    assert golden == [
        ["MatMul(x, w) -> m", "FusedBiasGelu(m, b; form=erf) -> y"],
        ["FusedBiasGelu(z, b; form=tanh) -> y"],
        ["FusedBiasGelu(z, b; form=quick) -> y"],
        ["FusedLinear(x, w) -> bias_gelu..FusedLinear.0", "FusedBiasGelu(bias_gelu..FusedLinear.0, b; form=erf) -> y"],
    ]


def test_skip_layernorm_golden() -> None:
    golden = [lines(fuse("skip_layernorm", text)[1]) for text in rules("skip_layernorm").EXAMPLES]
    assert golden == [
        ["FusedSkipLayerNorm(x, skip, , g, beta; epsilon=1e-06) -> y"],
        ["FusedSkipLayerNorm(x, skip, b, g, beta; epsilon=1e-06) -> y"],
        ["FusedSkipLayerNorm(x, skip, b, g, ; epsilon=1e-06) -> y, s", "Neg(s) -> t"],
        ["FusedSkipRmsNorm(x, skip, , g; epsilon=1e-06) -> y, s", "Neg(s) -> t"],
        ["FusedSkipRmsNorm(x, skip, , g; epsilon=1e-06) -> y"],
    ]


def test_a_reader_of_the_sum_before_the_norm_comes_behind_the_new_node() -> None:
    text = rules("skip_layernorm").EXAMPLES[2]
    early = text.replace("\nt = Neg(s)", "").replace("s = Add(a, skip)", "s = Add(a, skip)\nt = Neg(s)")
    _, after, change = fuse("skip_layernorm", early)
    assert change.counts() == {"skip_layernorm": 1}
    assert [line.partition("(")[0] for line in lines(after)] == ["FusedSkipLayerNorm", "Neg"]


def test_a_sum_read_for_its_shape_is_no_second_output() -> None:
    text = rules("skip_layernorm").EXAMPLES[0].replace("float[B, S, 4] y)", "float[B, S, 4] y, int64[3] t)")
    _, after, _ = fuse("skip_layernorm", text.replace("s = Add(x, skip)", "s = Add(x, skip)\nt = Shape(s)"))
    assert lines(after) == ["FusedSkipLayerNorm(x, skip, , g, beta; epsilon=1e-06) -> y", "Shape(y) -> t"]


def test_an_embedding_sum_is_no_residual() -> None:
    text = rules("embeddings").EXAMPLES[2]
    _, _, change = fuse("skip_layernorm", text)
    assert change.counts() == {}
    assert "it is no residual" in change.refusals[0].reason
