"""The fusers that others wrap, called as their documentation says, on one exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import zoo

ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention")
# What bertc calls the same: their operators by the rule that finds it here.
OPERATORS = {
    "attention": ATTENTION,
    "embeddings": ("EmbedLayerNormalization",),
    "skip_layernorm": ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    "bias_gelu": ("BiasGelu", "FastGelu"),
    "gelu": ("Gelu", "QuickGelu"),
}


def onnxruntime(source: Path, made: Path, row: zoo.Row) -> dict[str, Any]:
    """`onnxruntime.transformers.optimizer.optimize_model` with the model_type, heads and width that a user would give."""
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(source), model_type=row.peer, num_heads=row.heads, hidden_size=row.width)
    model.save_model_to_file(str(made))
    return _counts(made)


def onnxscript(source: Path, made: Path, row: zoo.Row) -> dict[str, Any]:
    """`onnxscript.rewriter.ort_fusions.optimize_for_ort`."""
    import onnx_ir as ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.load(source))
    ir.save(model, made)
    return _counts(made)


def _counts(made: Path) -> dict[str, Any]:
    """Fused operators in the file, under bertc's names of rules; Gelu without a bias counts for bertc's gelu."""
    import onnx

    proto = onnx.load(made)
    ops = [node.op_type for node in proto.graph.node if node.domain == "com.microsoft"]
    counts = {rule: sum(op in names for op in ops) for rule, names in OPERATORS.items()}
    return {"counts": {rule: n for rule, n in counts.items() if n}, "nodes": len(proto.graph.node)}
