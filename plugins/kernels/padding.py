"""Removing and restoring the padding of a batch: rows that an index names, and zeros where the index is -1.

remove_padding   x [P, H], index [T]: the position of each token (`tokens` of `plugins/packed_layout.py`) -> [T, H]
restore_padding  x [T, H], index [P]: the token of each position, -1 where there is none -> [P, H]

Padding is never read: that row of `restore_padding` is written without a load. An index that x does not have gives a row of NaN.
"""

import triton
import triton.language as tl

from ._launch import FLOATS, IDS, Example, Launch, Tensor, Variant, cdiv


@triton.jit
def gather_rows(x, index, rows, known, out, H: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """A program has ROWS rows of BLOCK columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(index + row, mask=row < rows, other=-1).to(tl.int64)
    inside = (row < rows)[:, None] & (columns < H)[None, :]
    there = (at >= 0) & (at < known)
    got = tl.load(x + at[:, None] * H + columns[None, :], mask=inside & there[:, None], other=0.0)
    wrong = (at < -1) | (at >= known)
    got = tl.where(wrong[:, None], float("nan"), got)
    tl.store(out + row.to(tl.int64)[:, None] * H + columns[None, :], got.to(out.dtype.element_ty), mask=inside)


def _traffic(d, c, size):
    """Every token is read once and every row written once; the index is read by each column of programs."""
    tokens = min(d["T"], d["P"])
    moved = (tokens + d["rows"]) * d["H"] * size["x"]
    index = d["rows"] * size["id"]
    return moved + index * cdiv(d["H"], c["BLOCK"]), moved + index


def _launch(name: str, given: str, wanted: str) -> Launch:
    return Launch(
        name=name,
        entry=gather_rows,
        inputs=(Tensor("x", "x", (given, "H")), Tensor("index", "id", (wanted,))),
        outputs=(Tensor("out", "x", (wanted, "H")),),
        scalars={"rows": lambda d: d[wanted], "known": lambda d: d[given]},
        types={"x": FLOATS, "id": IDS},
        derived=lambda d, a: {"rows": d[wanted]},
        constants=lambda d, a, v: {**v.tiles, "H": d["H"]},
        grid=lambda d, c: (cdiv(d[wanted], c["ROWS"]), cdiv(d["H"], c["BLOCK"])),
        traffic=_traffic,
        variants=(Variant({"ROWS": 4, "BLOCK": 512}), Variant({"ROWS": 2, "BLOCK": 512}), Variant({"ROWS": 8, "BLOCK": 256})),
        examples={"": Example({"P": 4096, "T": 1024, "H": 384})},
    )


LAUNCHES = (_launch("remove_padding", "P", "T"), _launch("restore_padding", "T", "P"))
