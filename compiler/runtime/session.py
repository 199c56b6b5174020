"""ONNX Runtime sessions, without what reads graphs: a worker of a server starts without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core import BuildFailed, Missing, wanted_threads
from .bounded import BoundedSession, allowed_seconds, may_loop


def open_session(model: Path | str | bytes, options: Any) -> Any:
    """An ONNX Runtime CPU session over a file or its bytes; BuildFailed with its message when it refuses the graph.

    The runs of a model with a Loop are bounded (bounded.py).
    """
    ort = import_onnxruntime()
    if not options.intra_op_num_threads:  # 0: nobody said how many. PyTorch and numpy keep to it, ONNX Runtime takes all cores
        options.intra_op_num_threads = wanted_threads()
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise BuildFailed(f"ONNX Runtime refuses the graph: {error}") from error
    return BoundedSession(session, allowed_seconds()) if may_loop(model) else session


def import_onnxruntime() -> Any:
    """The module, or Missing with the install line."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Missing(
            f"onnxruntime is needed and cannot be imported ({error}): pip install 'bertc[cpu]' (or 'bertc[gpu]')"
        ) from error
    return ort
