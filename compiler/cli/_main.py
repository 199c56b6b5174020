"""The command line: the commands of this folder, and what an error means for the exit code.

Data goes to stdout (`--json`), everything a person reads to stderr. Exit codes: 0 done, 1 the check or the build failed,
2 bad input or usage, 3 something the machine lacks, 4 a bug in bertc, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import click

from ..core import BertcError, InputError, Missing, RunFailed, at_limit, more_memory, ran_out
from . import _completion as _completion
from ._group import Commands
from ._output import print_error, print_json, print_usage_error, printable_warnings
from ._streams import is_of_stdout, silence

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples=("bertc build minilm --fp32 --target onnxruntime -o out/minilm", "bertc list targets"),
)
@click.version_option(package_name="bertc", prog_name="bertc")
def cli() -> None:
    """Compile distilled PyTorch encoders to ONNX Runtime and TensorRT engines, and prove them equal to the source."""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends a build as Ctrl-C does: what is half-written is removed."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    _load_unwinder()
    code = run(arguments)
    # Else the interpreter, as it ends, walks through all that torch and an export left: 1.6 s after a build, to free what the
    # system frees at once.
    gc.freeze()
    sys.exit(code)


def _load_unwinder() -> None:
    """glibc loads it when a thread ends early, and aborts the process where memory is too short for that by then."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError):
            ctypes.CDLL("libgcc_s.so.1")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors are printed, never raised."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    streams = sys.stdout, sys.stderr
    try:
        with _terminated(), printable_warnings():
            _require_utf8(words)
            # What a command returns is None; an Exit comes back as its code.
            return int(cli.main(args=words, prog_name="bertc", standalone_mode=False) or 0)
    except click.ClickException as error:
        print_usage_error(error)
        return _failed(words, error.format_message(), 2)
    except BertcError as error:
        if why := ran_out(error):  # not a package, nor the model, nor a file
            return _no_memory(words, str(error) if isinstance(error, RunFailed) else why)
        print_error(f"error: {error}")
        return _failed(words, str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort) as error:
        message = f"interrupted: {_reason(error) or 'nothing was written'}"
        print_error(message)
        return _failed(words, message, 130)
    except SystemExit:  # click's answer to `bertc --help | head -1`: the reader has what it wanted
        sys.stdout, sys.stderr = streams
        silence(sys.stdout)
        return 0
    except MemoryError as error:
        return _no_memory(words, ran_out(error))
    except OSError as error:
        if is_of_stdout(error):
            return _no_stdout(error)
        if error.filename is not None and os.fspath(error.filename) in words:
            message = f"cannot open {error.filename}: {error.strerror}"
            print_error(f"error: {message}")
            return _failed(words, message, InputError.exit_code)
        # On a disk that is quite full, Python finds no folder for temporary files and says so with another number.
        full = error.errno in NO_ROOM or "No usable temporary directory" in str(error)
        return _disk_full(words, error) if full else _unexpected(words, error)
    except Exception as error:  # noqa: BLE001 - the last resort: a bug, shown with its traceback
        return _unexpected(words, error)


def _require_utf8(words: Sequence[str]) -> None:
    """A byte that is no UTF-8 reaches Python as half of a surrogate pair (PEP 383)."""
    for word in words:
        if any("\ud800" <= each <= "\udfff" for each in word):
            raise InputError(f"{word!r} is not UTF-8; ONNX and the runtimes open no file of such a name: rename it")


def _reason(error: BaseException) -> str:
    """The message of a command that was interrupted; click puts an Abort in the place of its exception."""
    return str(error if isinstance(error, KeyboardInterrupt) else error.__cause__ or "")


def _no_stdout(error: OSError) -> int:
    """What was asked for cannot be printed: a full disk, or a stdout that is open for reading."""
    silence(sys.stdout)
    full = error.errno in NO_ROOM
    print_error(
        f"error: cannot write to stdout: {error.strerror}; {'free some space' if full else 'give it another place to go'}"
    )
    return Missing.exit_code if full else InputError.exit_code


def _disk_full(words: Sequence[str], error: OSError) -> int:
    """Room ran out elsewhere than at the output: in the folder for temporary files."""
    message = f"no room for temporary files: {error}; free some space, or set TMPDIR to a folder on another disk"
    print_error(f"error: {message}")
    return _failed(words, message, 3)


def _unexpected(words: Sequence[str], error: Exception) -> int:
    why = ran_out(error)
    if not why and (taken := at_limit()):
        why = f"{taken}, and then {type(error).__name__}: {error}"
    return _no_memory(words, why) if why else _bug(words, error)


def _no_memory(words: Sequence[str], why: str) -> int:
    message = f"out of memory: {why}; {more_memory()}"
    print_error(f"error: {message}")
    return _failed(words, message, Missing.exit_code)


def _bug(words: Sequence[str], error: Exception) -> int:
    import traceback

    if not print_error("".join(traceback.format_exception(error)).rstrip("\n")):
        return Missing.exit_code  # stderr itself takes nothing
    print_error(f"error: a bug in bertc ({type(error).__name__}: {error}); please report the lines above")
    return _failed(words, f"{type(error).__name__}: {error}", 4)


def _failed(words: Sequence[str], message: str, code: int) -> int:
    if "--json" in words:
        with contextlib.suppress(OSError, InputError):  # the exit code says it, too
            print_json({"error": message, "exit_code": code})
    return code
