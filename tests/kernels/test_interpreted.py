"""Every kernel in Triton's interpreter against its numpy oracle: awkward sizes, every optional part, and random ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_checks import (
    Run,
    check_attention,
    check_bias_gelu,
    check_conv,
    check_embeddings,
    check_gather,
    check_skip_layernorm,
    numbers,
)

AWKWARD = [(1, 1), (2, 16), (3, 17), (5, 37), (7, 127), (1, 129)]  # rows and width: 1, primes, at and over a block
TWO = ["fp32", "fp16"]
few = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("kind", [*TWO, "bf16"])
@pytest.mark.parametrize(("rows", "width"), AWKWARD)
def test_embeddings(run: Run, rows: int, width: int, kind: str) -> None:
    check_embeddings(run, rows, 3, width, kind=kind)
    check_embeddings(run, 1, rows, width, kind=kind, ids=np.int32)


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize("tables", ["", "p", "t", "pt"])
def test_embeddings_with_each_set_of_tables(run: Run, tables: str, variant: int) -> None:
    check_embeddings(run, 3, 5, 19, tables=tables, types=False, variant=variant)
    check_embeddings(run, 3, 5, 19, tables=tables, positions=1, beta=False, variant=variant)
    check_embeddings(run, 3, 5, 19, tables=tables, positions=3, variant=variant)


def test_an_index_outside_a_table_gives_nan_and_reads_nothing(run: Run) -> None:
    ids = np.array([[0, 7, -8, -1]])
    inputs = {"ids": ids, "word": numbers(1, 7, 5), "gamma": numbers(2, 5)}
    got = run("embeddings", "embeddings", inputs, {"out": ((1, 4, 5), "fp32")}, {})["out"]
    assert np.isnan(got[0]).all(1).tolist() == [False, True, True, False]
    packed = {"x": numbers(1, 3, 5), "index": np.array([2, 3, -1, -2])}
    got = run("padding", "remove_padding", packed, {"out": ((4, 5), "fp32")}, {})["out"]
    assert np.isnan(got).all(1).tolist() == [False, True, False, True] and not got[2].any()


@pytest.mark.parametrize("kind", [*TWO, "bf16"])
@pytest.mark.parametrize(("rows", "width"), AWKWARD)
def test_skip_layernorm(run: Run, rows: int, width: int, kind: str) -> None:
    check_skip_layernorm(run, rows, width, kind=kind)
    check_skip_layernorm(run, rows, width, kind=kind, bias=False, beta=False, total=False)
    check_skip_layernorm(run, rows, width, kind=kind, rms=True)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_skip_layernorm_keeps_its_digits_beside_a_large_mean(run: Run, variant: int) -> None:
    """At a mean of 1000 float32 rounds the sum to 6e-5; a variance of squares less the square of the mean keeps no digit."""
    check_skip_layernorm(run, 3, 37, offset=1000.0, total=False, variant=variant, limit=3e-4)


@pytest.mark.parametrize("quantised", ["i8", "fp8e4nv"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 37), (3, 129)])
def test_the_quantised_output(run: Run, rows: int, width: int, quantised: str) -> None:
    """The scale covers [-2, 2], gamma and beta go beyond: rounding and saturation."""
    check_skip_layernorm(run, rows, width, quantised=quantised)
    check_skip_layernorm(run, rows, width, kind="fp16", quantised=quantised, rms=True)


def test_ties_go_to_even_and_ends_saturate(run: Run) -> None:
    """Rows of two that normalise to -1 and 1, times gamma: exact halves."""
    gamma = np.array([0.5, 1.5], np.float32)
    inputs = {"x": np.array([[-1, 1]], np.float32), "skip": np.zeros((1, 2), np.float32), "gamma": gamma}
    for scale, wanted in ((1.0, [0, 2]), (0.2, [-2, 8]), (0.001, [-128, 127])):
        outputs = {"y": ((1, 2), "fp32"), "quantised": ((1, 2), "i8")}
        stated = {**inputs, "scale": np.array([scale], np.float32)}
        got = run("skip_layernorm", "skip_layernorm", stated, outputs, {"epsilon": 0.0})
        assert np.abs(got["y"] - [[-0.5, 1.5]]).max() < 1e-6
        assert got["quantised"].tolist() == [wanted]


@pytest.mark.parametrize("form", ["erf", "tanh", "quick"])
@pytest.mark.parametrize("kind", [*TWO, "bf16"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 17), (5, 513), (9, 257)])
def test_bias_gelu(run: Run, rows: int, width: int, kind: str, form: str) -> None:
    check_bias_gelu(run, rows, width, kind=kind, form=form)


def test_gelu_far_out_is_the_identity_and_zero(run: Run) -> None:
    x, outputs = np.array([[1e4, -1e4, 88.8, -88.8]], np.float32), {"out": ((1, 4), "fp32")}
    for form in ("erf", "tanh", "quick"):
        got = run("bias_gelu", "bias_gelu", {"x": x, "bias": np.zeros(4, np.float32)}, outputs, {"form": form})["out"]
        assert np.abs(got - np.maximum(x, 0)).max() < 1e-30


@pytest.mark.parametrize("variant", [0, 1, 2])
@pytest.mark.parametrize(("rows", "wanted", "width"), [(1, 1, 1), (0, 5, 3), (5, 5, 17), (11, 23, 37), (3, 50, 513)])
def test_padding(run: Run, rows: int, wanted: int, width: int, variant: int) -> None:
    for kind in TWO:
        check_gather(run, rows, wanted, width, kind=kind, variant=variant)


@pytest.mark.parametrize("kind", [*TWO, "bf16"])
@pytest.mark.parametrize(("bias", "keys"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("lengths", [[1], [64], [65], [1, 0, 17, 64, 65, 0, 2], [0, 0, 3], [63, 1, 130]])
def test_attention(run: Run, lengths: list[int], bias: bool, keys: bool, kind: str) -> None:
    """One token, at and over a block, empty rows at the front, between and behind."""
    check_attention(run, lengths, 2, 32, bias=bias, keys=keys, kind=kind)


@pytest.mark.parametrize("size", range(16, 129, 8))
def test_heads_of_every_size(run: Run, size: int) -> None:
    check_attention(run, [5, 0, 33, 66], 2, size, kind="fp16", bias=size % 16 == 0)


@pytest.mark.parametrize("variant", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("ids", [np.int32, np.int64])
def test_every_variant_of_attention(run: Run, variant: int, ids: type) -> None:
    check_attention(run, [129, 0, 31, 32, 1], 3, 16, bias=True, ids=ids, variant=variant, scale=0.3)


@pytest.mark.parametrize("mask", ["full", "right", "left", "holes", "empty row"])
def test_every_kind_of_mask_as_lengths(run: Run, mask: str) -> None:
    """remove, attend, restore: what the padded attention gives with that mask, at every position that holds a token."""
    from bertc.plugins import score_mask, sdpa

    batch, length, heads, size = 3, 21, 2, 16
    live = np.ones((batch, length), bool)
    live[1, 4:] = mask != "right"
    live[2, :9] = mask != "left"
    if mask == "holes":
        live &= np.random.default_rng(0).random(live.shape) < 0.6
    live[0] &= mask != "empty row"
    padded = numbers(1, batch, length, 3, heads, size)
    padded[~live] = np.nan  # what is read of padding is seen
    tokens, ends = np.flatnonzero(live), np.cumsum([0, *live.sum(1)]).astype(np.int32)
    flat = padded.reshape(batch * length, -1)
    width = flat.shape[1]
    packed = run("padding", "remove_padding", {"x": flat, "index": tokens}, {"out": ((len(tokens), width), "fp32")}, {})["out"]
    inputs = {"qkv": packed.reshape(-1, 3, heads, size), "cu_seqlens": ends}
    made = run("packed_attention", "packed_attention", inputs, {"out": ((len(tokens), heads, size), "fp32")}, {})["out"]
    index = np.full(batch * length, -1)
    index[tokens] = np.arange(len(tokens))
    back = {"x": made.reshape(len(tokens), -1), "index": index}
    got = run("padding", "restore_padding", back, {"out": ((batch * length, heads * size), "fp32")}, {})["out"]
    q, k, v = (np.nan_to_num(padded[:, :, part]).transpose(0, 2, 1, 3) for part in range(3))
    wanted = sdpa.attend(q, k.swapaxes(2, 3), v, score_mask.reference(live, -3.4e38), size**-0.5).transpose(0, 2, 1, 3)
    assert np.abs(got.reshape(wanted.shape) - wanted)[live].max() < 4e-6
    assert not got.reshape(batch, length, -1)[~live].any()


@pytest.mark.parametrize("kind", [*TWO, "bf16"])
@pytest.mark.parametrize("norm", ["none", "layer", "group"])
def test_convolution(run: Run, norm: str, kind: str) -> None:
    check_conv(run, 1, 1, 1, 1, 1, kind=kind, norm=norm)
    check_conv(run, 2, 1, 163, 33, 10, stride=5, kind=kind, norm=norm)  # the first layer of wav2vec 2.0
    check_conv(run, 2, 17, 131, 19, 3, stride=2, kind=kind, norm=norm, bias=False, beta=False)
    check_conv(run, 1, 5, 23, 7, 4, pads=(2, 1), dilation=2, kind=kind, norm=norm, form="tanh")


@pytest.mark.parametrize("norm", ["none", "group"])
def test_convolution_in_groups(run: Run, norm: str) -> None:
    check_conv(run, 2, 12, 70, 6, 8, pads=(4, 3), groups=3, norm=norm)  # the positional convolution
    check_conv(run, 1, 4, 9, 4, 2, groups=4, norm=norm)


@pytest.mark.parametrize("norm", ["none", "layer", "group"])
@pytest.mark.parametrize("variant", [0, 1, 2])
def test_every_variant_of_convolution(run: Run, norm: str, variant: int) -> None:
    check_conv(run, 1, 3, 200, 67, 3, norm=norm, variant=variant)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_norm_of_convolution_keeps_its_digits_beside_a_large_bias(run: Run, norm: str) -> None:
    """The channels of one position differ by the bias, and those of "group" do not; float32 has 1e-5 of 100."""
    check_conv(run, 1, 3, 150, 8, 3, norm=norm, offset=100.0, limit=1e-4)


@few
@given(rows=st.integers(1, 9), width=st.integers(1, 140), kind=st.sampled_from(TWO), flags=st.tuples(*[st.booleans()] * 3))
def test_any_skip_layernorm(run: Run, rows: int, width: int, kind: str, flags: tuple[bool, ...]) -> None:
    check_skip_layernorm(run, rows, width, kind=kind, bias=flags[0], beta=flags[1], rms=flags[2])


@few
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6),
    heads=st.integers(1, 3),
    eighths=st.integers(2, 9),
    bias=st.booleans(),
    keys=st.booleans(),
)
def test_any_attention(run: Run, lengths: list[int], heads: int, eighths: int, bias: bool, keys: bool) -> None:
    check_attention(run, lengths, heads, 8 * eighths, bias=bias, keys=keys)


@few
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(12, 90), st.integers(1, 40), st.integers(1, 5)),
    norm=st.sampled_from(["none", "layer", "group"]),
    stride=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 2),
)
def test_any_convolution(run: Run, sizes: tuple[int, ...], norm: str, stride: int, pads: tuple[int, int], dilation: int) -> None:
    check_conv(run, *sizes, norm=norm, stride=stride, pads=pads, dilation=dilation)


@few
@given(batch=st.integers(1, 4), length=st.integers(1, 9), width=st.integers(1, 70), tables=st.sampled_from(["", "p", "t", "pt"]))
def test_any_embeddings(run: Run, batch: int, length: int, width: int, tables: str) -> None:
    check_embeddings(run, batch, length, width, tables=tables, positions=batch % 3)
