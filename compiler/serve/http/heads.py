"""uvicorn's fast protocol with a bound on the head of a request: its size, and the time that it takes to come."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 2**16  # bytes, as uvicorn's other protocol has it
PATIENCE = 20.0  # seconds from the first byte, or from the connection, to the end of a head


class BoundedHeads(HttpToolsProtocol):
    """httptools gathers a head for as long as it comes, and a connection that says nothing stays open."""

    _late: asyncio.TimerHandle | None = None
    _head = 0
    _in_head = True

    def connection_made(self, transport: Any) -> None:
        """Wait for a first head."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes while a head is not complete."""
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > MOST_HEAD and not self.transport.is_closing():
                self.send_400_response(f"the head of a request is over {MOST_HEAD} bytes")

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._arrived()
        self._expect()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._arrived()
        super().on_headers_complete()

    def _expect(self) -> None:
        self._in_head, self._head = True, 0
        self._late = self.loop.call_later(PATIENCE, self._give_up)

    def _give_up(self) -> None:
        if self._head and not self.transport.is_closing():
            self.send_400_response(f"the head of a request did not come within {PATIENCE:g} s")
        self.transport.close()

    def _arrived(self) -> None:
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None
