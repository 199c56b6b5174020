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


UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EBUSY, errno.EXDEV, errno.ENAMETOOLONG)


SURROGATES = "backslashreplace"  # a byte of a file name that is no UTF-8 (PEP 383), written as the \udcff that JSON knows


def write_json(path: Path, data: Mapping[str, Any]) -> str:
    """Write JSON that a person can read and a diff can compare; returns its sha256."""
    return write_hashed(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(errors=SURROGATES))


@contextlib.contextmanager
def disk_errors(out: Path) -> Iterator[None]:
    """Turn 'no space', 'file too large' and 'not allowed' into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(out)).free / 2**20
            raise Missing(f"no room to write {out}: {os.strerror(error.errno)} ({free:.0f} MiB free); free some space") from error
        if error.errno in UNWRITABLE:
            raise ArtifactError(f"cannot write {out}: {os.strerror(error.errno)}; choose another -o") from error
        raise


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
