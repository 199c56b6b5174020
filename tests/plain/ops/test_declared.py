"""What a node from somebody's file may not be: told with its name, and no traceback."""

from __future__ import annotations

import contextlib

import onnx_ir as ir
import pytest

from bertc.core import InputError
from bertc.ops import BODIES, Builder, check_attributes
from bertc.ops.declared import of_node


def made(op_type: str, count: int, **attributes: object) -> ir.Node:
    inputs = [ir.Value(name=f"x{index}") for index in range(count)]
    return ir.Node("bertc", op_type, inputs, ir.convenience.convert_attributes(attributes), name="odd")


@pytest.mark.parametrize(
    "attributes",
    [{"num_heads": "2"}, {"num_heads": 0}, {"num_heads": 2**62}, {"scale": "x"}, {"scale": float("nan")}, {"low": 3},
     {"form": 1}, {"strides": [0]}, {"pads": [-1, 0]}, {"epsilon": float("inf")}],
)  # fmt: skip
def test_an_attribute_that_no_operator_takes(attributes):
    with pytest.raises(InputError, match=rf"node 'odd' \(bertc.FusedAttention\): its attribute {next(iter(attributes))} is"):
        check_attributes(made("FusedAttention", 5, **attributes))


@pytest.mark.parametrize("op_type", sorted(BODIES))
@pytest.mark.parametrize("count", [0, 1, 12])
def test_every_body_names_the_node_whose_inputs_it_cannot_take(op_type, count):
    node = made(op_type, count, num_heads=2, low=-1e4)
    with pytest.raises(InputError, match="node 'odd'") if count != 1 else contextlib.suppress(InputError), of_node(node):
        BODIES[op_type](Builder(), node)
