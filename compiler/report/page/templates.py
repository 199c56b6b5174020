"""The templates of this folder."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import jinja2

HERE = Path(__file__).parent
_WORDS = re.compile(r"(?<=>)[^<>]+(?=</(?:span|code)>)")  # of a report, as its templates mark them
_LONG = re.compile(r"[^\s;&]{18,}")
_BREAK = re.compile(r"(?<=[A-Za-z)])[._/](?=[A-Za-z_])|(?<=[a-z])(?=[A-Z])")  # never inside a number or a version
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")  # of a command line


class Absent(jinja2.StrictUndefined):
    """What a report lacks: false in an `if`, an error anywhere else."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def breakable(html: str) -> str:
    """HTML whose long names (in <span> and <code>) break between their parts, with <wbr>; flags (-o, --data) stay whole."""

    def fit(words: re.Match[str]) -> str:
        parted = _LONG.sub(lambda name: _BREAK.sub(r"\g<0><wbr>", name[0]), words[0])
        return _FLAG.sub(r'<span class="flag">\g<0></span>', parted)

    return _WORDS.sub(fit, html)


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja2 with everything escaped and nothing that is absent printed."""
    loader = jinja2.FileSystemLoader(HERE)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=Absent)
    made.globals["css"] = (HERE / "page.css").read_text("utf-8")
    return made
