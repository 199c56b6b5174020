"""Symlinks: what is wrong with one that leads nowhere; and those in a folder that somebody else made, followed only to what they
gave, so that no file of this machine is copied."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import SourceError


def why_broken(path: Path) -> str | None:
    """What is wrong with a link, or one on the way to `path`, that leads to nothing or in a circle; None where none does."""
    link = next((part for part in (*reversed(path.parents), path) if part.is_symlink() and not os.path.exists(part)), None)
    if link is None:
        return None
    chain = [link]
    while chain[-1].is_symlink() and chain[-1] not in chain[:-1]:
        chain.append(Path(os.path.normpath(chain[-1].parent / chain[-1].readlink())))
    shown = " -> ".join(map(str, chain))
    if chain[-1] in chain[:-1]:
        return f"links lead in a circle: {shown}; put the file there in place of the link"
    if why := why_broken(chain[-1].parent):
        return why
    return f"{link} is a link to what is not there: {shown}"


def check_link(file: Path, folder: Path) -> Path:
    """`file` again, which lies in `folder`, where no link on its way leads out of it. Raises SourceError naming link and target.

    `folder` itself may be a link: the user named it. In the cache of the Hugging Face hub the files of a snapshot are links into
    the `blobs` of the same model, which are followed.
    """
    try:
        target, inside = file.resolve(), folder.resolve()
    except (RuntimeError, OSError) as error:  # from Python 3.13 on a circle resolves, to a file that is not there
        raise SourceError(f"{file} is a link that leads in a circle; put the file there in place of the link") from error
    if target.is_relative_to(inside):
        return file
    blobs = _blobs(inside)
    if blobs is not None and target.is_relative_to(blobs):
        return file
    link = next((part for part in (file, *file.parents) if part.is_symlink()), file)
    raise SourceError(
        f"{link} is a link to {target}, outside of {folder}; bertc reads and copies only what lies in the folder: if that file "
        "belongs to the model, put it there in place of the link"
    )


def _blobs(folder: Path) -> Path | None:
    """Where the files of models--ORG--NAME/snapshots/COMMIT[/...] lie; None for another folder."""
    for snapshot in (folder, *folder.parents):
        model = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and model.name.startswith("models--"):
            return model / "blobs"
    return None
