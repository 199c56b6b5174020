"""Builds on a small machine, for the benchmark and the tests: one core, little memory, no home, no /dev/shm, few open files."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What the address space of a build grew to, which is what RLIMIT_AS limits.
MEASURED = """
import os, sys
from pathlib import Path
from bertc.cli import _main as cli
code = cli.run(sys.argv[2:])
lines = Path("/proc/self/status").read_text().splitlines()
Path(sys.argv[1]).write_text(next(line.split()[1] for line in lines if line.startswith("VmPeak:")))
sys.exit(code)
"""
# A limit from after the imports on: what OpenBLAS or the interpreter does while it is loaded is not bertc's to say.
LATER = """
import resource, sys
import numpy, onnxruntime, onnx_ir, onnxscript
from pathlib import Path
from bertc.cli import _main as cli
def size(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024
begun = size("VmSize:")
limit = begun + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
code = cli.run(sys.argv[3:])
Path(sys.argv[1]).write_text(str(size("VmPeak:") - begun))
sys.exit(code)
"""
OWN_MOUNTS = ("unshare", "--mount", "sh", "-c")


@dataclasses.dataclass(frozen=True)
class Limit:
    """A machine that lacks something."""

    name: str
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    before: Callable[[], None] | None = None
    around: Sequence[str] = ()


def all_limits(folder: Path) -> list[Limit]:
    """Those that this machine can make; `folder` is for a home that cannot be written."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    core = str(min(os.sched_getaffinity(0)))
    made = [
        Limit("one core", around=("taskset", "--cpu-list", core)),
        Limit("no HOME", {"HOME": None}),
        Limit("HOME that is not there", {"HOME": str(folder / "nobody" / "home")}),
        Limit("64 open files", before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))),
    ]
    if own_mounts():
        # A read-only mount, because root writes where permissions say no.
        lines = 'mount --bind "$HOME" "$HOME" && mount -o remount,bind,ro "$HOME" && ! touch "$HOME/x" 2>/dev/null && exec "$@"'
        made.append(Limit("read-only HOME", {"HOME": str(home)}, around=(*OWN_MOUNTS, lines, "sh")))
        lines = 'mount -t tmpfs -o size=4k,nr_inodes=1 none /dev/shm && ! touch /dev/shm/x 2>/dev/null && exec "$@"'
        made.append(Limit("no room in /dev/shm", around=(*OWN_MOUNTS, lines, "sh")))
    return made


def own_mounts() -> bool:
    """Whether this user may mount in a name space of its own."""
    command = ("unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt")
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def run(words: Sequence[str], limit: Limit) -> tuple[int, str]:
    """(exit code, what it said) of `bertc WORDS` there."""
    return _run([sys.executable, "-m", "bertc", *words], limit)


def _run(command: Sequence[str], limit: Limit) -> tuple[int, str]:
    paths = os.pathsep.join(os.path.abspath(path or ".") for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, **limit.environment}
    known = {key: value for key, value in environment.items() if value is not None}
    done = subprocess.run(
        [*limit.around, *command], env=known, preexec_fn=limit.before, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stderr


def needed(words: Sequence[str], folder: Path) -> int:
    """Bytes of address space that a build needs."""
    told = folder / "peak"
    code, said = _run([sys.executable, "-c", MEASURED, str(told), *words], Limit("measured"))
    if code:
        raise RuntimeError(said)
    return int(told.read_text()) * 1024


def run_later(words: Sequence[str], folder: Path, more: int) -> tuple[int, str, int]:
    """(exit code, what it said, bytes taken) of a build that may take `more` bytes than its imports took."""
    told = folder / "taken"
    told.write_text("0", encoding="utf-8")
    code, said = _run([sys.executable, "-c", LATER, str(told), str(more), *words], Limit("later"))
    return code, said, int(told.read_text("utf-8"))


def less_memory(size: int) -> Limit:
    """No more address space than this."""
    return Limit(f"{size / 2**20:.0f} MiB", before=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)))


def wrong_end(code: int, said: str) -> list[str]:
    """What is wrong with how a build without memory ended: done, or exit code 3 that says so."""
    last = (said.strip().splitlines() or [""])[-1] if "error: " not in said else said[said.rindex("error: ") :]
    if code == 0 or (code == 3 and "ut of memory" in last and "Traceback" not in said):
        return []
    return [f"exit code {code}: {said[-700:]}"]
