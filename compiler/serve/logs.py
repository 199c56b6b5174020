"""Structured logs: a line of JSON an event."""

from __future__ import annotations

import logging

import msgspec

from ..core import Progress, printable

LOG = logging.getLogger("bertc.serve")


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


class Logged(Progress):
    """Progress of a server that nobody looks at: its notes are events."""

    def note(self, text: str) -> None:
        """A note, once."""
        if text not in self.notes:
            LOG.info("%s", text)
        super().note(text)


def to_stderr() -> None:
    """A line of JSON an event, of the server and of what uvicorn warns of."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name, level in (("bertc.serve", logging.INFO), ("uvicorn.error", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)
