"""Small encoders of random choices for the fuzzer: a dataclass of choices, which hypothesis draws and makes smaller.

The first value of every choice is the plainest and the default: what a failing model is described by is what differs from it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import strategies as st

CHOICES: dict[str, tuple[Any, ...]] = {
    "opset": (20, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23),
    "layers": (1, 2),
    "heads": (2, 1, 3, 4),
    "size": (8, 1, 2, 3, 4, 5, 7, 13, 16),
    "apart": (False, True),  # the heads are not as wide together as the model
    "embeddings": (
        "wp",
        "w",
        "pw",
        "wpt",
        "wtp",
        "ptw",
        "twp",
        "tpw",
        "pwt",
    ),  # words, positions, types in the order they are added
    "embedding_norm": (True, False),
    "embedding_scale": (False, True),
    "positions": ("slice", "range", "input", "mask sum"),
    "type_ids": ("input", "zeros"),
    "ids": ("int64", "int32"),
    "norm": ("post", "pre", "none"),
    "norm_form": ("pow", "mul", "operator", "sqrt of var + eps, rms"),
    "epsilon": (1e-12, 1e-5),
    "mask": ("1-m", "m-1", "where 0", "where scores", "where inverted", "none"),
    "mask_low": ("min", "-1e4", "-inf"),
    "mask_type": ("int64", "int32", "float32", "bool"),
    "mask_rank": (2, 3, 4),
    "mask_view": ("row", "expand", "outer", "expand bool"),
    "nan_guard": (False, True),
    "scale": ("scores div", "scores mul", "q", "k", "q and k", "weights", "none"),
    "heads_form": ("4-D", "3-D", "transposed k", "split", "packed", "operator"),
    "reshape": ("zeros", "shape", "constant -1"),
    "linear": ("MatMul", "Gemm", "Gemm transB", "Einsum", "Transpose"),
    "bias": ("after", "before", "none"),
    "storage": ("float", "half", "int8 cast", "int8 dequantize", "uint8 dequantize"),
    "ffn": ("erf", "erf halves", "erf mul", "tanh", "tanh mul", "silu", "relu", "sigmoid 1.702", "operator"),
    "gated": ("no", "two linears", "split", "split swapped"),
    "residual": ("x first", "y first"),
    "pool": ("none", "mean", "cls", "max", "masked max", "mean all", "normalised mean"),
    "second_mask": (False, True),
    "unused": (False, True),
    "two_outputs": (False, True),
    "control": ("none", "if ffn", "if attention", "if layers", "loop layers", "if in loop"),
    "seed": (0, 1, 2, 3),
}


@dataclasses.dataclass(frozen=True, repr=False)
class Encoder:
    """The choices; `Encoder()` is the plainest of them. What is no choice at its opset is never drawn: `possible`."""

    opset: int = 20
    layers: int = 1
    heads: int = 2
    size: int = 8
    apart: bool = False
    embeddings: str = "wp"
    embedding_norm: bool = True
    embedding_scale: bool = False
    positions: str = "slice"
    type_ids: str = "input"
    ids: str = "int64"
    norm: str = "post"
    norm_form: str = "pow"
    epsilon: float = 1e-12
    mask: str = "1-m"
    mask_low: str = "min"
    mask_type: str = "int64"
    mask_rank: int = 2
    mask_view: str = "row"
    nan_guard: bool = False
    scale: str = "scores div"
    heads_form: str = "4-D"
    reshape: str = "zeros"
    linear: str = "MatMul"
    bias: str = "after"
    storage: str = "float"
    ffn: str = "erf"
    gated: str = "no"
    residual: str = "x first"
    pool: str = "none"
    second_mask: bool = False
    unused: bool = False
    two_outputs: bool = False
    control: str = "none"
    seed: int = 0

    def __repr__(self) -> str:
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return f"Encoder({', '.join(f'{n}={v!r}' for n, v in vars(self).items() if v != plain[n])})"

    @property
    def rounds_padding(self) -> bool:
        """Do all scores of a padded query stand beside -10000, where the file itself rounds them to 0.001?"""
        return self.mask != "none" and self.mask_view == "outer" and self.mask_low == "-1e4" and self.mask != "where scores"

    @property
    def inner(self) -> int:
        """The width of all heads."""
        return self.heads * self.size

    @property
    def width(self) -> int:
        """Of the model. A norm over fewer numbers than 6 makes much of the rounding of two that are nearly the same."""
        return 12 if self.apart or self.inner < 6 else self.inner


def possible(drawn: Encoder) -> Encoder:
    """The same encoder without what its opset, or another of its choices, has no form for."""
    change: dict[str, Any] = {}
    if drawn.opset < 12 and drawn.linear == "Einsum":
        change["linear"] = "MatMul"
    if drawn.opset < 17 and drawn.norm_form == "operator":
        change["norm_form"] = "pow"
    if drawn.opset < 20 and drawn.ffn == "operator":
        change["ffn"] = "erf"
    if drawn.opset < 23 and drawn.heads_form == "operator":
        change["heads_form"] = "4-D"
    if drawn.opset < 13 and drawn.storage in ("int8 dequantize", "uint8 dequantize"):
        change["storage"] = "int8 cast"  # one scale for each column is of opset 13
    if drawn.mask == "none":
        change |= {"mask_low": "min", "mask_view": "row", "mask_rank": 2}
    if drawn.mask != "none" and drawn.mask_low == "-inf":
        if drawn.mask in ("1-m", "m-1"):  # 0 x inf
            change["mask_low"] = "-1e4"
        elif drawn.mask_view == "outer":  # a padded query attends to nothing, and its NaN goes everywhere
            change["mask_view"] = "row"
    if change.get("heads_form", drawn.heads_form) == "operator" and drawn.mask != "none":
        change["mask_view"] = "expand"  # ONNX Runtime takes no other mask
    elif drawn.mask_view == "expand bool" and drawn.mask in ("1-m", "m-1"):
        change["mask_view"] = "expand"
    elif drawn.mask_rank != 2 and drawn.mask_view == "outer":
        change["mask_view"] = "row"
    if drawn.mask_rank != 2 and (drawn.positions == "mask sum" or "mean" in drawn.pool or drawn.pool == "masked max"):
        change["mask_rank"] = 2  # these read it as [batch, length]
    made = dataclasses.replace(drawn, **change)
    masked = made.pool == "none" or ("mean" in made.pool and made.pool != "mean all") or made.pool == "masked max"
    if made.rounds_padding and (not masked or made.second_mask or (made.two_outputs and made.pool == "none")):
        change["mask_low"] = "min"  # an output of padded positions that nobody could compare
    if drawn.control == "if in loop" and drawn.layers != 1:
        change["layers"] = 1
    return dataclasses.replace(drawn, **change)


def encoders() -> st.SearchStrategy[Encoder]:
    return st.builds(Encoder, **{name: st.sampled_from(values) for name, values in CHOICES.items()}).map(possible)
