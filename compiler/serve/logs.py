"""Structured logs: a line of JSON an event."""

from __future__ import annotations

import logging

import msgspec

from ..core import printable


class JsonLines(logging.Formatter):
    """time (UTC, ISO 8601), level, event, and the traceback where there is one; control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """One event."""
        import datetime

        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        event = {"time": when, "level": record.levelname.lower(), "event": printable(record.getMessage())}
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()
