"""Files written with their hash, and what a full or read-only disk means for a user."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError, Missing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def write_hashed(path: Path, data: bytes) -> str:
    """Write bytes and return their sha256."""
    with path.open("wb") as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


UNWRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EBUSY, errno.EXDEV),
    *(errno.ENAMETOOLONG, errno.ELOOP),
)


SURROGATES = "backslashreplace"  # a byte of a file name that is no UTF-8 (PEP 383), written as the \udcff that JSON knows


def write_json(path: Path, data: Mapping[str, Any]) -> str:
    """Write JSON that a person can read and a diff can compare; returns its sha256."""
    return write_hashed(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(errors=SURROGATES))


@contextlib.contextmanager
def output_errors(out: Path, option: str = "-o") -> Iterator[None]:
    """As `disk_errors`, in a block that opens nothing but `out` and its folder: "no such file" then means that the system takes
    none there, as /proc does. `option` is how the user named it."""
    try:
        with disk_errors(out, option):
            yield
    except FileNotFoundError as error:
        raise ArtifactError(f"cannot write {out}: {out.parent} takes no files; choose another {option}") from error


def resolved(out: Path, option: str = "-o") -> Path:
    """The path that the links on the way lead to. ArtifactError where they lead in a circle."""
    try:
        return out.resolve()
    except (RuntimeError, OSError) as error:  # up to Python 3.12 a circle is a RuntimeError
        raise ArtifactError(f"cannot write {out}: its links lead in a circle; choose another {option}") from error


def make_parent(out: Path, option: str = "-o") -> None:
    """The folder that a file or folder named by the user goes into, made where it is not there: in every command alike."""
    with output_errors(out, option):
        out.parent.mkdir(parents=True, exist_ok=True)


def check_writable(out: Path | None, option: str) -> None:
    """Before the work: that the file of `option` can be written when there is something to write. None is no file.

    Raises ArtifactError for a folder, and for what cannot be made or opened.
    """
    if out is None:
        return
    resolved(out, option)
    with output_errors(out, option):
        if out.is_dir():
            raise ArtifactError(f"cannot write {out}: it is a folder; name a file: {option} {out / 'NAME'}")
    make_parent(out, option)
    with output_errors(out, option):
        if not os.path.lexists(out):
            out.touch()
            out.unlink()
            return
    if out.exists() and not os.access(out, os.W_OK):
        raise ArtifactError(f"cannot write {out}: {os.strerror(errno.EACCES)}; choose another {option}")


def write_text(out: Path, text: str, option: str) -> None:
    """Write a file that the user named by `option`; its folder is made."""
    make_parent(out, option)
    with output_errors(out, option):
        out.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def disk_errors(out: Path, option: str = "-o") -> Iterator[None]:
    """Turn 'no space', 'file too large' and 'not allowed' into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(out)).free / 2**20
            raise Missing(f"no room to write {out}: {os.strerror(error.errno)} ({free:.0f} MiB free); free some space") from error
        if error.errno in UNWRITABLE:
            raise ArtifactError(f"cannot write {out}: {os.strerror(error.errno)}; choose another {option}") from error
        raise


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
