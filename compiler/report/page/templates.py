"""The templates of this folder."""

from __future__ import annotations

import functools
from pathlib import Path

import jinja2

HERE = Path(__file__).parent


class Absent(jinja2.StrictUndefined):
    """What a report has not: it can be asked for in an `if`, and is an error anywhere else."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja2 with everything escaped and nothing that is absent printed."""
    loader = jinja2.FileSystemLoader(HERE)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=Absent)
    made.globals["css"] = (HERE / "page.css").read_text("utf-8")
    return made
