"""Where in a graph a rule's pattern can begin: what onnxscript's matcher, slow as it is, need not be asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


def may_start(rule: Any) -> Callable[[ir.Node], bool]:
    """Whether an onnxscript rule's pattern can begin at a node, by the node's type alone.

    Asked before onnxscript is, which makes a match, and for a pattern of several outputs lists the whole graph and tries each
    node in the place of the others, before it looks at the type of the first. Nothing is refused here that had begun to match.
    Without the attribute, which is onnxscript's own, every node may be the first: that is only slower.
    """
    target = getattr(rule, "_target_pattern", None)
    roots = list(target.output_nodes) if target is not None else []
    if not roots:
        return lambda node: True
    matches = functools.cache(roots[0].op.matches)  # a graph has few types
    return lambda node: bool(matches(node.op_type))
