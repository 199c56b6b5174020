"""The kernels of a built engine, read from the builder's verbose log.

The builder prints one line a layer (`Name: ..., LayerType: ..., Inputs: [...], ...`) when the profiling verbosity is DETAILED.
It is the only evidence of what was built on a machine that cannot run the engine: which kernels there are, that every GEMM got
the type the graph asks for. (That no weight was lost: `weight_check`.)
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core import BuildFailed
from ...graph import GEMM_OPS, Graph, module_path

if TYPE_CHECKING:
    import onnx_ir as ir

# Bits an element takes, by the builder's spelling.
BITS = {
    "Double": 64, "Float": 32, "Half": 16, "BFloat16": 16, "FP8": 8, "Float8": 8, "E8M0": 8, "FP4": 4,
    "Int64": 64, "Int32": 32, "Int8": 8, "UInt8": 8, "Int4": 4, "Bool": 8,
}  # fmt: skip
FLOATING = frozenset({"Double", "Float", "Half", "BFloat16", "FP8", "Float8", "FP4"})
# Layers that launch no kernel: shape arithmetic on the host, events between streams, copies of host scalars. A size on its way
# into a kernel is a `reshape` or a `cast` of one Int64.
HOST_TYPES = frozenset({"shape_call", "signal", "wait"})
_HOST_COPIES = ("copy_h2d", "copy_d2h")
_SIZE_TYPES = frozenset({"reshape", "cast"})
INTEGERS = frozenset({"Int64", "Int32", "Bool"})
# The list a transformer keeps its layers in: `encoder.layer.3`, `model.layers.3`, `transformer.h.3`, `block.3`. The first number
# of a path is not enough: sentence-transformers puts everything under `0.`, wav2vec2 numbers its convolutions (`conv_layers.0`).
_STACKS = frozenset({"layer", "layers", "h", "block", "blocks"})
# A list holds lists, the dimensions of its tensors: it ends where its own bracket closes, not at the first one before a comma.
_LIST = r"\[(?P<{}>(?:[^][\n]|\[[^][\n]*\])*)\]"
_LINE = re.compile(
    rf"^Name: (?P<name>.*?), LayerType: (?P<type>[^,]*), Inputs: {_LIST.format('inputs')}"
    rf"(?:, Constants: {_LIST.format('constants')})?, Outputs: {_LIST.format('outputs')}(?P<rest>, .*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([-\d, ]*)\].*?Datatype: (\w+)", re.IGNORECASE)
_TACTIC = re.compile(r", TacticName: (.*?), StreamId:")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |\s|$)")
_PROFILE = re.compile(r" \[profile (\d+)\]")
_BLOB = re.compile(r"_(myl\d+)_\d+$")
# Layer types that are a GEMM or a convolution, alone or with their neighbours; and the marks of one inside a generated kernel.
_GEMM_TYPES = frozenset({"gemm", "gemv", "conv", "convolution", "deconvolution", "runtime_fusion", "mha", "matrix_multiply"})
_GEMM_MARKS = ("_gemm", "_gemv", "_mha", "_conv", "Fc", "Conv")
# ONNX type of a GEMM's operands -> what its kernel may read; a quantised GEMM reads less than the half type around it.
_QUANTISED = frozenset({"Int8", "UInt8", "Int4", "FP8", "Float8", "FP4"})
_HALF = {"FLOAT16": frozenset({"Half"}) | _QUANTISED, "BFLOAT16": frozenset({"BFloat16"}) | _QUANTISED}
MOVING = frozenset({"Transpose", "Reshape", "Identity", "Unsqueeze", "Squeeze"})


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a kernel: dims in elements (-1: dynamic), dtype in the builder's words (`Half`)."""

    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of a static tensor, 0 for a dynamic one."""
        if any(d < 0 for d in self.dims):
            return 0
        return -(-math.prod(self.dims) * BITS.get(self.dtype, 32) // 8)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One layer of an engine. `onnx_nodes` are the nodes it came from; `profile` is the optimisation profile it serves."""

    name: str
    type: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]
    profile: int = 0

    @property
    def host(self) -> bool:
        """True for a layer that launches nothing on the GPU."""
        sizes = all(t.dtype in INTEGERS and math.prod(t.dims) == 1 for t in (*self.inputs, *self.outputs))
        return self.type in HOST_TYPES or self.name.startswith(_HOST_COPIES) or (self.type in _SIZE_TYPES and sizes)

    @property
    def dtype(self) -> str:
        """The type it writes, or the first floating type it reads when it writes integers, or ''."""
        written = [t.dtype for t in self.outputs]
        read = [t.dtype for t in (*self.inputs, *self.constants)]
        floating = [d for d in (*written, *read) if d in FLOATING]
        return next(iter(floating or written), "")


def parse_kernels(log: str) -> tuple[Kernel, ...]:
    """The layers listed in a builder log, of every profile, in the order they run.

    Raises BuildFailed when the log lists none: an empty list would let every check on it pass.
    """
    found = [_kernel(match) for match in _LINE.finditer(log)]
    if not found:
        raise BuildFailed(
            f"the builder's log ({len(log)} characters) lists no engine layers, so no check of the engine can pass; expected "
            "lines 'Name: ..., LayerType: ...', which a build with profiling verbosity DETAILED prints"
        )
    return _with_profiles(found)


def _kernel(match: re.Match[str]) -> Kernel:
    rest = match["rest"]
    tactic = _TACTIC.search(rest)
    numbered = _PROFILE.search(match["name"] + rest)
    return Kernel(
        name=_PROFILE.sub("", match["name"]),
        type=match["type"],
        inputs=_tensors(match["inputs"]),
        outputs=_tensors(match["outputs"]),
        constants=_tensors(match["constants"] or ""),
        tactic=tactic[1] if tactic else "",
        onnx_nodes=tuple(dict.fromkeys(_NODE.findall(_PROFILE.sub("", rest).replace("\x1e", "")))),
        profile=int(numbered[1]) if numbered else 0,
    )


def _tensors(text: str) -> tuple[Tensor, ...]:
    found, there = _TENSOR.findall(text), text.count("{ Name: ")
    if len(found) != there:
        raise BuildFailed(f"read {len(found)} of {there} tensors in a line of the builder's log: {text[:300]}")
    named = ((_PROFILE.sub("", name), [d for d in dims.split(",") if d.strip()], dtype) for name, dims, dtype in found)
    return tuple(Tensor(name, tuple(map(int, dims)), dtype) for name, dims, dtype in named)


def _with_profiles(found: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Only layers that name a node say `[profile 1]`; the others of the same compiled region serve the same profile."""
    region = {blob[1]: k.profile for k in found if k.profile and (blob := _BLOB.search(k.name))}
    out = []
    for kernel in found:
        blob = _BLOB.search(kernel.name)
        out.append(dataclasses.replace(kernel, profile=region.get(blob[1], kernel.profile)) if blob else kernel)
    return tuple(out)


def layer_of(module: str) -> tuple[str, int] | None:
    """(`m.encoder.layer`, 3) for `m.encoder.layer.3.attention.self`; None outside a stack of layers."""
    parts = module.split(".")
    for i, part in enumerate(parts[1:], start=1):
        if part.isdigit() and parts[i - 1] in _STACKS:
            return ".".join(parts[:i]), int(part)
    return None


def _layer(kernel: Kernel, node_module: Mapping[str, str]) -> tuple[str, int] | None:
    """The transformer layer most of a kernel's nodes come from; of two with as many, the one named first."""
    votes = collections.Counter(layer_of(node_module[n]) for n in kernel.onnx_nodes if node_module.get(n))
    return max(votes, key=votes.__getitem__) if votes else None


def kernels_per_layer(kernels: Sequence[Kernel], node_module: Mapping[str, str]) -> dict[str, Any]:
    """{"layers": kernels of each transformer layer, "rest": kernels outside them}, host work left out.

    node_module: ONNX node name -> PyTorch module path. Give it the kernels of one profile. Layers are numbered within their own
    stack; the stacks of an encoder-decoder follow each other in the order they first appear.
    """
    homes = [_layer(kernel, node_module) for kernel in kernels if not kernel.host]
    counts = collections.Counter(home for home in homes if home is not None)
    layers: list[int] = []
    for stack in dict.fromkeys(home[0] for home in homes if home is not None):
        depth = 1 + max(index for name, index in counts if name == stack)
        layers.extend(counts[(stack, index)] for index in range(depth))
    return {"layers": layers, "rest": homes.count(None)}


def kernel_rows(kernels: Sequence[Kernel], node_module: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a kernel that runs on the GPU; `layer` is `m.encoder.layer.3`, or '' outside a stack of layers."""
    rows = []
    for kernel in (k for k in kernels if not k.host):
        home = _layer(kernel, node_module)
        kinds = {"name": kernel.name, "type": kernel.type, "dtype": kernel.dtype, "layer": f"{home[0]}.{home[1]}" if home else ""}
        rows.append({**kinds, "onnx_nodes": list(kernel.onnx_nodes), "profile": kernel.profile})
    return rows


def check_gemms(graph: Graph, kernels: Sequence[Kernel], precision: str) -> dict[str, int]:
    """{"total": GEMMs of the graph, "half": those proven to run in the half type they are typed in}.

    A GEMM that the graph types float32 is not checked. One typed FLOAT16 or BFLOAT16 must be named by an engine layer of every
    profile, and that layer must read its operands in that type (or quantised). Raises BuildFailed naming those that do not.
    """
    gemms = [node for node in graph.model.graph.all_nodes() if node.op_type in GEMM_OPS and node.domain in ("", "ai.onnx")]
    half = [(node, _HALF[dtype]) for node in gemms if (dtype := _operand_dtype(node)) in _HALF]
    if precision in ("fp16", "bf16") and gemms and not half:
        raise BuildFailed(f"{precision} was requested, but all {len(gemms)} GEMMs of the graph are float32; was it typed?")
    unnamed: list[ir.Node] = []
    floats: list[ir.Node] = []
    for node, allowed in half:
        verdicts = [runs_in(node, allowed, named) for named in kernels_naming(node, kernels)]
        if None in verdicts:
            unnamed.append(node)
        elif False in verdicts:
            floats.append(node)
    if floats:
        raise BuildFailed(f"{precision} was requested, {len(floats)} of {len(half)} GEMMs are Float: {shown_nodes(floats)}")
    if unnamed:
        raise BuildFailed(
            f"{precision} was requested, but no engine layer names {len(unnamed)} of {len(half)} GEMMs, their type is unknown: "
            f"{shown_nodes(unnamed)}"
        )
    return {"total": len(gemms), "half": len(half)}


def _operand_dtype(node: ir.Node) -> str:
    known = [v.dtype.name for v in node.inputs[:2] if v is not None and v.dtype is not None]
    if not known:
        raise BuildFailed(f"the inputs of {node.op_type} {node.name!r} have no type; run shape inference on the graph")
    return known[0]


def node_name(node: ir.Node) -> str:
    """The name the builder's metadata gives a node: its own, or one the parser makes from the first output of a nameless node."""
    return node.name or f"node_of_{node.outputs[0].name}"


def kernels_naming(node: ir.Node, kernels: Sequence[Kernel]) -> Iterator[list[Kernel]]:
    """For every profile, the layers that name a node; where none does, those without names that can be told to compute it.

    TensorRT-RTX forgets the nodes of some 1x1 convolutions, which it turns into products.
    """
    name = node_name(node)
    for profile in sorted({k.profile for k in kernels}):
        layers = [k for k in kernels if k.profile == profile and not k.host]
        yield [k for k in layers if name in k.onnx_nodes] or [k for k in layers if not k.onnx_nodes and _told(node, k)]


def _told(node: ir.Node, kernel: Kernel) -> bool:
    """Whether a layer without names computes a GEMM: it holds as much as its weights, and a matrix of their sizes or reads its
    first operand (`p2o.Mul.141.1_myl0` is that of `p2o.Mul.141`); of a product of two activations, a GEMM that reads the first.
    """
    operand, second = (*node.inputs[:2], None, None)[:2]
    reads = operand is not None and any(_is_tensor_of(str(operand.name), tensor.name) for tensor in kernel.inputs)
    if second is None or second.const_value is None:
        return reads and _is_gemm(kernel)
    matrices = [constant for constant in kernel.constants if is_matrix(constant)]
    wanted = sorted(size for size in second.const_value.shape.numpy() if size > 1)
    same = any(sorted(size for size in each.dims if size > 1) == wanted for each in matrices)
    return sum(math.prod(each.dims) for each in matrices) >= second.const_value.size and (same or reads)


def _is_tensor_of(value: str, tensor: str) -> bool:
    return re.fullmatch(re.escape(value) + r"(\.\d+)?_myl\d+", tensor) is not None


def _is_gemm(kernel: Kernel) -> bool:
    return kernel.type in _GEMM_TYPES or any(mark in kernel.name for mark in _GEMM_MARKS)


def runs_in(node: ir.Node, allowed: frozenset[str], named: Sequence[Kernel]) -> bool | None:
    """Whether the layers that name a GEMM compute it in an allowed type; None when no layer names it.

    Layers that pad or transpose its operands name it too: where a GEMM kernel names it, only GEMM kernels are judged. Where none
    does (a product so small that it became a Mul and a Sum) one generated kernel that reads the type is enough.
    """
    if not named:
        return None
    gemms = gemm_kernels(node, named)
    if gemms:
        return all(_reads(node, kernel, allowed) for kernel in gemms)
    return any(_reads(node, kernel, allowed) for kernel in named)


def gemm_kernels(node: ir.Node, named: Sequence[Kernel]) -> list[Kernel]:
    """Of the layers that name a GEMM those that are GEMM kernels; of these the ones of its name, where there are any."""
    gemms = [k for k in named if _is_gemm(k)]
    own = [k for k in gemms if node_name(node) in re.split(r"\+|_myl\d+_\d+$", k.name)]
    return own or gemms


def _reads(node: ir.Node, kernel: Kernel, allowed: frozenset[str]) -> bool:
    """Whether a kernel reads as many operands of an allowed type as the GEMM has from outside that kernel.

    Only operands count, because a fused kernel may rightly read float32 too: a residual, the weights of a LayerNorm, a mask. An
    operand that the same kernel makes (the softmax of a fused attention) is not among its inputs and is not counted.
    """
    count = 3 if node.op_type == "Attention" else 2
    outside = {v.name for v in node.inputs[:count] if v is not None and not made_in(v, kernel)}
    operands = [t for t in (*kernel.inputs, *filter(is_matrix, kernel.constants)) if t.dtype in FLOATING | _QUANTISED]
    typed = sum(t.dtype in allowed for t in operands)
    # A kernel may read packed operands as one tensor, so fewer than expected are enough where it reads nothing else.
    return typed >= len(outside) or 0 < typed == len(operands)


def made_in(value: ir.Value, kernel: Kernel) -> bool:
    """Whether a kernel computes a value; nodes that only move data are looked through, they may be in the kernel either way."""
    maker = value.producer()
    while maker is not None and maker.op_type in MOVING and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is not None and node_name(maker) in kernel.onnx_nodes


def is_matrix(constant: Tensor) -> bool:
    """A weight, not a bias of [1, N] nor a scalar factor."""
    return math.prod(constant.dims) > constant.dims[-1] if constant.dims else False


def shown_nodes(nodes: Sequence[ir.Node]) -> str:
    shown = [f"{node_name(n)} ({module_path(n) or n.op_type})" for n in nodes[:5]]
    return ", ".join(shown) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
