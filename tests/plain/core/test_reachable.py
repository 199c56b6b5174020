"""An address where nobody listens is said at once."""

from __future__ import annotations

import socket
import time

import pytest

from bertc.core import InputError, Missing, check_reachable


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_somebody_and_nobody(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        check_reachable(f"{scheme}127.0.0.1:{port}", "--ray", "start it")
    start = time.monotonic()
    with pytest.raises(Missing, match="refused") as found:
        check_reachable(f"{scheme}127.0.0.1:{port}", "--ray", "start it")
    assert "start it" in str(found.value) and str(port) in str(found.value) and time.monotonic() - start < 5


def test_addresses_that_are_none() -> None:
    check_reachable("auto", "--ray", "start it")
    with pytest.raises(Missing):
        check_reachable("no.such.host.invalid:80", "--ray", "start it")
    with pytest.raises(InputError, match="65535"):
        check_reachable("127.0.0.1:99999", "--ray", "start it")
