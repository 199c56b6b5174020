"""The ONNX file of a `random_encoders.Encoder`, node by node as exporters and people write them, and what to feed it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from encoder_writer import TENSORS, Writer, linear, norm, size, square
from onnx import TensorProto, helper, numpy_helper
from random_encoders import Encoder

WORDS, POSITIONS, TYPES = 23, 40, 3
LOWS = {"min": float(np.finfo(np.float32).min), "-1e4": -1e4, "-inf": -np.inf}


def activation(w: Writer, x: str) -> str:
    kind, one, half = w.choices.ffn, w.constant(1.0), w.constant(0.5)
    if kind == "operator":
        return w.op("Gelu", x)
    if kind == "relu":
        return w.op("Relu", x)
    if kind == "silu":
        return w.op("Mul", x, w.op("Sigmoid", x))
    if kind == "sigmoid 1.702":
        return w.op("Mul", x, w.op("Sigmoid", w.op("Mul", w.constant(1.702), x)))
    if kind.startswith("tanh"):
        cube = w.op("Mul", x, w.op("Mul", x, x)) if kind == "tanh mul" else w.op("Pow", x, w.constant(3.0))
        inner = w.op("Add", x, w.op("Mul", w.constant(0.044715), cube))
        bent = w.op("Add", w.op("Tanh", w.op("Mul", inner, w.constant(float(np.sqrt(2 / np.pi))))), one)
        return w.op("Mul", w.op("Mul", half, x), bent)
    root = w.constant(float(np.sqrt(0.5))) if kind == "erf mul" else w.constant(float(np.sqrt(2)))
    bent = w.op("Erf", w.op("Mul" if kind == "erf mul" else "Div", x, root))
    if kind == "erf halves":
        return w.op("Mul", x, w.op("Mul", half, w.op("Add", one, bent)))
    if kind == "erf mul":
        return w.op("Mul", w.op("Mul", x, half), w.op("Add", bent, one))
    return w.op("Mul", w.op("Mul", x, w.op("Add", bent, one)), half)


def feed_forward(w: Writer, x: str) -> str:
    c, deep = w.choices, 2 * w.choices.width
    if c.gated == "no":
        return linear(w, activation(w, linear(w, x, c.width, deep)), deep, c.width)
    if c.gated == "two linears":
        up, gate = linear(w, x, c.width, deep), linear(w, x, c.width, deep)
    else:
        both = linear(w, x, c.width, 2 * deep)
        ends = [w.constant(np.array([n])) for n in (0, deep, 2 * deep)]
        up, gate = (w.op("Slice", both, a, b, w.constant(np.array([2]))) for a, b in itertools.pairwise(ends))
    gated = w.op("Mul", up, activation(w, gate)) if c.gated == "split swapped" else w.op("Mul", activation(w, up), gate)
    return linear(w, gated, deep, c.width)


class Masks:
    """The mask in the forms that a layer reads: a float to add, or a bool that says where to attend."""

    def __init__(self, w: Writer) -> None:
        self.w, c = w, w.choices
        self.bias = self.allowed = ""
        if c.mask == "none":
            return
        arithmetic = c.mask in ("1-m", "m-1")
        view = self._view(w.cast("attention_mask", "float32") if arithmetic else "attention_mask")
        if arithmetic:
            self._by_arithmetic(view)
        else:
            self._by_choice(view)

    def _view(self, mask: str) -> str:
        """[batch, 1, 1 or length, length], of the type it comes in."""
        w, c = self.w, self.w.choices
        axes = {2: (1, 2), 3: (1,), 4: ()}[c.mask_rank]
        row = w.along("Unsqueeze", mask, *axes) if axes else mask
        if c.mask_view == "outer":
            column = w.along("Unsqueeze", mask, 1, 3)
            boolean = c.mask_type == "bool" and c.mask not in ("1-m", "m-1")
            return w.op("And" if boolean else "Mul", row, column)
        return w.op("Expand", row, square(w)) if c.mask_view == "expand" else row

    def _by_arithmetic(self, view: str) -> None:
        w, c = self.w, self.w.choices
        low = LOWS[c.mask_low]
        if c.mask == "1-m":
            self.bias = w.op("Mul", w.op("Sub", w.constant(1.0), view), w.constant(low))
        else:
            self.bias = w.op("Mul", w.op("Sub", view, w.constant(1.0)), w.constant(-low))

    def _by_choice(self, view: str) -> None:
        w, c = self.w, self.w.choices
        allowed = view if c.mask_type == "bool" else w.cast(view, "bool")
        if c.mask_view == "expand bool":
            allowed = w.op("Expand", allowed, square(w))
        low = w.constant(LOWS[c.mask_low])
        if c.mask == "where 0":
            self.bias = w.op("Where", allowed, w.constant(0.0), low)
        elif c.mask == "where inverted":
            self.bias = w.op("Where", w.op("Not", allowed), low, w.constant(0.0))
        else:
            self.allowed = allowed

    def apply(self, scores: str, flat: bool) -> str:
        """`flat`: the scores are [batch x heads, length, length]."""
        w, c = self.w, self.w.choices
        if c.mask == "none":
            return scores
        if flat:
            batch, length = size(w, "batch"), size(w, "length")
            sizes = w.op("Concat", batch, w.constant(np.array([c.heads])), length, length, axis=0)
            scores = w.op("Reshape", scores, sizes)
        masked = (
            w.op("Add", scores, self.bias) if self.bias else w.op("Where", self.allowed, scores, w.constant(LOWS[c.mask_low]))
        )
        if flat:
            masked = w.op("Reshape", masked, w.op("Concat", w.constant(np.array([-1])), length, length, axis=0))
        return masked


def split_heads(w: Writer, x: str) -> str:
    """[batch, length, heads x size] -> [batch, length, heads, size]."""
    c = w.choices
    if c.reshape == "zeros":
        return w.op("Reshape", x, w.constant(np.array([0, 0, c.heads, c.size])))
    if c.reshape == "constant -1":
        return w.op("Reshape", x, w.constant(np.array([0, -1, c.heads, c.size])))
    sizes = (size(w, "batch"), size(w, "length"), w.constant(np.array([c.heads])), w.constant(np.array([c.size])))
    return w.op("Reshape", x, w.op("Concat", *sizes, axis=0))


def projections(w: Writer, x: str, times: float) -> list[str]:
    c = w.choices
    if c.heads_form not in ("packed", "split"):
        return [linear(w, x, c.width, c.inner, times if n == 0 else 1.0) for n in range(3)]
    both = linear(w, x, c.width, 3 * c.inner)
    if c.heads_form == "packed":
        ends = [w.constant(np.array([n * c.inner])) for n in range(4)]
        return [w.op("Slice", both, a, b, w.constant(np.array([-1]))) for a, b in itertools.pairwise(ends)]
    outs = [w.name("part") for _ in range(3)]
    sizes = np.array([c.inner] * 3)
    if c.opset >= 13:
        w.nodes.append(helper.make_node("Split", [both, w.constant(sizes)], outs, axis=-1))
    else:
        w.nodes.append(helper.make_node("Split", [both], outs, axis=-1, split=sizes.tolist()))
    return outs


def attention(w: Writer, x: str, masks: Masks) -> str:
    c, scale = w.choices, float(w.choices.size**-0.5)
    q, k, v = projections(w, x, scale if c.scale == "weights" and c.heads_form not in ("packed", "split") else 1.0)
    if c.heads_form == "operator":
        given = {"q_num_heads": c.heads, "kv_num_heads": c.heads, **({"scale": 1.0} if c.scale == "none" else {})}
        mask = masks.bias or masks.allowed
        mixed = w.op("Attention", q, k, v, *([mask] if mask else []), **given)
        return linear(w, mixed, c.inner, c.width)
    if c.scale in ("q", "q and k"):
        q = w.op("Mul", q, w.constant(scale if c.scale == "q" else scale**0.5))
    if c.scale in ("k", "q and k"):
        k = w.op("Mul", k, w.constant(scale if c.scale == "k" else scale**0.5))
    q, k, v = heads(w, q, k, v)
    scores = w.op("MatMul", q, k)
    if c.scale == "scores div":
        scores = w.op("Div", scores, w.constant(float(np.sqrt(c.size))))
    elif c.scale == "scores mul":
        scores = w.op("Mul", scores, w.constant(scale))
    flat = c.heads_form == "3-D"
    weights = w.op("Softmax", masks.apply(scores, flat), axis=2 if flat else 3)
    if c.nan_guard:
        weights = w.op("Where", w.op("IsNaN", weights), w.constant(0.0), weights)
    return linear(w, merge(w, w.op("MatMul", weights, v)), c.inner, c.width)


def heads(w: Writer, q: str, k: str, v: str) -> tuple[str, str, str]:
    """q and v [batch, heads, length, size], k turned for the product; of 3-D form [batch x heads, length, size]."""
    c = w.choices
    q, k, v = (split_heads(w, each) for each in (q, k, v))
    q, v = (w.op("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, v))
    if c.heads_form == "transposed k":
        k = w.op("Transpose", w.op("Transpose", k, perm=[0, 2, 1, 3]), perm=[0, 1, 3, 2])
    else:
        k = w.op("Transpose", k, perm=[0, 2, 3, 1])
    if c.heads_form != "3-D":
        return q, k, v
    length, minus, wide = size(w, "length"), w.constant(np.array([-1])), w.constant(np.array([c.size]))
    rows = w.op("Concat", minus, length, wide, axis=0)
    k = w.op("Reshape", k, w.op("Concat", minus, wide, length, axis=0))
    return w.op("Reshape", q, rows), k, w.op("Reshape", v, rows)


def merge(w: Writer, mixed: str) -> str:
    """[batch, length, heads x size]."""
    c = w.choices
    if c.heads_form == "3-D":
        every, wide = w.constant(np.array([c.heads])), w.constant(np.array([c.size]))
        mixed = w.op("Reshape", mixed, w.op("Concat", size(w, "batch"), every, size(w, "length"), wide, axis=0))
    turned = w.op("Transpose", mixed, perm=[0, 2, 1, 3])
    if c.reshape != "shape":
        return w.op("Reshape", turned, w.constant(np.array([0, 0, c.inner])))
    return w.op("Reshape", turned, w.op("Concat", size(w, "batch"), size(w, "length"), w.constant(np.array([c.inner])), axis=0))


def is_long(w: Writer) -> str:
    """A scalar bool that differs between samples: more than six positions."""
    return w.op("Greater", w.along("Squeeze", size(w, "length"), 0), w.constant(6, np.int64))


def layer(w: Writer, x: str, masks: Masks) -> str:
    c = w.choices

    def attend(x: str) -> str:
        return attention(w, x, masks)

    def feed(x: str) -> str:
        return feed_forward(w, x)

    def inside_if(part: Callable[[str], str]) -> Callable[[str], str]:
        return lambda x: w.either(is_long(w), lambda: part(x), lambda: part(x))

    parts = [attend, feed]
    if c.control == "if attention":
        parts[0] = inside_if(attend)
    if c.control in ("if ffn", "if in loop"):
        parts[1] = inside_if(feed)
    for part in parts:
        y = part(norm(w, x) if c.norm == "pre" else x)
        x = w.op("Add", x, y) if c.residual == "x first" else w.op("Add", y, x)
        x = norm(w, x) if c.norm == "post" else x
    return x


def positions(w: Writer) -> str:
    """[length or batch, length, width] of the table, by one of the ways to number positions."""
    c, table = w.choices, w.weight(POSITIONS, w.choices.width)
    if c.positions == "slice":
        every = w.constant(np.arange(POSITIONS)[None])
        found = w.op("Slice", every, w.constant(np.array([0])), size(w, "length"), w.constant(np.array([1])))
        return w.op("Gather", table, found)
    if c.positions == "range":
        length = w.along("Squeeze", size(w, "length"), 0)
        return w.op("Gather", table, w.op("Range", w.constant(0, np.int64), length, w.constant(1, np.int64)))
    if c.positions == "input":
        return w.op("Gather", table, "position_ids")
    real = w.cast("attention_mask", "int64")
    counted = w.op("Mul", w.op("CumSum", real, w.constant(1, np.int64)), real)
    return w.op("Gather", table, w.op("Add", counted, w.constant(1, np.int64)))


def embed(w: Writer) -> str:
    c = w.choices

    def words() -> str:
        found = w.op("Gather", w.weight(WORDS, c.width), "input_ids")
        return w.op("Mul", found, w.constant(float(np.sqrt(c.width)))) if c.embedding_scale else found

    def types() -> str:
        ids = "token_type_ids"
        if c.type_ids == "zeros":
            shape = w.op("Shape", "input_ids")
            ids = w.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.int64)))
        return w.op("Gather", w.weight(TYPES, c.width), ids)

    x = ""
    for kind in c.embeddings:
        part = {"w": words, "p": lambda: positions(w), "t": types}[kind]()
        x = w.op("Add", x, part) if x else part
    return norm(w, x) if c.embedding_norm else x


def pool(w: Writer, x: str) -> str:
    c = w.choices
    if c.pool == "none":
        return x
    if c.pool == "cls":
        return w.op("Gather", x, w.constant(0, np.int64), axis=1)
    if c.pool == "mean all":
        return w.along("ReduceMean", x, 1, keepdims=0)
    if c.pool == "max":
        return w.along("ReduceMax", x, 1, keepdims=0)
    mask = w.along("Unsqueeze", "second_mask" if c.second_mask else "attention_mask", -1)
    if c.pool == "masked max":
        kept = w.op("Where", mask if c.mask_type == "bool" else w.cast(mask, "bool"), x, w.constant(-1e9))
        return w.along("ReduceMax", kept, 1, keepdims=0)
    real = w.op("Expand", w.cast(mask, "float32"), w.op("Shape", x))
    total = w.along("ReduceSum", w.op("Mul", x, real), 1, keepdims=0)
    found = w.op("Div", total, w.op("Clip", w.along("ReduceSum", real, 1, keepdims=0), w.constant(1e-9)))
    if c.pool == "mean":
        return found
    size = w.op("ReduceL2", found, axes=[-1], keepdims=1) if c.opset < 18 else w.op("ReduceL2", found, w.constant(np.array([-1])))
    return w.op("Div", found, w.op("Clip", size, w.constant(1e-12)))


def encode(w: Writer, x: str, masks: Masks) -> str:
    c = w.choices

    def stack(x: str) -> str:
        for _ in range(c.layers):
            x = layer(w, x, masks)
        return x

    if c.control == "if layers":
        return w.either(is_long(w), lambda: stack(x), lambda: stack(x))
    if c.control in ("loop layers", "if in loop"):
        return w.repeat(2, x, stack)
    return stack(x)


def nudged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with every weight moved to a neighbouring float32: what that changes is what rounding may change.

    A weight that is stored as half is computed with as float32, and moved as one: its Cast takes either. Integers have scales.
    """
    copy, rng = onnx.ModelProto(), np.random.default_rng(0)
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16) and tensor.dims:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(np.nextafter(array, towards), tensor.name))
    return copy


def model_of(choices: Encoder) -> onnx.ModelProto:
    w = Writer(choices)
    masks = Masks(w)
    hidden = encode(w, embed(w), masks)
    if choices.norm == "pre":
        hidden = norm(w, hidden)
    made = [pool(w, hidden), hidden] if choices.two_outputs and choices.pool != "none" else [pool(w, hidden)]
    if choices.two_outputs and choices.pool == "none":
        made.append(pool_first(w, hidden))
    names = ["output", "more"][: len(made)]
    for name, value in zip(names, made, strict=True):
        w.nodes.append(helper.make_node("Identity", [value], [name]))
    ranks = [3 if value == hidden else 2 for value in made]
    dims = {3: ["batch", "length", choices.width], 2: ["batch", choices.width]}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims[r]) for n, r in zip(names, ranks, strict=True)]
    read = {name for node in _all(w.nodes) for name in node.input}
    inputs = [value for value in _inputs(choices) if value.name in read or value.name == "unused"]
    graph = helper.make_graph(w.nodes, "encoder", inputs, outputs, list(w.weights.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", choices.opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def pool_first(w: Writer, x: str) -> str:
    return w.op("Gather", x, w.constant(0, np.int64), axis=1)


def _all(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all(attribute.g.node)


MASK_DIMS = {2: ["batch", "length"], 3: ["batch", 1, "length"], 4: ["batch", 1, 1, "length"]}


def _inputs(c: Encoder) -> list[onnx.ValueInfoProto]:
    ids, mask, plain = TENSORS[c.ids], TENSORS[c.mask_type], ["batch", "length"]
    kinds = [("input_ids", ids, plain), ("attention_mask", mask, MASK_DIMS[c.mask_rank]), ("token_type_ids", ids, plain)]
    kinds += [("position_ids", ids, plain), ("second_mask", mask, plain)]
    kinds += [("unused", ids, plain)] if c.unused else []
    return [helper.make_tensor_value_info(*each) for each in kinds]


KINDS = ("full", "right", "left", "holes", "dead")
SHAPES = ((1, 1, "full"), (2, 7, "right"), (3, 5, "left"), (2, 9, "holes"), (3, 6, "dead"), (1, 12, "right"))
DEAD = 1  # the row of "dead" that attends to nothing


def feeds(c: Encoder, rows: int, length: int, kind: str) -> dict[str, np.ndarray]:
    """Of every input that an encoder may have."""
    rng = np.random.default_rng(c.seed)
    real = np.ones((rows, length), np.int64)
    if kind == "right":
        real[0, max(1, length // 2) :] = 0
    elif kind == "left":
        real[-1, : length // 2] = 0
    elif kind == "holes":
        real[:, 2:4] = 0
    elif kind == "dead":
        real[DEAD] = 0
    dtype = {"int64": np.int64, "int32": np.int32, "float32": np.float32, "bool": np.bool_}
    ids = dtype[c.ids]
    other = real.copy()
    other[0, 0] = 0 if length > 1 else 1
    mask = real.reshape(rows, *[1] * (c.mask_rank - 2), length)
    return {
        "input_ids": rng.integers(0, WORDS, (rows, length)).astype(ids),
        "attention_mask": mask.astype(dtype[c.mask_type]),
        "token_type_ids": rng.integers(0, TYPES, (rows, length)).astype(ids),
        "position_ids": rng.integers(0, POSITIONS, (rows, length)).astype(ids),
        "second_mask": other.astype(dtype[c.mask_type]),
        "unused": np.zeros((rows, length), ids),
    }
