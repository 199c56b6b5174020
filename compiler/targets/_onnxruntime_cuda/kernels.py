"""The CUDA kernels of onnxruntime-gpu: which operator, from which opset on, of which types; nothing of the wheel is needed.

`kernels.json.gz` is what the library answers (`get_all_opkernel_def`, and the formal types of com.microsoft operators); a test
holds the two together where the wheel is unpacked.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

TABLE = Path(__file__).parent / "kernels.json.gz"
SHA256 = "7e33c0eadb18aa07fd28e1fc28b71b669b9f02357b27c5946197d0c44aeefbe7"  # of the table: a fleet's cache knows code alone
ONNX_DOMAINS = ("", "ai.onnx")
OPEN = 2**31 - 1  # a kernel without a last version is for the operator as it is since the first, not for what came later


@functools.cache
def table() -> Mapping[str, Any]:
    """{"onnxruntime": version, "sms": [...], "kernels": {"domain::Op": [[since, until, types]]}, "formal": {...}}."""
    return json.loads(gzip.decompress(TABLE.read_bytes()))


def sms() -> tuple[str, ...]:
    """The SMs that the wheel has machine code for; it has no PTX, from which a driver could make others."""
    return tuple(f"sm{number}" for number in table()["sms"])


def image_for(sm: str) -> str | None:
    """The machine code that a GPU runs: that of its own major version, and no newer than it; None where the wheel has none."""
    major, minor = divmod(int(sm.removeprefix("sm")), 10)
    fitting = [number for number in table()["sms"] if number // 10 == major and number % 10 <= minor]
    return f"sm{max(fitting)}" if fitting else None


def why_no_kernel(node: ir.Node, opset: int, half: ir.DataType | None = None) -> str | None:
    """None where there is a CUDA kernel for a node of a graph of that opset; else what there is.

    With `half` its float32 values are taken to be of that type. Values of no known type fit any.
    """
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    if not domain and node.op_type == "Constant":
        return None  # an initializer, when ONNX Runtime has read the file
    rows = table()["kernels"].get(f"{domain}::{node.op_type}")
    named = node.op_type if not domain else f"{domain}.{node.op_type}"
    if rows is None:
        return f"there is no CUDA kernel of {named}"
    formal = _formal_types(domain, node.op_type, opset)
    if formal is None:
        return f"opset {opset} has no operator {named}"
    since, given = formal
    rows = [types for first, last, types in rows if first == since or (first < since <= last < OPEN)]
    if not rows:
        return f"there is no CUDA kernel of {named} as it is since opset {since}"
    actual = dict(_actual_types(node, given, half))
    if any(all(actual.get(name, allowed[0]) in allowed for name, allowed in types.items()) for types in rows):
        return None
    wanted = ", ".join(f"{name}={kind}" for name, kind in actual.items() if any(name in types for types in rows))
    return f"there is no CUDA kernel of {named} (opset {since}) for {wanted}"


@functools.cache
def _formal_types(domain: str, op: str, opset: int) -> tuple[int, Sequence[Sequence[str]]] | None:
    """(since which opset, the type names of inputs and outputs) of an operator; None where there is none."""
    if domain:
        given = table()["formal"].get(f"{domain}::{op}")
        return None if given is None else (1, given)
    try:
        schema = onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return None
    return schema.since_version, [[each.type_str for each in side] for side in (schema.inputs, schema.outputs)]


def _actual_types(node: ir.Node, formal: Sequence[Sequence[str]], half: ir.DataType | None) -> Iterator[tuple[str, str]]:
    """(type name of the operator, type) of each input and output whose type is known; of several of a name the first."""
    seen: set[str] = set()
    for names, values in zip(formal, (node.inputs, node.outputs), strict=True):
        for index, value in enumerate(values):
            if value is None or value.dtype is None or not names:
                continue
            name = names[min(index, len(names) - 1)]
            if name not in seen:
                seen.add(name)
                yield name, _spelled(half if half is not None and value.dtype == ir.DataType.FLOAT else value.dtype)


def _spelled(dtype: ir.DataType) -> str:
    """A type as ONNX spells it: `float`, `float16`, `int64`."""
    return str(dtype.name).lower()
