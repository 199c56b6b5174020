"""What several kernels have inside: a row normalised in registers. No launch of its own."""

import triton
import triton.language as tl


@triton.jit
def normalised(total, inside, gamma, beta, columns, H: tl.constexpr, EPS: tl.constexpr, RMS: tl.constexpr):
    """LayerNorm, or RMSNorm, of rows [ROWS, BLOCK] in float32; `total` is 0 outside of H columns."""
    if not RMS:
        total -= (tl.sum(total, 1) / H)[:, None]
    kept = tl.where(inside, total, 0.0)
    made = kept * tl.rsqrt(tl.sum(kept * kept, 1) / H + EPS)[:, None]
    made *= tl.load(gamma + columns, mask=columns < H, other=0.0).to(tl.float32)[None, :]
    if beta is not None:
        made += tl.load(beta + columns, mask=columns < H, other=0.0).to(tl.float32)[None, :]
    return made
