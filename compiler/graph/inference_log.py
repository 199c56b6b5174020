"""What onnx's shape inference says of a file that contradicts itself: the reason in one line, once, not a traceback."""

from __future__ import annotations

import logging

LOGGER = "onnx_ir.passes.common.shape_inference"


class OneLine(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        reason = " ".join(str(error).split())
        if reason in self._told:
            return False
        self._told.add(reason)
        record.msg, record.args = "note: shapes are taken as the file says them, without onnx's shape inference: %s", (reason,)
        record.exc_info = record.exc_text = None
        return True


def in_one_line() -> None:
    """Once for the process; the logger is onnx_ir's own."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, OneLine) for each in logger.filters):
        logger.addFilter(OneLine())
