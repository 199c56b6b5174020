"""Fleets and writers as processes that can be killed, for the benchmark and for the tests."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

# Each writer puts every key, all in another order; a key says what its contents must be.
WRITE = textwrap.dedent("""
    import hashlib, random, sys
    from pathlib import Path
    from bertc.fleet.store import Store
    store, seed, count = Store(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    keys = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]
    random.Random(seed).shuffle(keys)
    print("ready", flush=True)
    for key in keys:
        with store.lock(key), store.staging() as folder:
            if store.has(key):
                continue
            (folder / "a").mkdir()
            (folder / "a" / "file").write_text(key * 50)
            store.put(key, folder, {"slot": f"s/{key[:3]}", "inputs": {"stage": "build"}, "seconds": 0.0})
            store.set_slot(f"s/{key[:3]}", {"key": key})
""")


def writers(store: Path, count: int, entries: int) -> list[subprocess.Popen[str]]:
    """Processes that each put the same entries into one store."""
    commands = [[sys.executable, "-c", WRITE, str(store), str(seed), str(entries)] for seed in range(count)]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]


def start(path: Path, *words: str) -> subprocess.Popen[bytes]:
    """`bertc fleet build`, in the background."""
    command = [sys.executable, "-m", "bertc", "fleet", "build", str(path), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def below(parent: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    found, waiting = [], [parent]
    while waiting:
        for file in Path("/proc").glob(f"{waiting.pop()}/task/*/children"):
            try:
                children = [int(pid) for pid in file.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
            found += children
            waiting += children
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a fleet alone; RuntimeError where one of its tasks lives on without it."""
    tasks = below(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while not all(map(_gone, tasks)):
        if time.monotonic() > deadline:
            raise RuntimeError("a task outlived its fleet")
        time.sleep(0.02)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
