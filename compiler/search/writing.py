"""The chosen student on disk, with search.json and its page beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..artifact import SEARCH
from ..compress import write_net
from ..core import Progress, disk_errors, write_json, write_text
from ..distill import Net
from ..report import page
from .page import render
from .request import Request

PAGE = "search.html"


def write(net: Net, folder: Path, document: Mapping[str, Any], request: Request, log: Progress) -> None:
    """The model in the form that its shapes allow, as `bertc compress` writes it, into an empty folder."""
    write_net(net, folder, request.model, request.seed, log)
    with disk_errors(folder):
        write_json(folder / SEARCH, document)
        if why := page.why_no_page():
            log.note(why.replace("report.html", PAGE))
        else:
            write_text(folder / PAGE, render(document), "-o")
