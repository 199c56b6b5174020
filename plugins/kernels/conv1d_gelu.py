"""FusedConv1dGelu (`plugins/conv1d_gelu.py`) as an implicit GEMM over taps and channels, with norm and GELU before it is written.

w is [K, C / groups, N]: the weights of the operator, [N, C / groups, K], transposed once, so that a tile of them is contiguous.
norm "none" and "layer" are one kernel. norm "group" is two: `conv1d_statistics` gives the mean and 1 / deviation of each
channel over time, and the second computes the convolution again rather than write and read it. That is little work where it
stands, in the first layer of wav2vec 2.0 (10 products a number).
"""

import triton
import triton.language as tl

from ._launch import Example, Launch, Tensor, Unsupported, Variant, block, cdiv
from .bias_gelu import gelu, known_form


@triton.jit
def tile_of(
    x, w, b, batch, group, o, kept, t, T, T2,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """[BO, BT] of the convolution in float32: channels o (where kept), positions t."""
    each: tl.constexpr = C // GROUPS
    made = tl.zeros([BO, BT], tl.float32)
    mine = x + batch.to(tl.int64) * C * T
    for r0 in range(0, K * each, BR):
        r = r0 + tl.arange(0, BR)
        inside = r < K * each
        at = (t * STRIDE - PAD)[None, :] + (r // each * DILATION)[:, None]
        there = inside[:, None] & (at >= 0) & (at < T) & (t < T2)[None, :]
        inputs = tl.load(mine + (group * each + r % each)[:, None] * T + at, mask=there, other=0.0)
        weights = tl.load(w + r[None, :] * N + o[:, None], mask=kept[:, None] & inside[None, :], other=0.0)
        made = tl.dot(weights, inputs, made, input_precision="ieee")
    if b is not None:
        made += tl.load(b + o, mask=kept, other=0.0).to(tl.float32)[:, None]
    return made


@triton.jit
def channels_of(program, N: tl.constexpr, GROUPS: tl.constexpr, BO: tl.constexpr):
    """(group, the channels of a tile, which of them there are): no tile has channels of two groups."""
    blocks: tl.constexpr = (N // GROUPS + BO - 1) // BO
    group = program // blocks
    inner = program % blocks * BO + tl.arange(0, BO)
    return group, group * (N // GROUPS) + inner, inner < N // GROUPS


@triton.jit
def own_tile(
    x, w, b, T, T2,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """(the tile of a program of the grid [positions, channels, batch], its batch, channels, which there are, its positions)."""
    group, o, kept = channels_of(tl.program_id(1), N, GROUPS, BO)
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    batch = tl.program_id(2)
    made = tile_of(x, w, b, batch, group, o, kept, t, T, T2, C, N, K, STRIDE, PAD, DILATION, GROUPS, BO, BT, BR)
    return made, batch, o, kept, t


@triton.jit
def store_gelu(out, made, batch, o, kept, t, T2, N: tl.constexpr, FORM: tl.constexpr):
    """GELU of a tile [BO, BT] to its place in [B, N, T2]."""
    to = out + batch.to(tl.int64) * N * T2 + o[:, None] * T2 + t[None, :]
    tl.store(to, gelu(made, FORM).to(out.dtype.element_ty), mask=kept[:, None] & (t < T2)[None, :])


@triton.jit
def conv1d_gelu(
    x, w, b, T, T2, out,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, FORM: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """No norm."""
    made, batch, o, kept, t = own_tile(x, w, b, T, T2, C, N, K, STRIDE, PAD, DILATION, GROUPS, BO, BT, BR)
    store_gelu(out, made, batch, o, kept, t, T2, N, FORM)


@triton.jit
def conv1d_layernorm_gelu(
    x, w, b, gamma, beta, T, T2, out,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, FORM: tl.constexpr, EPS: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Each position normalised over its channels, all of which a program has: one group only."""
    o = tl.arange(0, BO)
    kept = o < N
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    batch = tl.program_id(1)
    made = tile_of(x, w, b, batch, 0, o, kept, t, T, T2, C, N, K, STRIDE, PAD, DILATION, GROUPS, BO, BT, BR)
    made = tl.where(kept[:, None], made - (tl.sum(made, 0) / N)[None, :], 0.0)
    made *= tl.rsqrt(tl.sum(made * made, 0) / N + EPS)[None, :]
    made *= tl.load(gamma + o, mask=kept, other=0.0).to(tl.float32)[:, None]
    if beta is not None:
        made += tl.load(beta + o, mask=kept, other=0.0).to(tl.float32)[:, None]
    store_gelu(out, made, batch, o, kept, t, T2, N, FORM)


@triton.jit
def conv1d_statistics(
    x, w, b, T, T2, statistics,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, EPS: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / deviation of each channel over time, tile after tile, merged as Chan et al. 1983: nothing cancels."""
    group, o, kept = channels_of(tl.program_id(0), N, GROUPS, BO)
    batch = tl.program_id(1)
    mean = tl.zeros([BO], tl.float32)
    squares = tl.zeros([BO], tl.float32)
    for t0 in range(0, T2, BT):
        t = t0 + tl.arange(0, BT)
        made = tile_of(x, w, b, batch, group, o, kept, t, T, T2, C, N, K, STRIDE, PAD, DILATION, GROUPS, BO, BT, BR)
        counted = tl.minimum(T2 - t0, BT).to(tl.float32)
        own = tl.sum(tl.where((t < T2)[None, :], made, 0.0), 1) / counted
        centred = tl.where((t < T2)[None, :], made - own[:, None], 0.0)
        before = t0 * 1.0
        apart = own - mean
        mean += apart * (counted / (before + counted))
        squares += tl.sum(centred * centred, 1) + apart * apart * (before * counted / (before + counted))
    to = statistics + (batch.to(tl.int64) * N + o) * 2
    tl.store(to, mean, mask=kept)
    tl.store(to + 1, tl.rsqrt(squares / T2 + EPS), mask=kept)


@triton.jit
def conv1d_groupnorm_gelu(
    x, w, b, gamma, beta, statistics, T, T2, out,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, PAD: tl.constexpr, DILATION: tl.constexpr,
    GROUPS: tl.constexpr, FORM: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """With the statistics of `conv1d_statistics`."""
    made, batch, o, kept, t = own_tile(x, w, b, T, T2, C, N, K, STRIDE, PAD, DILATION, GROUPS, BO, BT, BR)
    found = statistics + (batch.to(tl.int64) * N + o) * 2
    made -= tl.load(found, mask=kept, other=0.0)[:, None]
    scale = tl.load(found + 1, mask=kept, other=0.0) * tl.load(gamma + o, mask=kept, other=0.0).to(tl.float32)
    made *= scale[:, None]
    if beta is not None:
        made += tl.load(beta + o, mask=kept, other=0.0).to(tl.float32)[:, None]
    store_gelu(out, made, batch, o, kept, t, T2, N, FORM)


ATTRIBUTES = {"stride": 1, "pad": 0, "pad_end": 0, "dilation": 1, "groups": 1}
NORMED = (Tensor("gamma", "x", ("N",)), Tensor("beta", "x", ("N",), optional=True))
GIVEN = (Tensor("x", "x", ("B", "C", "T")), Tensor("w", "x", ("K", "each", "N")), Tensor("b", "x", ("N",), optional=True))
OUT = (Tensor("out", "x", ("B", "N", "T2")),)
STATISTICS = Tensor("statistics", "fp32", ("B", "N", "two"))


def _derived(d, a):
    """T2, out of the padded length; expressions stand on the left of numbers, as TensorRT's have to."""
    return {"two": 2, "T2": (d["T"] + (a["pad"] + a["pad_end"] - 1) - (d["K"] - 1) * a["dilation"]) // a["stride"] + 1}


def _constants(d, a, v):
    groups = a["groups"]
    if groups * d["each"] != d["C"] or d["N"] % groups:
        raise Unsupported(f"{groups} groups of {d['each']} channels for {d['C']} channels in and {d['N']} out")
    made = {**v.tiles, **{name: d[name] for name in ("C", "N", "K")}, "GROUPS": groups}
    made |= {"STRIDE": a["stride"], "PAD": a["pad"], "DILATION": a["dilation"]}
    made |= {"EPS": a["epsilon"]} if "epsilon" in a else {}
    return made | ({"FORM": known_form(a["form"])} if "form" in a else {})


def _layer_constants(d, a, v):
    if a["groups"] != 1:
        raise Unsupported(f"{a['groups']} groups: a norm over channels is of one group")
    return {**_constants(d, a, v), "BO": block(d["N"], most=1024, what="channels")}


def _rows(d, c):
    return c["GROUPS"] * cdiv(c["N"] // c["GROUPS"], c["BO"])


def _traffic(repeats_x, repeats_w, written):
    """Weights once a tile of positions, inputs once a tap, a position and a tile of channels (most of it out of a cache)."""

    def moved(d, c, size):
        taps = d["K"] * d["each"] * d["T2"] * d["B"] * size["x"] * c["GROUPS"]
        weights = d["K"] * d["each"] * d["N"] * size["x"]
        vectors = (("b" in size) + ("gamma" in size) + ("beta" in size)) * d["N"] * size["x"]
        statistics = d["B"] * d["N"] * 8 * ("statistics" in size)
        y = d["B"] * d["N"] * d["T2"] * size["x"] * written
        tiles = d["B"] * repeats_w(d, c)
        least = d["B"] * d["C"] * d["T"] * size["x"] + weights + vectors + statistics + y
        again = statistics * (repeats_w(d, c) if written else 1)  # read once a tile, or written once
        return taps * repeats_x(d, c) // c["GROUPS"] + tiles * (weights + vectors) + again + y, least

    return moved


def _launch(name, entry, inputs, outputs, attributes, grid, traffic, variants, dims, constants=_constants, **given):
    return Launch(
        name=name,
        entry=entry,
        inputs=inputs,
        outputs=outputs,
        scalars={"T": lambda d: d["T"], "T2": lambda d: d["T2"]},
        attributes={**ATTRIBUTES, **attributes},
        derived=_derived,
        constants=constants,
        grid=grid,
        traffic=traffic,
        variants=variants,
        examples={"": Example(dims, attributes=given)},
    )


DEEP = {"B": 8, "C": 512, "each": 512, "N": 512, "K": 3, "T": 3199}
FIRST = {"B": 8, "C": 1, "each": 1, "N": 512, "K": 10, "T": 16000}
TILES = (
    Variant({"BO": 64, "BT": 64, "BR": 32}),
    Variant({"BO": 128, "BT": 64, "BR": 32}, warps=8),
    Variant({"BO": 32, "BT": 128, "BR": 16}),
)
WIDE = tuple(Variant({"BT": bt, "BR": br}, warps=8) for bt, br in ((32, 32), (16, 32), (16, 16)))
THREE = lambda d, c: (cdiv(d["T2"], c["BT"]), _rows(d, c), d["B"])  # noqa: E731
EACH_TILE = _traffic(_rows, lambda d, c: cdiv(d["T2"], c["BT"]), 1)
LAUNCHES = (
    _launch("conv1d_gelu", conv1d_gelu, GIVEN, OUT, {"form": "erf"}, THREE, EACH_TILE, TILES, DEEP, stride=2),
    _launch(
        "conv1d_layernorm_gelu", conv1d_layernorm_gelu, (*GIVEN, *NORMED), OUT, {"form": "erf", "epsilon": 1e-5},
        lambda d, c: (cdiv(d["T2"], c["BT"]), d["B"]), _traffic(lambda d, c: 1, lambda d, c: cdiv(d["T2"], c["BT"]), 1),
        WIDE, DEEP, _layer_constants, stride=2,
    ),
    _launch(
        "conv1d_statistics", conv1d_statistics, GIVEN, (STATISTICS,), {"epsilon": 1e-5},
        lambda d, c: (_rows(d, c), d["B"]), _traffic(_rows, lambda d, c: cdiv(d["T2"], c["BT"]), 0),
        (Variant({"BO": 16, "BT": 128, "BR": 16}), Variant({"BO": 64, "BT": 64, "BR": 16})), FIRST, stride=5,
    ),
    _launch(
        "conv1d_groupnorm_gelu", conv1d_groupnorm_gelu, (*GIVEN, *NORMED, STATISTICS), OUT, {"form": "erf"},
        THREE, EACH_TILE, TILES[2:] + TILES[:2], FIRST, stride=5,
    ),
)  # fmt: skip
