"""ONNX Runtime sessions, without what reads graphs: a worker of a server starts without it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..core import BuildFailed, Missing, wanted_threads
from .bounded import BoundedSession, Session, allowed_seconds, may_loop

_NO_OPERATOR = re.compile(r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op")


def open_session(model: Path | str | bytes, options: Any) -> Any:
    """An ONNX Runtime CPU session over a file or its bytes; BuildFailed with its message when it refuses the graph.

    A run raises RunFailed; those of a model with a Loop are bounded (bounded.py).
    """
    ort = import_onnxruntime()
    if not options.intra_op_num_threads:  # 0: nobody said how many. PyTorch and numpy keep to it, ONNX Runtime takes all cores
        options.intra_op_num_threads = wanted_threads()
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise BuildFailed(f"ONNX Runtime refuses the graph: {_why(error)}") from error
    return BoundedSession(session, allowed_seconds()) if may_loop(model) else Session(session)


def _why(error: Exception) -> str:
    found = _NO_OPERATOR.search(str(error))
    if found is None:
        return str(error)
    lacks = f"it has no operator {found[2]} of domain {found[1]}"
    known = "; what bertc writes defines it by a function in the file: build or fuse it again from its source"
    return lacks + (known if found[1] == "bertc" else ", and no function in the file defines it")


def import_onnxruntime() -> Any:
    """The module, or Missing with the install line."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise Missing(
            f"onnxruntime is needed and cannot be imported ({error}): pip install 'bertc[cpu]' (or 'bertc[gpu]')"
        ) from error
    return ort
