"""FusedBiasGelu (`plugins/bias_gelu.py`): read once, written once; the three forms are three compilations."""

import triton
import triton.language as tl

from ._launch import Example, Launch, Tensor, Unsupported, Variant, cdiv

FORMS = ("erf", "tanh", "quick")


@triton.jit
def gelu(u, FORM: tl.constexpr):
    """In float32. 0.5 (1 + tanh z) is the sigmoid of 2 z; exp overflows to infinity, and the quotient is then 0."""
    if FORM == "erf":
        return u * 0.5 * (1.0 + tl.erf(u * 0.7071067811865476))
    if FORM == "tanh":
        return u / (1.0 + tl.exp(-1.5957691216057308 * (u + 0.044715 * u * u * u)))
    return u / (1.0 + tl.exp(-1.702 * u))


@triton.jit
def bias_gelu(
    x, bias, rows, out, N: tl.constexpr, FORM: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program has ROWS rows of BLOCK columns."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (columns < N)[None, :]
    at = row.to(tl.int64)[:, None] * N + columns[None, :]
    u = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    u += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, gelu(u, FORM).to(out.dtype.element_ty), mask=inside)


def known_form(form: str) -> str:
    if form not in FORMS:
        raise Unsupported(f"unknown form of GELU {form!r}; known: {', '.join(FORMS)}")
    return form


def _traffic(d, c, size):
    """The bias is read again by each row of programs."""
    rows = 2 * d["R"] * d["N"] * size["x"]
    return rows + cdiv(d["R"], c["ROWS"]) * d["N"] * size["x"], rows + d["N"] * size["x"]


LAUNCHES = (
    Launch(
        name="bias_gelu",
        entry=bias_gelu,
        inputs=(Tensor("x", "x", ("R", "N")), Tensor("bias", "x", ("N",))),
        outputs=(Tensor("out", "x", ("R", "N")),),
        scalars={"rows": lambda d: d["R"]},
        attributes={"form": "erf"},
        constants=lambda d, a, v: {**v.tiles, "N": d["N"], "FORM": known_form(a["form"])},
        grid=lambda d, c: (cdiv(d["R"], c["ROWS"]), cdiv(d["N"], c["BLOCK"])),
        traffic=_traffic,
        variants=(Variant({"ROWS": 4, "BLOCK": 512}), Variant({"ROWS": 8, "BLOCK": 256}), Variant({"ROWS": 2, "BLOCK": 512})),
        examples={
            "": Example({"R": 4096, "N": 1536}),
            "tanh": Example({"R": 4096, "N": 1536}, attributes={"form": "tanh"}),
        },
    ),
)
