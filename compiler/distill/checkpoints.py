"""The state of a training on disk: whole or not there, whatever interrupts it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from ..core import ArtifactError, disk_errors, first_line

NAME, HALF = "checkpoint.pt", "checkpoint.pt.half"
FORMAT = 1


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write beside the last checkpoint, and put it in its place in one step.

    Through memory: torch.save on a full disk raises what says nothing of the disk.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        half = folder / HALF
        try:
            with half.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(half, folder / NAME)
        finally:
            half.unlink(missing_ok=True)


def load(folder: Path, fingerprint: str) -> dict[str, Any]:
    """The state in a folder. Raises ArtifactError where there is none, it is damaged, or it is of another command or data."""
    path = folder / NAME
    if not path.is_file():
        raise ArtifactError(f"--resume: there is no {path}; leave --resume out to begin")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        raise ArtifactError(
            f"{path} is damaged ({first_line(error)[:80]}); leave --resume out and add --force to begin again"
        ) from error
    if state.get("format") != FORMAT:
        raise ArtifactError(f"{path} is of another version of bertc; leave --resume out and add --force to begin again")
    if state["fingerprint"] != fingerprint:
        raise ArtifactError(
            f"{path} is of other settings, texts or teachers than this command: give the same ones, or leave --resume out and "
            "add --force to begin again"
        )
    return state
