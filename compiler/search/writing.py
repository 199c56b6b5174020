"""The chosen student on disk, with search.json and its page beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import SEARCH
from ..compress import write_net
from ..core import Progress, disk_errors
from ..distill import Net
from ..report import page
from .page import render
from .request import Request


def write(net: Net, folder: Path, document: Mapping[str, Any], request: Request, log: Progress) -> None:
    """The model in the form that its shapes allow, as `bertc compress` writes it, into an empty folder."""
    write_net(net, folder, request.model, request.seed, log)
    with disk_errors(folder):
        for note in page.write_document(folder, SEARCH, document, render):
            log.note(note)
