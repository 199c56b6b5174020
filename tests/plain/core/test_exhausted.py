"""Memory that ran out is told as such, whoever says it; what is a bug stays one."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from bertc.cli import _main as cli
from bertc.core import Missing, ran_out, ran_out_in


def caused(error: Exception, by: BaseException) -> Exception:
    error.__cause__ = by
    return error


OUT = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("can't start new thread"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    caused(Missing("onnxruntime cannot be imported"), ImportError("x.so: failed to map segment from shared object")),
]
OTHER = [
    ValueError("Out of memory is a name"),
    KeyError("bad_alloc"),
    RuntimeError("shape mismatch"),
    OSError(errno.EIO, "I/O error"),
]


@pytest.mark.parametrize("error", OUT, ids=repr)
def test_exit_code_3_and_no_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran_out(error)
    monkeypatch.setattr(cli.cli, "main", lambda **options: (_ for _ in ()).throw(error))
    assert cli.run(["list"]) == 3
    err = " ".join(capsys.readouterr().err.split())
    assert "error: out of memory: " in err and "MiB are free" in err and "Traceback" not in err and "pip install" not in err


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_what_is_none(error: Exception) -> None:
    assert ran_out(error) == ""


def test_the_line_of_a_log_that_says_it() -> None:
    assert ran_out_in("[VERBOSE] fine\n[ERROR] std::bad_alloc\n") == "[ERROR] std::bad_alloc"
    assert ran_out_in("Assertion failed") == ""


# All address space taken in pieces down to 64 bytes, held by the frame of the exception as a build's arrays are.
TAKEN = """
import resource, sys
from pathlib import Path
from bertc.cli import _main as cli

def take(**options):
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    held, piece = [], 2**20
    while True:
        try:
            held.append(bytes(piece))
        except MemoryError:
            if piece == 64:
                raise
            piece //= 2

cli.cli.main = take
sys.exit(cli.run(["list"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes are those of Linux")
def test_nothing_is_left_for_the_message() -> None:
    done = subprocess.run([sys.executable, "-c", TAKEN], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3 and "error: out of memory: " in done.stderr and "Traceback" not in done.stderr, done.stderr
