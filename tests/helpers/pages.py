"""A page as text: its numbers with their marks, held against the document it was made from."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from bertc.cli import _main as cli
from bertc.report.page import marks

Report = dict[str, Any]


def run(*words: object, code: int = 0) -> None:
    assert cli.run([str(word) for word in words]) == code


class Read(HTMLParser):
    """Numbers with their marks, the texts outside them, and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(re.sub(r'<wbr>|<span class="flag">(.*?)</span>', r"\1", html))  # where a line may break

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "data":
            self.numbers.append((str(found["data-json"]), str(found["value"]), ""))
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[key]) for key in ("href", "src", "srcset", "action", "xlink:href") if key in found]
        self._open += [tag] if tag not in ("meta", "br", "link", "img") else []

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "data":
            where, value, said = self.numbers[-1]
            self.numbers[-1] = (where, value, said + data)
        elif data.strip() and not {"style", "svg", "title"} & set(self._open):
            self.texts.append(" ".join(data.split()))


def steps(where: str) -> marks.Path:
    """A JSON Pointer as a path, by RFC 6901."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in where.split("/")[1:]]
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def at(document: Any, where: str) -> Any:
    for part in where.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def same_as(document: Report, numbers: list[Any]) -> None:
    """Each number's exact value is that of the document, and its text what `marks.text` makes of it."""
    for where, value, said in numbers:
        found = at(document, where)
        assert json.loads(value) == found, where
        assert " ".join(said.split()) == marks.shown_text(steps(where), found), where


def words(document: Any) -> set[str]:
    """Every name and string of a document, numbers left out."""
    if isinstance(document, dict):
        return {" ".join(name.split()) for name in document}.union(*map(words, document.values()))
    if isinstance(document, list):
        return set[str]().union(*map(words, document))
    return {" ".join(document.split())} if isinstance(document, str) else set()
