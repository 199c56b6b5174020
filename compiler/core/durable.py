"""Files that outlive a crash: copied apart from their source, and on the disk before anything names them.

A rename alone promises nothing after a power cut: the name may be on the disk and the bytes not. So the order is: bytes, then
the folder that lists them, then the rename, then the folder that holds the new name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path

_FICLONE = 0x40049409  # of ioctl(2): the copy shares blocks with its source until one of them is written
# What a file system says that cannot share blocks or copy by itself, and what a platform says of folders that it does not sync.
_UNABLE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EBADF, errno.EPERM, errno.EACCES}


def copy_file(source: Path, to: Path) -> None:
    """A file of its own with the same bytes, sharing blocks where the file system can; never a hard link."""
    if not _cloned(source, to):
        shutil.copyfile(source, to)


def _cloned(source: Path, to: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with source.open("rb") as read, to.open("wb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno in _UNABLE:
                return False
            raise
    return True


def sync_file(path: Path) -> None:
    """The bytes of a file to the disk. Raises OSError as a write does: a full disk may show only now."""
    _sync(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)


def sync_folder(path: Path) -> None:
    """The names in a folder to the disk, where the platform has that."""
    if os.name != "posix":  # Windows opens no folders
        return
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in _UNABLE:  # some network file systems do not sync folders
            raise


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Every file below a folder, and every folder's names, from the inside out."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (Path(root) / name).is_symlink():
                sync_file(Path(root) / name)
        sync_folder(Path(root))


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, so that neither name is ever absent. False where the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def write_durably(file: Path, text: str, beside: Path) -> None:
    """Write `beside`, which must be new, and rename it to `file`: after a crash there is the old text or the new one."""
    try:
        with beside.open("x", encoding="utf-8") as handle:  # new, and no link that someone left there
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(file.parent)
