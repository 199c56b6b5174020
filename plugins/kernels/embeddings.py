"""FusedEmbeddings (`plugins/embeddings.py`) in one kernel: up to three rows added in float32, normalised, written once.

positions may have one row, for all of the batch. An index that its table does not have gives a row of NaN and reads nothing.
"""

import triton
import triton.language as tl

from ._launch import FLOATS, IDS, Example, Launch, Tensor, Variant, block, cdiv
from ._norm import normalised


@triton.jit
def rows_of(table, index, size: tl.constexpr, columns, inside, H: tl.constexpr):
    """Rows of a table in float32; a negative index counts from its end, as in ONNX."""
    index = index.to(tl.int64)
    index = tl.where(index < 0, index + size, index)
    known = (index >= 0) & (index < size)
    at = index[:, None] * H + columns[None, :]
    return tl.load(table + at, mask=inside & known[:, None], other=float("nan")).to(tl.float32)


@triton.jit
def embeddings(
    ids, positions, types, word, position, type_, gamma, beta, tokens, places, out,
    V: tl.constexpr, P: tl.constexpr, Y: tl.constexpr, H: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program has ROWS tokens."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    there = token < tokens
    inside = there[:, None] & (columns < H)[None, :]
    total = rows_of(word, tl.load(ids + token, mask=there, other=0), V, columns, inside, H)
    if position is not None:
        at = token % places
        if positions is not None:
            at = tl.load(positions + at, mask=there, other=0)
        total += rows_of(position, at, P, columns, inside, H)
    if type_ is not None:
        kind = token * 0
        if types is not None:
            kind = tl.load(types + token, mask=there, other=0)
        total += rows_of(type_, kind, Y, columns, inside, H)
    total = tl.where(inside, total, 0.0)
    made = normalised(total, inside, gamma, beta, columns, H, EPS, False)
    tl.store(out + token.to(tl.int64)[:, None] * H + columns[None, :], made.to(out.dtype.element_ty), mask=inside)


def _traffic(d, c, size):
    """Every token reads a row of each table and its indices once; gamma and beta are read again by each program."""
    tokens, programs = d["B"] * d["S"], cdiv(d["B"] * d["S"], c["ROWS"])
    lookups = 1 + ("P" in d) + ("Y" in d)
    indices = (1 + ("Y" in d)) * tokens + ("N" in d) * tokens
    rows = (lookups + 1) * tokens * d["H"] * size["x"] + indices * size["id"]
    return rows + 2 * programs * d["H"] * size["x"], rows + 2 * d["H"] * size["x"]


LAUNCHES = (
    Launch(
        name="embeddings",
        entry=embeddings,
        inputs=(
            Tensor("ids", "id", ("B", "S")),
            Tensor("positions", "id", ("N", "S"), optional=True),
            Tensor("types", "id", ("B", "S"), optional=True),
            Tensor("word", "x", ("V", "H")),
            Tensor("position", "x", ("P", "H"), optional=True),
            Tensor("type_", "x", ("Y", "H"), optional=True),
            Tensor("gamma", "x", ("H",)),
            Tensor("beta", "x", ("H",), optional=True),
        ),
        outputs=(Tensor("out", "x", ("B", "S", "H")),),
        scalars={"tokens": lambda d: d["B"] * d["S"], "places": lambda d: d["N"] * d["S"] if "N" in d else d["S"]},
        attributes={"epsilon": 1e-5},
        types={"x": FLOATS, "id": IDS},
        constants=lambda d, a, v: {
            **v.tiles,
            **{name: d.get(name, 0) for name in "VPYH"},
            "EPS": a["epsilon"],
            "BLOCK": block(d["H"]),
        },
        grid=lambda d, c: (cdiv(d["B"] * d["S"], c["ROWS"]),),
        traffic=_traffic,
        variants=(Variant({"ROWS": 2}), Variant({"ROWS": 1}), Variant({"ROWS": 4}, warps=8)),
        examples={
            "": Example({"B": 32, "S": 128, "V": 30522, "P": 512, "Y": 2, "H": 384}, absent=("positions",)),
            "distil": Example({"B": 32, "S": 128, "V": 30522, "P": 512, "H": 768}, absent=("positions", "types", "type_")),
        },
    ),
)
