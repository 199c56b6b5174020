"""A packed engine behind ragged inputs: Triton hands over the values of all requests in one row each, and the length of each row.

Nodes in front of the packed graph make of them the batch and the mask that it takes; what these pad, the graph drops at once. So
requests of all lengths share a batch, and the engine computes tokens alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifact import Artifact
from ...data import Encoder
from ...runtime import pad_value
from ..batches import Batching

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx_ir.tape import Tape

LENGTHS = "{}_row_lengths"  # of an input, made by Triton: BATCH_ITEM_SHAPE_FLATTEN, int32 [rows]


def why_not(found: Artifact) -> str:
    """Why an engine cannot take ragged inputs; '' where it can."""
    if "packing" not in found.manifest:
        return "it is not packed (bertc build --packed)"
    batching = Batching.of(found.inputs, found.outputs, 0, found.masks)
    if batching.length is None:
        return batching.why
    wanted = (found.inputs[0].dims[0], batching.length)
    odd = [str(spec) for spec in found.inputs if spec.dims != wanted]
    if odd:
        return f"input {odd[0]} is not [rows, length]"
    long = [spec.name for spec in found.outputs if batching.length in spec.dims]
    if long:
        return f"output {long[0]!r} has a value for each position, and would be as long as the longest row that shares its batch"
    return ""


def write(source: Path, out: Path, found: Artifact) -> None:
    """Write the graph of an engine with ragged inputs of the same names; large weights go into a file beside it."""
    import onnx_ir as ir
    from onnx_ir.tape import Tape

    pad_id = Encoder.from_directory(found.tokenizer).pad_id if found.tokenizer is not None else 0
    model, op = ir.load(source), Tape()
    first, inputs, steps = model.graph[0], list(model.graph.inputs), None
    for at, value in enumerate(inputs):
        name, dtype = str(value.name), value.dtype
        lengths = ir.val(LENGTHS.format(name), ir.DataType.INT32, ["rows"])
        # Each input by its own lengths: a request whose mask is no mask of its ids must not move the values of others.
        sizes = op.op("Cast", [lengths], {"to": ir.DataType.INT64})
        steps = _steps(op, sizes) if steps is None else steps
        index, kept = _places(op, sizes, steps)
        flat = ir.val(name, dtype, ["values"])
        value.name = f"{name}/of rows"
        filling = op.initializer(ir.tensor(pad_value(name, pad_id, found.masks), dtype), name=f"{name}/padding")
        padded = op.op("Where", [kept, op.op("Gather", [flat, index]), filling])
        padded.name, padded.type, padded.shape = f"{name}/padded", value.type, value.shape
        ir.convenience.replace_all_uses_with(value, padded)
        model.graph.inputs[at] = flat
        model.graph.inputs.append(lengths)
    for made in op.initializers:
        model.graph.register_initializer(made)
    model.graph.insert_before(first, op.nodes)
    ir.save(model, out, external_data=f"{out.name}.data")


def _steps(op: Tape, sizes: ir.Value) -> ir.Value:
    """int64 [1, longest]: 0, 1, ..."""
    longest = op.op("ReduceMax", [sizes], {"keepdims": 0})
    return op.op("Unsqueeze", [op.op("Range", [_whole(op, 0), longest, _whole(op, 1)]), _whole(op, [0])])


def _places(op: Tape, sizes: ir.Value, steps: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(int64 [rows, longest]: where each value of the batch stands among all of them, bool: whether it is one)."""
    starts = op.op("CumSum", [sizes, _whole(op, 0)], {"exclusive": 1})
    kept = op.op("Less", [steps, op.op("Unsqueeze", [sizes, _whole(op, [1])])])
    index = op.op("Add", [op.op("Unsqueeze", [starts, _whole(op, [1])]), steps])
    return op.op("Where", [kept, index, _whole(op, 0)]), kept


def _whole(op: Tape, value: int | list[int]) -> ir.Value:
    import onnx_ir as ir

    return op.initializer(ir.tensor(value, ir.DataType.INT64), name=f"of rows/{len(op.initializers)}")


def accept(message: Any, found: Artifact) -> None:
    """In config.pbtxt: inputs of all lengths, and what Triton makes of their lengths."""
    from tritonclient.grpc import model_config_pb2 as schema

    for each in message.input:
        each.allow_ragged_batch = True
    # Of each row, not of each request as BATCH_ACCUMULATED_ELEMENT_COUNT: a request may have several rows.
    for spec in found.inputs:
        made = message.batch_input.add(kind=schema.BatchInput.Kind.Value("BATCH_ITEM_SHAPE_FLATTEN"))
        made.target_name.append(LENGTHS.format(spec.name))
        made.source_input.append(spec.name)
        made.data_type = schema.DataType.Value("TYPE_INT32")
