"""FusedSkipLayerNorm and FusedSkipRmsNorm (`plugins/skip_layernorm.py`, `plugins/skip_rmsnorm.py`) in one kernel.

With `scale` [1] and the output `quantised` it also writes what the next GEMM reads, as QuantizeLinear does with the zero point 0:
y / scale, to the nearest and ties to even, saturated, in int8 or float8 e4m3.
"""

import triton
import triton.language as tl

from ._launch import FLOATS, QUANTISED, Example, Launch, Tensor, Variant, block, cdiv
from ._norm import normalised


@triton.jit
def quantise(y, scale, kind: tl.constexpr):
    """Rounded in float32, so that the cast has nothing to round: the interpreter's cast to float8 does not go to the nearest.

    Adding and taking away 1.5 * 2^23 leaves the nearest whole number, the even one of two; 1.5 * 2^14 the nearest multiple of
    2^-9, which are the numbers of float8 e4m3 below 2^-6. Above, 20 bits go from the end of a float32.
    """
    scaled = tl.div_rn(y, scale + tl.zeros_like(y))
    if kind == tl.int8:
        bounded = tl.minimum(tl.maximum(scaled, -128.0), 127.0)
        return ((bounded + 12582912.0) - 12582912.0).to(tl.int8)
    bounded = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    bits = bounded.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    small = (bounded + 24576.0) - 24576.0
    return tl.where(tl.abs(bounded) < 0.015625, small, bits.to(tl.float32, bitcast=True)).to(kind)


@triton.jit
def skip_layernorm(
    x, skip, bias, gamma, beta, scale, rows, y, total, quantised,
    H: tl.constexpr, EPS: tl.constexpr, RMS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program has ROWS rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    wide = columns < H
    inside = (row < rows)[:, None] & wide[None, :]
    at = row.to(tl.int64)[:, None] * H + columns[None, :]
    added = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + tl.load(skip + at, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        added += tl.load(bias + columns, mask=wide, other=0.0).to(tl.float32)[None, :]
    if total is not None:
        tl.store(total + at, added.to(total.dtype.element_ty), mask=inside)
    made = normalised(added, wide[None, :], gamma, beta, columns, H, EPS, RMS)
    tl.store(y + at, made.to(y.dtype.element_ty), mask=inside)
    if quantised is not None:
        kind: tl.constexpr = quantised.dtype.element_ty
        tl.store(quantised + at, quantise(made, tl.load(scale), kind), mask=inside)


def _traffic(d, c, size):
    """x, skip, y, sum once; bias, gamma, beta once a program, which the caches hold."""
    written = size["x"] + ("total" in size) * size["x"] + ("quantised" in size) * size["q"]
    rows = d["R"] * d["H"] * (2 * size["x"] + written)
    vectors = (1 + ("bias" in size) + ("beta" in size)) * d["H"] * size["x"]
    scale = 4 * ("quantised" in size)
    return rows + (vectors + scale) * cdiv(d["R"], c["ROWS"]), rows + vectors + scale


LAUNCHES = (
    Launch(
        name="skip_layernorm",
        entry=skip_layernorm,
        inputs=(
            Tensor("x", "x", ("R", "H")),
            Tensor("skip", "x", ("R", "H")),
            Tensor("bias", "x", ("H",), optional=True),
            Tensor("gamma", "x", ("H",)),
            Tensor("beta", "x", ("H",), optional=True),
            Tensor("scale", "fp32", ("one",), optional=True),
        ),
        outputs=(
            Tensor("y", "x", ("R", "H")),
            Tensor("total", "x", ("R", "H"), optional=True),
            Tensor("quantised", "q", ("R", "H"), optional=True),
        ),
        scalars={"rows": lambda d: d["R"]},
        attributes={"epsilon": 1e-5, "rms": False},
        types={"x": FLOATS, "q": QUANTISED},
        constants=lambda d, a, v: {**v.tiles, "H": d["H"], "EPS": a["epsilon"], "RMS": a["rms"], "BLOCK": block(d["H"])},
        grid=lambda d, c: (cdiv(d["R"], c["ROWS"]),),
        traffic=_traffic,
        variants=(Variant({"ROWS": 2}), Variant({"ROWS": 1}), Variant({"ROWS": 4}, warps=8)),
        examples={
            "": Example({"R": 4096, "H": 384}, absent=("scale", "quantised")),
            "int8": Example({"R": 4096, "H": 384, "one": 1}, types={"q": "i8"}),
            "fp8": Example({"R": 4096, "H": 384, "one": 1}, types={"q": "fp8e4nv"}),
            "rms": Example({"R": 4096, "H": 768}, absent=("bias", "beta", "scale", "quantised"), attributes={"rms": True}),
        },
    ),
)
