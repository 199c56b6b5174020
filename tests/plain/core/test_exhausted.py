"""Memory that ran out is told as such, whoever says it; what is a bug stays one."""

from __future__ import annotations

import errno

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
