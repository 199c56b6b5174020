"""nn.LSTM, nn.GRU and nn.RNN as the operators that ONNX has for them.

torch.export follows their loop over time step by step and fixes the length at that of the example. For the time of an export each
runs as one operator a layer instead, which torch.onnx.export then writes as LSTM, GRU or RNN.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

# ONNX has the gates of an LSTM in the order input, output, forget, cell, PyTorch input, forget, cell, output; those of a GRU as
# update, reset, hidden, PyTorch reset, update, hidden.
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
KINDS = (nn.LSTM, nn.GRU, nn.RNN)
_ARGUMENTS = "Tensor x, Tensor w, Tensor r, Tensor b, Tensor? h, Tensor? c, int hidden, str direction, str activation"
_library: Any = torch.library.Library("bertc", "FRAGMENT")  # type: ignore[no-untyped-call]


def _shapes(x: Tensor, w: Tensor, r: Tensor, b: Tensor, h: Any, c: Any, hidden: int, direction: str, activation: str) -> Any:
    directions = w.shape[0]
    y, last = x.new_empty(x.shape[0], directions, x.shape[1], hidden), x.new_empty(directions, x.shape[1], hidden)
    return y, last, last.clone()


for _kind in GATES:
    _library.define(f"{_kind.lower()}({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
    torch.library.register_fake(f"bertc::{_kind.lower()}", _shapes, lib=_library)


@contextlib.contextmanager
def as_operators(module: nn.Module) -> Iterator[dict[Any, Callable[..., Any]]]:
    """The recurrent parts of a module as operators; gives the translations that torch.onnx.export needs. Undone at the end."""
    parts = [part for part in module.modules() if isinstance(part, KINDS) and not getattr(part, "proj_size", 0)]
    for part in parts:
        weights = {f"bertc_{name}_{layer}": w for layer in range(part.num_layers) for name, w in _weights(part, layer).items()}
        for name, weight in weights.items():
            part.register_buffer(name, weight, persistent=False)
        part.forward = functools.partial(_forward, part)  # type: ignore[method-assign, assignment]
    try:
        yield _translations() if parts else {}
    finally:
        for part in parts:
            del part.forward
            for name in [name for name in part._buffers if name.startswith("bertc_")]:
                delattr(part, name)


def _weights(part: nn.RNNBase, layer: int) -> dict[str, Tensor]:
    """Weights of a layer as ONNX has them: [directions, gates * hidden, input], the same of the state, both biases."""
    ends = [f"_l{layer}", f"_l{layer}_reverse"][: 2 if part.bidirectional else 1]

    def ordered(name: str) -> Tensor:
        return torch.stack([_gates_in_order(part, getattr(part, f"{name}{end}").detach()) for end in ends])

    w, r = ordered("weight_ih"), ordered("weight_hh")
    if not part.bias:
        return {"w": w, "r": r, "b": w.new_zeros(len(ends), 2 * r.shape[1])}
    return {"w": w, "r": r, "b": torch.cat([ordered("bias_ih"), ordered("bias_hh")], 1)}


def _gates_in_order(part: nn.RNNBase, value: Tensor) -> Tensor:
    order = GATES[_kind_of(part)]
    return torch.cat([value.chunk(len(order))[gate] for gate in order])


def _kind_of(part: nn.RNNBase) -> str:
    return next(kind.__name__ for kind in KINDS if isinstance(part, kind))


def _forward(part: nn.RNNBase, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """What part.forward computes, a layer a call."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{_kind_of(part)} gets a packed sequence, whose size depends on the values of the mask; give it the padded tensor "
            "(the same states where the padding is on the right and it reads in one direction)"
        )
    batched = x.dim() == 3
    x = x if batched else x.unsqueeze(1)
    x = x.transpose(0, 1) if batched and part.batch_first else x
    first = (hx if isinstance(hx, tuple) else (hx, None)) if hx is not None else (None, None)
    states = [each if each is None or batched else each.unsqueeze(1) for each in first]
    last: list[tuple[Tensor, Tensor]] = []
    for layer in range(part.num_layers):
        y, *ends = _layer(part, layer, x, states)
        last.append((ends[0], ends[1]))
        x = y.permute(0, 2, 1, 3).flatten(2)
    x = x.transpose(0, 1) if batched and part.batch_first else x
    h, c = (torch.cat([pair[at] for pair in last]) for at in (0, 1))
    if not batched:
        x, h, c = x.squeeze(1), h.squeeze(1), c.squeeze(1)
    return x, (h, c) if isinstance(part, nn.LSTM) else h


def _layer(part: nn.RNNBase, layer: int, x: Tensor, states: list[Tensor | None]) -> Any:
    count = 2 if part.bidirectional else 1
    weights = [getattr(part, f"bertc_{name}_{layer}") for name in ("w", "r", "b")]
    given = [None if each is None else each[layer * count : (layer + 1) * count] for each in states]
    activation = {"relu": "Relu"}.get(str(getattr(part, "nonlinearity", "")), "Tanh")
    direction = "bidirectional" if part.bidirectional else "forward"
    operator = getattr(torch.ops.bertc, _kind_of(part).lower())
    return operator(x, *weights, *given, part.hidden_size, direction, activation)


def _translations() -> dict[Any, Callable[..., Any]]:
    from onnxscript import opset18 as op

    def lstm(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, hidden: int, direction: str, activation: str) -> Any:
        return op.LSTM(x, w, r, b, None, h, c, hidden_size=hidden, direction=direction)

    def gru(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, hidden: int, direction: str, activation: str) -> Any:
        y, last = op.GRU(x, w, r, b, None, h, hidden_size=hidden, direction=direction, linear_before_reset=1)
        return y, last, last

    def rnn(x: Any, w: Any, r: Any, b: Any, h: Any, c: Any, hidden: int, direction: str, activation: str) -> Any:
        each = [activation] * (2 if direction == "bidirectional" else 1)
        y, last = op.RNN(x, w, r, b, None, h, hidden_size=hidden, direction=direction, activations=each)
        return y, last, last

    made = {"lstm": lstm, "gru": gru, "rnn": rnn}
    return {getattr(torch.ops.bertc, name).default: function for name, function in made.items()}
