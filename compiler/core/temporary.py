"""Folders for temporary files: gone with their process, and where that was killed, with the next bertc."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX, UNLOCKED = "bertc-work-", ".bertc-new-"
FRESH = 60.0  # seconds in which a folder that nobody locked may be one whose process is about to lock it


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder of this process alone, for the block. It is locked while the process lives, whatever ends it.

    A lock, not the number of the process: containers that share a folder for temporary files have numbers of their own.
    """
    sweep_scratch()
    folder = Path(tempfile.mkdtemp(prefix=UNLOCKED))
    handle = _lock(folder)
    try:
        # Renamed with its lock on: what has the final name and no lock is nobody's.
        folder = folder.rename(folder.with_name(PREFIX + folder.name.removeprefix(UNLOCKED)))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def sweep_scratch() -> None:
    """Remove the folders of processes that were killed: this user's, that nobody holds."""
    if os.name != "posix":  # no locks on folders: nobody knows whose they are
        return
    try:
        place = Path(tempfile.gettempdir())
    except OSError:  # a full disk: nothing can be made there, and who wants to says so
        return
    aged = [each for each in place.glob(f"{UNLOCKED}*") if _old(each)]
    for folder in (*place.glob(f"{PREFIX}*"), *aged):
        with contextlib.suppress(OSError):  # another user's, in use, or removed by another process meanwhile
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            if (handle := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > FRESH
    except OSError:
        return False


def _lock(folder: Path) -> int | None:
    """A lock on a folder as long as it is open. None where the system locks no folders. BlockingIOError where another has it."""
    if os.name != "posix":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network file systems lock nothing: then nothing there is swept
        os.close(handle)
        return None
    return handle
