"""The templates of this folder."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import keyword
import re
from pathlib import Path

import jinja2

from ...core import printable

HERE = Path(__file__).parent
_WORDS = re.compile(r"(?<=>)[^<>]+(?=</(?:span|code)>)")  # of a report, as its templates mark them
_LONG = re.compile(r"[^\s;&]{18,}")
_BREAK = re.compile(r"(?<=[A-Za-z)])[._/](?=[A-Za-z_])|(?<=[a-z])(?=[A-Z])")  # never inside a number or a version
# Whatever a name on it holds, a page runs no script, loads nothing, sends nothing: its own style alone counts, by its hash.
_POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")  # of a command line


class Absent(jinja2.StrictUndefined):
    """What a report lacks: false in an `if`, an error anywhere else."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def breakable(html: str) -> str:
    """HTML whose long names (in <span> and <code>) break between their parts, with <wbr>; flags (-o, --data) stay whole. What is
    invisible in a name, or turns the direction of writing, is escaped; in the path of a number, too.
    """

    def fit(words: re.Match[str]) -> str:
        parted = _LONG.sub(lambda name: _BREAK.sub(r"\g<0><wbr>", name[0]), words[0])
        return _FLAG.sub(r'<span class="flag">\g<0></span>', parted)

    return _WORDS.sub(fit, printable(html))


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja2 with everything escaped and nothing that is absent printed."""
    loader = jinja2.FileSystemLoader(HERE)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=Absent)
    css = (HERE / "page.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    made.globals |= {"css": css, "policy": _POLICY.format(digest)}
    made.filters |= {"literal": literal, "variable": variable}
    return made


def literal(name: str) -> str:
    """A name as a string of Python, for lines that are copied."""
    return json.dumps(name) if name.isascii() else ascii(name)


def variable(name: str, number: int) -> str:
    """The name as a variable of Python, `input_1` where it cannot be one: a name is no code that somebody copies and runs."""
    return name if name.isidentifier() and name.isascii() and not keyword.iskeyword(name) else f"input_{number}"
