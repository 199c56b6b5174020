"""A Ray cluster of one node on the loopback, for a module of tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator


@contextlib.contextmanager
def cluster(cores: int) -> Iterator[tuple[str, int]]:
    """The address of a head node with some cores on the loopback, and the pid above all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else each machine's own token is asked for
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Ray's own folder and what a killed task leaves. Not below pytest's: names of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        what = [f"--num-cpus={cores}", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={folder}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *where, *what]
        head = subprocess.Popen(command, start_new_session=True, env=os.environ | {"TMPDIR": folder}, **pipes)
        try:
            _wait_for(port, head)
            yield f"127.0.0.1:{port}", head.pid
        finally:
            head.terminate()
            head.wait(30)


def _wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("ray start did not begin to answer within 60 s")
