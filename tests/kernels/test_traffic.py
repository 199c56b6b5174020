"""The bytes that `bertc kernels` states are those that the programs move, counted load by load in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_checks import Run

from bertc.plugins.kernels import _ptx, launches
from bertc.plugins.kernels._launch import Example

CONV = {"B": 2, "C": 5, "each": 5, "N": 70, "K": 3, "T": 150}
CASES: dict[str, list[Example]] = {
    "embeddings": [
        Example({"B": 2, "S": 5, "V": 7, "P": 9, "Y": 2, "H": 20}, absent=("positions",)),
        Example({"B": 2, "S": 5, "V": 7, "N": 1, "P": 9, "H": 20}, absent=("types", "type_")),
    ],
    "skip_layernorm": [
        Example({"R": 7, "H": 20}, absent=("scale", "quantised")),
        Example({"R": 7, "H": 20, "one": 1}, absent=("bias", "total"), types={"q": "i8"}),
    ],
    "bias_gelu": [Example({"R": 9, "N": 700})],
    "remove_padding": [Example({"P": 23, "T": 9, "H": 600})],
    "restore_padding": [Example({"P": 23, "T": 9, "H": 600})],
    "packed_attention": [
        Example({"T": 300, "three": 3, "heads": 2, "D": 24, "ends": 4}, absent=("bias", "keys")),
        Example({"T": 300, "three": 3, "heads": 2, "D": 24, "ends": 4, "W": 199}, absent=("keys",)),
        Example({"T": 300, "three": 3, "heads": 2, "D": 24, "ends": 4, "W": 199}),
    ],
    "conv1d_gelu": [Example(CONV, attributes={"stride": 2}), Example({**CONV, "C": 10}, absent=("b",), attributes={"groups": 2})],
    "conv1d_layernorm_gelu": [Example(CONV)],
    "conv1d_statistics": [Example(CONV)],
    "conv1d_groupnorm_gelu": [Example(CONV, absent=("beta",))],
}


def tensors(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Indices that are there, and numbers."""
    r = np.random.default_rng(0)
    known, made = launches()[name].tensors(), {}
    for each, shape in shapes.items():
        made[each] = r.integers(0, 2, shape).astype(np.int32) if known[each].type == "id" else r.random(shape).astype(np.float32)
    if "cu_seqlens" in made:
        made["cu_seqlens"] = np.arange(len(made["cu_seqlens"]), dtype=np.int32) * 100
    if name == "restore_padding":
        made["index"] = np.where(np.arange(len(made["index"])) < len(made["x"]), np.arange(len(made["index"])), -1)
    if name == "remove_padding":
        made["index"] = np.arange(len(made["index"]))
    return made


def test_every_launch_is_counted() -> None:
    assert set(CASES) == set(launches())


@pytest.mark.parametrize(("name", "example"), [(name, each) for name, cases in CASES.items() for each in cases])
def test_the_bytes_moved_are_those_stated(run: Run, name: str, example: Example) -> None:
    launch = launches()[name]
    wide = "i64" if name.endswith("padding") else "i32"
    stated = Example(example.dims, example.absent, example.attributes, {"x": "fp32", "id": wide, "q": "i8"} | dict(example.types))
    shapes = _ptx.example_shapes(launch, stated)
    outputs: dict[str, Any] = {
        t.name: (shapes[t.name], {"x": "fp32", "q": "i8"}.get(t.type, t.type)) for t in launch.outputs if t.name in shapes
    }
    inputs = tensors(name, {t.name: shapes[t.name] for t in launch.inputs if t.name in shapes})
    kinds = {choice: word for choice, word in stated.types.items() if choice in launch.types}
    moved, least = _ptx.traffic(launch, Example(stated.dims, stated.absent, stated.attributes, kinds))
    counted = run(name if name in FILES else FILE_OF[name], name, inputs, outputs, dict(example.attributes))["moved"]
    bisection = 2 * 4 * (3 + 2) * 2 * (300 // 64 + 3) if name == "packed_attention" else 0  # of cu_seqlens, which is left out
    assert abs(counted - moved) <= bisection
    assert least <= moved


FILES = {"embeddings", "skip_layernorm", "bias_gelu", "packed_attention"}
FILE_OF = {name: "padding" if name.endswith("padding") else "conv1d_gelu" for name in CASES}
