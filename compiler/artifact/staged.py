"""How a folder comes to be: written beside its place, to the disk, then put there in one step; and what killed builds leave."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..core import (
    ArtifactError,
    BertcError,
    InputError,
    disk_errors,
    exchange,
    output_errors,
    read_json,
    resolved,
    started_at,
    sweep_scratch,
    sync_folder,
    sync_tree,
)

MANIFEST = "manifest.json"
# In a folder of weights that bertc made: what distill, compress and search write.
STUDENT, COMPRESSION, SEARCH = "distillation.json", "compression.json", "search.json"
GRAPH = "graph.onnx"
HALF_MADE = re.compile(r"\..+\.(tmp|old)-(\d+-)?\d+")
TRIES = 3  # times that an output may be replaced while it is read
COARSE = 2.0  # seconds by which the clocks of processes and of file systems may differ


def half_made(path: Path) -> bool:
    """Whether a folder is named as what `staging` writes in, or moves aside: never an artifact, whatever lies in it."""
    return HALF_MADE.fullmatch(path.name or path.resolve().name) is not None


Answer = TypeVar("Answer")


def read_in_place(out: Path, work: Callable[[], Answer]) -> Answer:
    """What `work` makes of the files at `out`, which it reads by their names one after another.

    Once more where a build replaced `out` meanwhile: its answer, or its error, is of one build, never of parts of two.
    """
    for _ in range(TRIES):
        before = _identity(out)
        try:
            answer = work()
        except (BertcError, OSError, ValueError, KeyError):
            if _identity(out) == before:
                raise
            continue
        if _identity(out) == before:
            return answer
    raise ArtifactError(
        f"{out} was replaced {TRIES} times while it was read; try again when the builds that write there are done"
    )


def _identity(out: Path) -> tuple[int, ...]:
    try:
        found = out.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def staging(out: Path, force: bool) -> Iterator[Path]:
    """A folder to build in that becomes `out` when the block ends, and vanishes when it raises.

    Raises ArtifactError when `out` exists and may not be replaced, Missing when the disk is full.
    """
    out = resolved(out)  # a link stays a link: what it points to is built or replaced
    with output_errors(out):
        _recover(out)
        sweep_scratch()
        _check_free(out, force)
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = _new_folder(out)
    try:
        with disk_errors(out):
            yield stage
            _install(stage, out, force)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    with already_written(out):
        shutil.rmtree(stage, ignore_errors=True)  # what was there before


@contextlib.contextmanager
def already_written(out: Path) -> Iterator[None]:
    """Ctrl-C in this block says that the output is there."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or f"{out} was written before") from error


def _check_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ArtifactError(f"the output {out} is a file; name a directory")
    if out.is_mount():
        raise ArtifactError(f"the output {out} is a mount point, which cannot be renamed; name a folder in it: -o {out / 'NAME'}")
    if not any(out.iterdir()):
        return
    if not force:
        raise ArtifactError(f"the output {out} exists; --force replaces it, or choose another -o")
    # A folder of artifacts holds nothing else: one artifact among a user's other folders must not cost them those.
    if not _made_here(out) and not all(map(_made_here, out.iterdir())):
        raise ArtifactError(f"the output {out} holds files that bertc did not write; --force replaces artifacts only")


def _made_here(folder: Path) -> bool:
    """Whether bertc wrote this folder. Other programs have a manifest.json too; a damaged artifact still has its graph."""
    for name in (MANIFEST, STUDENT, COMPRESSION, SEARCH):
        if not (folder / name).is_file():
            continue
        try:
            manifest = read_json(folder / name)
        except InputError:
            return (folder / GRAPH).is_file()
        return isinstance(manifest, dict) and "format" in manifest and "bertc" in manifest
    return False


def _new_folder(out: Path) -> Path:
    """A folder of this process; another container's process may have the same number, and its folder stays."""
    for count in range(100):
        stage = out.parent / f".{out.name}.tmp-{f'{count}-' if count else ''}{os.getpid()}"
        with contextlib.suppress(FileExistsError):
            stage.mkdir()
            return stage
    raise ArtifactError(f"cannot write {out}: {out.parent} is full of half-made folders (.{out.name}.tmp-...); remove them")


def _install(stage: Path, out: Path, force: bool) -> None:
    """Bytes and names to the disk, then the rename, then the new name to the disk: a crash leaves the old artifact or the new.

    What another build has put there since this one began is replaced with `force` alone.
    """
    sync_tree(stage)
    new = stage.stat().st_ino
    try:
        if not out.exists() and _placed(stage, out):
            sync_folder(out.parent)
            return
        if not force and out.is_dir() and any(out.iterdir()):
            raise ArtifactError(f"another build wrote {out} meanwhile; --force replaces it, or choose another -o")
        _check_free(out, force)
        if exchange(stage, out):  # at no moment is there nothing at `out`
            sync_folder(out.parent)
        else:
            _rename_twice(stage, out)
    except BaseException:
        if out.exists() and out.stat().st_ino == new:  # just behind it: who is told that nothing was written finds nothing
            _take_back(stage, out)
        raise


def _take_back(stage: Path, out: Path) -> None:
    if stage.exists():
        exchange(stage, out)
    else:
        out.rename(stage)


def _placed(stage: Path, out: Path) -> bool:
    """Rename to a name that nothing has; False where something has it by now."""
    try:
        stage.rename(out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _rename_twice(stage: Path, out: Path) -> None:
    """A folder that is in the way moves aside first, comes back on any failure, and goes when the new one is in place."""
    aside = out.parent / f".{out.name}.old-{os.getpid()}"
    try:
        out.rename(aside)
        stage.rename(out)
        sync_folder(out.parent)  # before the old one goes
    except BaseException:
        if aside.exists():  # also after Ctrl-C between the two renames, or just behind either of them
            if out.exists():
                out.rename(stage)
            aside.rename(out)
        raise
    aside.rename(stage)  # and goes with the folder that was built in


def _recover(out: Path) -> None:
    """Clear what a killed build left: its half-written folder goes, an artifact it had moved aside comes back."""
    for aside in _leftovers(out, "old"):
        if out.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(out)
    for stage in _leftovers(out, "tmp"):
        shutil.rmtree(stage, ignore_errors=True)


def _leftovers(out: Path, kind: str) -> list[Path]:
    """Folders of builds that are no longer running, by the process number in their name; any other name is a user's."""
    found = out.parent.glob(f".{glob.escape(out.name)}.{kind}-*")
    return sorted(p for p in found if half_made(p) and p.is_dir() and not _in_use(p, int(p.name.rpartition("-")[2])))


def _in_use(folder: Path, pid: int) -> bool:
    """Whether the process that made a folder may still run.

    Numbers of processes are given again: one that started after the folder was last touched is another, this one included. (In a
    container every build may have the same number.)
    """
    if os.name == "nt":
        return True  # os.kill would send a signal there; better a folder too many than a running build's folder gone
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    began = started_at(pid)
    return began is None or began <= folder.stat().st_ctime + COARSE
