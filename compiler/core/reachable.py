"""Whether anybody listens at an address, before a library that waits for minutes is asked to connect."""

from __future__ import annotations

import re
import socket

from .errors import InputError, Missing

WAIT = 5.0  # seconds
HOST_PORT = re.compile(r"(?:\w+://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d{1,5})/?")


def check_reachable(address: str, option: str, what: str) -> None:
    """Missing where nobody listens at `host:port` or `scheme://host:port`; other words (`auto`) are not looked at.

    `what` should listen there, and how it is started.
    """
    found = HOST_PORT.fullmatch(address)
    if found is None:
        return
    if int(found["port"]) > 65535:
        raise InputError(f"{option} {address}: a port is at most 65535")
    try:
        socket.create_connection((found["host"], int(found["port"])), timeout=WAIT).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or "no answer"
        raise Missing(f"{option} {address}: nobody listens there ({why.lower()}); {what}") from error
