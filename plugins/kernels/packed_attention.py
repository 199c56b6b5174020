"""Attention over packed tokens: the part of FusedPackedAttention (`plugins/packed_attention.py`) between its projections.

qkv [T, 3, heads, D], as Wqkv writes it; cu_seqlens [rows + 1]: row i has the tokens cu_seqlens[i] to cu_seqlens[i + 1], and
may have none. A token sees the tokens of its row alone, and no other key is read, so that there is no mask. bias [heads, W], W
odd: what is added to the scores by distance, at key - query + (W - 1) / 2, of rows without holes; a distance that it does not
have gives NaN. keys [T]: what is added to the scores of each key, of rows that are kept with what their mask hides.

The grid needs no longest row: row i owns the tiles from cu_seqlens[i] // BM + i on, which leaves room for all of its own, and at
most one tile a row is empty. Softmax in float32, one pass (Milakov & Gimelshein 2018; Dao 2023).
"""

import triton
import triton.language as tl

from ._launch import FLOATS, IDS, Example, Launch, Tensor, Unsupported, Variant, cdiv


@triton.jit
def row_of(cu_seqlens, rows, tile, BM: tl.constexpr):
    """The last row whose tiles begin at or before this one, by bisection."""
    low = tile * 0
    high = rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        first = tl.load(cu_seqlens + middle).to(tl.int32) // BM + middle
        if first <= tile:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit
def packed_attention(
    qkv, cu_seqlens, bias, keys, rows, out,
    HEADS: tl.constexpr, D: tl.constexpr, W: tl.constexpr, SCALE: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A program has BM queries of one head of one row."""
    tile = tl.program_id(0)
    head = tl.program_id(1)
    row = row_of(cu_seqlens, rows, tile, BM)
    start = tl.load(cu_seqlens + row).to(tl.int32)
    length = tl.load(cu_seqlens + row + 1).to(tl.int32) - start
    first = (tile - (start // BM + row)) * BM
    if first < length:
        query = first + tl.arange(0, BM)
        d = tl.arange(0, BD)
        step: tl.constexpr = 3 * HEADS * D
        mine = qkv + start.to(tl.int64) * step + head * D
        asked = (query < length)[:, None] & (d < D)[None, :]
        q = tl.load(mine + query[:, None] * step + d[None, :], mask=asked, other=0.0)
        largest = tl.full([BM], float("-inf"), tl.float32)
        weight = tl.zeros([BM], tl.float32)
        context = tl.zeros([BM, BD], tl.float32)
        for j in range(0, length, BN):
            key = j + tl.arange(0, BN)
            seen = key < length
            at = mine + key * step
            k_t = tl.load(at[None, :] + HEADS * D + d[:, None], mask=seen[None, :] & (d < D)[:, None], other=0.0)
            scores = tl.dot(q, k_t, input_precision="ieee") * (SCALE * 1.4426950408889634)
            if bias is not None:
                distance = key[None, :] - query[:, None] + (W - 1) // 2
                known = (distance >= 0) & (distance < W)
                wanted = seen[None, :] & (query < length)[:, None]
                added = tl.load(bias + head * W + distance, mask=wanted & known, other=float("nan")).to(tl.float32)
                scores += tl.where(wanted, added, 0.0) * 1.4426950408889634
            if keys is not None:
                of_key = tl.load(keys + start.to(tl.int64) + key, mask=seen, other=0.0).to(tl.float32)
                scores += of_key[None, :] * 1.4426950408889634
            scores = tl.where(seen[None, :], scores, float("-inf"))
            now = tl.maximum(largest, tl.max(scores, 1))
            p = tl.exp2(scores - now[:, None])
            kept = tl.exp2(largest - now)
            weight = weight * kept + tl.sum(p, 1)
            v = tl.load(at[:, None] + 2 * HEADS * D + d[None, :], mask=seen[:, None] & (d < D)[None, :], other=0.0)
            context = tl.dot(p.to(v.dtype), v, context * kept[:, None], input_precision="ieee")
            largest = now
        to = out + (start.to(tl.int64) + query)[:, None] * (HEADS * D) + head * D + d[None, :]
        tl.store(to, (context / weight[:, None]).to(out.dtype.element_ty), mask=asked)


def _constants(d, a, v):
    if d["three"] != 3 or d["D"] % 8 or not 16 <= d["D"] <= 128:
        raise Unsupported(
            f"qkv is [T, 3, heads, D] with D of 16 to 128 in steps of 8, found [T, {d['three']}, {d['heads']}, {d['D']}]"
        )
    if d.get("W", 1) % 2 == 0:
        raise Unsupported(f"bias has {d['W']} distances, wanted an odd number: from -(n - 1) to n - 1")
    scale = a["scale"] or d["D"] ** -0.5
    wide = 1 << (d["D"] - 1).bit_length()
    return {**v.tiles, "HEADS": d["heads"], "D": d["D"], "W": d.get("W", 1), "SCALE": scale, "BD": wide}


def _traffic(d, c, size):
    """Of rows of one length: each tile of queries reads the keys and values of its row, and the biases of its scores."""
    length, width = d["T"] // d["rows"], d["heads"] * d["D"] * size["x"]
    tiles = cdiv(length, c["BM"])
    biases = d["rows"] * d["heads"] * length * length * size["x"] if "bias" in size else 0
    by_key = d["T"] * size["x"] if "keys" in size else 0
    least = 4 * d["T"] * width + (d["heads"] * d["W"] * size["x"] if "bias" in size else 0) + by_key
    return 2 * d["T"] * width + tiles * (2 * d["T"] * width + d["heads"] * by_key) + biases, least


SIZE = {"T": 4096, "three": 3, "heads": 12, "ends": 33}
LAUNCHES = (
    Launch(
        name="packed_attention",
        entry=packed_attention,
        inputs=(
            Tensor("qkv", "x", ("T", "three", "heads", "D")),
            Tensor("cu_seqlens", "id", ("ends",)),
            Tensor("bias", "x", ("heads", "W"), optional=True),
            Tensor("keys", "x", ("T",), optional=True),
        ),
        outputs=(Tensor("out", "x", ("T", "heads", "D")),),
        scalars={"rows": lambda d: d["rows"]},
        attributes={"scale": 0.0},  # 0: 1 / sqrt(D)
        types={"x": FLOATS, "id": IDS},
        derived=lambda d, a: {"rows": d["ends"] - 1},
        constants=_constants,
        grid=lambda d, c: (d["T"] // c["BM"] + d["rows"], d["heads"]),
        traffic=_traffic,
        variants=(
            # Which spills on no SM is found by compiling: tests/kernels/test_compiled.py.
            Variant({"BM": 64, "BN": 64}, registers=128, fits=lambda d: d["D"] <= 32 and "W" not in d),
            Variant({"BM": 64, "BN": 64}, fits=lambda d: 32 < d["D"] <= 64),
            Variant({"BM": 64, "BN": 32}, registers=255),
            Variant({"BM": 128, "BN": 64}, warps=8, fits=lambda d: d["D"] <= 64),
            Variant({"BM": 64, "BN": 32}, stages=1, registers=255, fits=lambda d: d["D"] > 64),  # within 48 KiB
        ),
        examples={
            "": Example({**SIZE, "D": 32}, absent=("bias", "keys")),
            "d64": Example({**SIZE, "D": 64}, absent=("bias", "keys")),
            "d128": Example({**SIZE, "D": 128}, absent=("bias", "keys")),
            "bias": Example({**SIZE, "D": 64, "W": 1023}, absent=("keys",)),
            "keys": Example({**SIZE, "D": 32}, absent=("bias",)),
            "keys d64": Example({**SIZE, "D": 64}, absent=("bias",)),
        },
    ),
)
