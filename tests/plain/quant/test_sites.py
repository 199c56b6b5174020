"""Which GEMMs can be int8, which cannot and why, and how large each is."""

from __future__ import annotations

import numpy as np
import pytest
from graph_text import graph_of
from quantising import BATCH, INNER, LENGTH, PROFILES, WIDTH, feeds, layer

from bertc.core.profiles import Range
from bertc.quant import sites
from bertc.quant.attention import Attention
from bertc.targets import Int8Attention
from bertc.targets._tensorrt import quantised_check as _int8

TOKENS = BATCH * LENGTH


def test_gemms_that_read_one_activation_are_one_site_and_attention_needs_its_projection() -> None:
    found = sites.find_sites(layer(), feeds(batch=BATCH), Attention(_int8.ATTENTION, PROFILES))
    by_input = {site.inputs: site for site in found.found}
    assert len(by_input["x",].nodes) == 3
    (attention,) = [site for site in found.found if site.kind == sites.ATTENTION]
    assert attention.inputs == ("q", "kt", "p", "v")
    assert attention.needs == by_input["context",].name
    assert [site.kind for site in found.found].count(sites.GEMM) == 4


def test_flops_are_those_counted_by_hand() -> None:
    found = sites.find_sites(layer(), feeds(batch=BATCH), Attention(_int8.ATTENTION, PROFILES))
    by_input = {site.inputs[0] if site.kind == sites.GEMM else "attention": site.flops for site in found.found}
    square = 2 * TOKENS * WIDTH * WIDTH
    inner = 2 * TOKENS * WIDTH * INNER
    attention = 2 * (2 * BATCH * LENGTH * LENGTH * WIDTH)
    assert by_input == {"x": 3 * square, "context": square, "s": inner, "h": inner, "attention": attention}
    thin = 2 * (2 * TOKENS * WIDTH * 4)
    assert found.total == 4 * square + 2 * inner + attention + thin


def test_what_cannot_be_int8_says_why() -> None:
    found = sites.find_sites(layer(), feeds(batch=BATCH), Attention(_int8.ATTENTION, PROFILES))
    assert sorted(found.refused.values()) == [
        "weights of 32x4 are too thin for an int8 kernel (at least 16)",
        "weights of 4x32 are too thin for an int8 kernel (at least 16)",
    ]
    without = sites.find_sites(layer(), feeds(batch=BATCH))
    assert list(without.refused.values()).count("both operands are activations") == 2
    assert not [site for site in without.found if site.kind == sites.ATTENTION]
    assert without.total == found.total, "the share of int8 is of all GEMMs, whether or not they can be int8"


@pytest.mark.parametrize(
    ("sizes", "longest", "length", "why"),
    [
        ((16, 32, 64), 512, 512, ""),
        ((16, 32, 64), 512, 513, "no int8 kernel for attention over 513 positions, only up to 512 (--profile)"),
        ((16, 64), 512, 512, "no int8 kernel for attention with heads of 32, only of 16, 64"),
    ],
)
def test_attention_that_no_kernel_is_made_for_is_left(sizes: tuple[int, ...], longest: int, length: int, why: str) -> None:
    """The layer's own length is `S`; of two profiles the longer one counts."""
    profiles = [{"B": Range(1, 2, 4), "S": Range(1, 8, top)} for top in (16, length)]
    found = sites.find_sites(layer(), feeds(batch=BATCH), Attention(Int8Attention(longest, sizes), profiles))
    assert [site.kind for site in found.found].count(sites.ATTENTION) == (not why)
    assert [reason for reason in found.refused.values() if "attention" in reason] == [why] * (2 if why else 0)


def test_the_length_of_speech_is_computed_from_its_samples() -> None:
    """A frame every 4 samples, of which 2 make the first."""
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,1,T] x) => (float[B,S,16] y)
      <float[16,1,4] k, float[16,16] wo>
      { c = Conv <strides = [4], kernel_shape = [4]> (x, k) q = Transpose <perm = [0, 2, 1]> (c) raw = MatMul (q, c)
        p = Softmax <axis = -1> (raw) z = MatMul (p, q) y = MatMul (z, wo) }"""
    rng = np.random.default_rng(0)
    weights = {"k": (16, 1, 4), "wo": (16, 16)}
    graph = graph_of(text, **{name: rng.standard_normal(dims).astype(np.float32) for name, dims in weights.items()})
    given = {"x": np.ones((1, 1, 64), np.float32)}

    def refused(top: int) -> set[str]:
        profiles = [{"B": Range(1, 1, 1), "T": Range(4, 64, top)}]
        return {
            why
            for why in sites.find_sites(graph, given, Attention(_int8.ATTENTION, profiles)).refused.values()
            if "positions" in why
        }

    assert refused(2051) == set()
    assert refused(2052) == {"no int8 kernel for attention over 513 positions, only up to 512 (--profile)"}


def test_convolutions_pooled_vectors_and_scaled_gemms_are_left() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[B,32,S] x, float[B,32] z)
        => (float[B,32,S] c, float[B,32] d, float[B,32] e)
        <float[32,32,1] w, float[32,32] u, float[32,32] g, float[32] b>
        { c = Conv (x, w) d = MatMul (z, u) e = Gemm <beta = 0.5> (z, g, b) }"""
    )
    given = {"x": np.ones((2, 32, 5), np.float32), "z": np.ones((2, 32), np.float32)}
    found = sites.find_sites(graph, given)
    assert not found.found
    assert sorted(found.refused.values()) == [
        "Conv is left in float",
        "a Gemm with alpha, beta or transA",
        "it runs on one vector a sample",
    ]
    assert found.total == 2 * 2 * 5 * 32 * 32 + 2 * (2 * 2 * 32 * 32)
