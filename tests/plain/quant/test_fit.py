"""How activations and weights are quantised: exact where nothing is rounded, better where something is."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import graph_of
from hypothesis import given, settings
from hypothesis import strategies as st
from quantising import fake, fitted, layer, rows, seen

from bertc.quant import fit as fitting
from bertc.quant import fp8
from bertc.quant.calibration.observe import Sampled
from bertc.quant.calibration.statistics import MeasuredTensor
from bertc.quant.sites import GEMM


def sampled(x: np.ndarray) -> Sampled:
    made = Sampled(MeasuredTensor("x", "Add", dims=("S", x.shape[1]), axis=1), len(x), len(x))
    made.add(x)
    return made


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(-4, 4), st.floats(-3, 3))
def test_every_migration_is_exact_in_real_numbers(seed: int, outlier: int, shift: float, size: float) -> None:
    """(x * mul + add) @ (w / mul) less what the shift added is x @ w, for every alpha and shift that is tried."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((64, 8)) * 10**size + shift).astype(np.float32)
    x[:, seed % 8] *= outlier
    w = rng.standard_normal((8, 5)).astype(np.float32)
    ways = list(fitting._migrations(sampled(x), w))
    assert len(ways) == 3 * len(fitting.ALPHAS)
    for way in ways:
        mul, add = (np.asarray(part, np.float64) for part in (way.mul, 0.0 if way.add is None else way.add))
        assert np.array_equal(mul, mul.astype(np.float16))
        assert np.array_equal(add, add.astype(np.float16)), "the graph may store it in half"
        got = (x * mul + add) @ (w / mul[:, None]) - (add * np.ones(8)) @ (w / mul[:, None])
        np.testing.assert_allclose(got, x.astype(np.float64) @ w, atol=1e-9 * np.abs(x).max() * np.abs(w).sum())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([7, 8]), st.floats(-9, 3))
def test_weights_stay_within_their_bits_and_scales_are_halves(seed: int, bits: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((16, 6)) * 10.0 ** (size + rng.uniform(-2, 2, 6))).astype(np.float32)
    top = 2 ** (bits - 1) - 1
    values, scales = fitting.quantise_weights(w, top)
    assert np.array_equal(values, np.rint(values))
    assert np.abs(values).max() <= top
    assert np.array_equal(scales, scales.astype(np.float16).astype(np.float32))
    assert (scales > 0).all()
    large = scales > fitting.SMALLEST
    allowed = scales / 2 + np.abs(w).max(axis=0) * 2**-7  # half a step, and the clip of a scale that was rounded to six digits
    assert (np.abs(values * scales - w)[:, large] <= allowed[large]).all()


def test_a_column_of_zeros_has_a_scale_that_float16_holds() -> None:
    weights = np.array([[0.5, 0, -2], [1, 0, 1]], np.float32)
    for values, scales in (fitting.quantise_weights(weights), fp8.quantise_weights(weights)):
        assert scales[1] == 1 and not values[:, 1].astype(np.float32).any()
        np.testing.assert_allclose(values.astype(np.float32) * scales, weights, rtol=0.07)


def test_seven_bits_cannot_saturate_a_pair_of_products_and_eight_can() -> None:
    def worst(bits: int) -> int:
        weights = [each for one in fitted(layer(), bits=bits).values() for each in one.weights.values()]
        assert weights
        return max(255 * 2 * int(np.abs(each.values.astype(int)).max()) for each in weights)

    assert worst(7) < 2**15 <= worst(8)


def test_scales_are_halves_and_integers_use_their_range() -> None:
    for each in fitted(layer()).values():
        assert all(scale == np.float16(scale) > 0 for scale in each.scales)
        assert all(np.abs(w.values.astype(int)).max() == 127 for w in each.weights.values())


def product_error(graph, made, outlier: float) -> float:
    """Of x @ wq as it is quantised, by the operators' definition, on rows that calibrated nothing."""
    site = next(each for each in made.values() if each.site.inputs == ("x",))
    x = np.concatenate([row.feeds["x"][0] for row in list(rows(40, outlier=outlier))[24:]])
    node = next(n for n in graph.model.graph if n.name == site.site.nodes[0])
    w, weights = node.inputs[1].const_value.numpy(), site.weights[node.name]
    moved = x if site.mul is None else x * site.mul
    moved = moved if site.add is None else moved + site.add
    got = fake(moved, site.scales[0]) @ (weights.values.astype(np.float32) * weights.scales) + weights.bias
    return float(np.linalg.norm(got - x @ w) / np.linalg.norm(x @ w))


def test_migration_helps_where_one_channel_is_an_outlier() -> None:
    graph = layer(outlier=60)
    plain = product_error(graph, fitted(graph, outlier=60, migrate=False), 60)
    moved = product_error(graph, fitted(graph, outlier=60), 60)
    assert plain > 0.05
    assert moved < 0.25 * plain, (moved, plain)


def test_what_an_int8_attention_writes_is_taken_as_it_is() -> None:
    made = fitted(layer())
    (attention,) = [each for each in made.values() if each.site.kind != GEMM]
    behind = made[attention.site.needs]
    assert (behind.mul, behind.add) == (None, None)
    assert any(each.mul is not None for each in made.values())


def test_the_mean_error_is_taken_back_by_the_bias() -> None:
    graph = layer()
    sites, observed = seen(graph, rows(24), 24)
    for name, each in fitting.fit_sites(graph, sites, observed)[0].items():
        for node_name, weights in each.weights.items():
            node = next(n for n in graph.model.graph if n.name == node_name)
            x = observed.tensors[each.site.inputs[0]].rows
            moved = x if each.mul is None else x * each.mul
            moved = moved if each.add is None else moved + each.add
            stored = weights.values.astype(np.float32) * weights.scales
            left = (fake(moved, each.scales[0]) @ stored + weights.bias - x @ node.inputs[1].const_value.numpy()).mean(axis=0)
            without = (fake(moved, each.scales[0]) @ stored - x @ node.inputs[1].const_value.numpy()).mean(axis=0)
            assert np.abs(left).max() < 1e-5, name
            assert np.abs(without).max() > 1e-4, "there was nothing to take back"


@pytest.mark.parametrize("size", [1e-8, 1e5])
def test_scales_of_extreme_activations_are_positive_and_finite(size: float) -> None:
    """A scale that a float16 cannot hold would be 0 or inf in the graph that is built."""
    graph = graph_of(
        f"""<ir_version: 10, opset_import: ["" : 20]> g (float[B,S,32] x, float[B,1,S] mask) => (float[B,S,32] y, float[B,1,S] n)
        <float[32,32] w, float big = {{{size}}}> {{ z = Mul (x, big) y = MatMul (z, w) n = Neg (mask) }}"""
    )
    made = fitted(graph)
    ((scale,),) = [each.scales for each in made.values()]
    assert 0 < scale < 65504


def test_what_no_float16_scale_can_hold_is_refused() -> None:
    graph = layer()
    sites, observed = seen(graph, rows(8, lambda x: np.multiply(x, 1e10, out=x)), 8)
    made, refused = fitting.fit_sites(graph, sites, observed)
    reads_x = next(site for site in sites.found if site.inputs == ("x",))
    assert reads_x.name not in made
    assert refused[reads_x.name].startswith("x reaches ")
    assert "outside float16" in refused[reads_x.name]
