"""The canonical body of every `bertc` operator, in standard ONNX (opset 20): what an operator means, written once, one file each.

A file has OP, the operator's name, its signature in the docstring (B batch, S length, T attended length, H width, h heads, d head
size; `?` may be absent), and `body(op, node) -> outputs`: `op` is a `Builder`, `node` the operator's node, whose inputs and
attributes may be read; as many outputs are made as the node has. A target's lowering has the same form. MASK_INPUT, where
there is one, is the index of the input that is added to the scores. `plugins/<file>.py` says the same in numpy, written apart
from this, and a test holds the two together. A new file is found by itself.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
