"""Questions and passages of a machine's documentation: the summary of a docstring or a package asks for what follows it.

Read where it is installed, and never copied. Docstrings of Python's standard library (PSF licence) and of the packages beside
it, summaries and descriptions of those packages (each of its own licence), and of Debian's packages where there are some.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

HELD_OUT = 5  # one source in so many is held out, by the hash of its name
DPKG = Path("/var/lib/dpkg/status")
SKIPPED = re.compile(r"(^|/)(tests?|testing|_vendor|idlelib|lib2to3)(/|$)")
NO_PROSE = re.compile(
    r"^\s*(>>>|\.\. |:param|(Args|Arguments|Parameters|Returns?|Yields|Raises|Examples?|Notes?|See Also)\b)|----|===="
)
MARKUP = re.compile(r":\w+:`~?([^`]+)`|`{1,2}([^`]+)`{1,2}|\*{1,2}(\w[^*]*)\*{1,2}")
SHORTEST_QUESTION, SHORTEST_PASSAGE, LONGEST = 25, 80, 600  # characters


@dataclasses.dataclass(frozen=True)
class Pair:
    """A question and the passage that answers it."""

    question: str
    passage: str


def normalise(text: str) -> str:
    """One form of a text for questions and passages: NFKC, no marks of reStructuredText, one space between words."""
    plain = MARKUP.sub(lambda found: next(filter(None, found.groups())), unicodedata.normalize("NFKC", text))
    return " ".join(plain.split())


def read_pairs(most: int) -> tuple[list[Pair], list[Pair]]:
    """(to learn from, held out): pairs of different sources; no question and no passage comes twice, or on both sides."""
    learned: dict[str, Pair] = {}
    held_out: dict[str, Pair] = {}
    seen: set[str] = set()
    for name, pairs in _sources():
        side = held_out if _number(name) % HELD_OUT == 0 else learned
        for pair in pairs:
            if len(side) < most and not {pair.question, pair.passage} & seen:
                seen |= {pair.question, pair.passage}
                side[pair.question] = pair
        if len(learned) >= most and len(held_out) >= most // 2:
            break
    return ([side[each] for each in sorted(side, key=_number)] for side in (learned, held_out))  # type: ignore[return-value]


def write_pairs(path: Path, pairs: list[Pair]) -> None:
    lines = (json.dumps({"text": each.question, "text_pair": each.passage}) for each in pairs)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_pairs(path: Path) -> list[Pair]:
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [Pair(row["text"], row["text_pair"]) for row in rows]


def _sources() -> Iterator[tuple[str, list[Pair]]]:
    """(name of a source, its pairs), in an order that depends on names alone."""
    for package in sorted(metadata.distributions(), key=lambda each: str(each.metadata["Name"]).lower()):
        said: Any = package.metadata  # an email.message.Message, which its declared type does not say
        described = str(said.get_payload() or said.get("Description") or "")
        yield f"package/{said['Name']}", _pair(str(said.get("Summary") or ""), described.split("\n\n"))
    if DPKG.is_file():
        yield from _debian(DPKG)
    files = dict(_files())
    for name in sorted(files, key=_number):  # in no package's order: who stops early has read some of each
        yield name, [pair for doc in _docstrings(files[name]) for pair in _pair(*_parts(doc))]


def _files() -> Iterator[tuple[str, Path]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    installed = [path for each in dict.fromkeys(sys.path) if (path := Path(each)).name in ("site-packages", "dist-packages")]
    for root in (library, *installed):
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            inside = root == library and name.startswith(("site-packages/", "dist-packages/"))
            if not inside and not SKIPPED.search(name):
                yield name, path


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return  # a template, or a test of the parser: it documents nothing
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            doc := ast.get_docstring(node)
        ):
            yield doc


def _debian(status: Path) -> Iterator[tuple[str, list[Pair]]]:
    for entry in status.read_text("utf-8", "replace").split("\n\n"):
        name = re.search(r"^Package: (\S+)", entry, re.MULTILINE)
        found = re.search(r"^Description: (.+)\n((?: .*\n?)+)", entry, re.MULTILINE)
        if name and found:
            yield f"debian/{name[1]}", _pair(found[1], found[2].split("\n .\n"))


def _parts(doc: str) -> tuple[str, list[str]]:
    summary, *rest = re.split(r"\n\s*\n", doc)
    return summary, rest


def _pair(question: str, paragraphs: list[str]) -> list[Pair]:
    """The first prose behind a summary answers it; none where there is no prose of a sensible length."""
    passages = [normalise(each) for each in paragraphs[:3] if not NO_PROSE.search(each)]
    good = [each for each in passages if _is_prose(each, SHORTEST_PASSAGE)]
    asked = normalise(question)
    return [Pair(asked, good[0])] if good and _is_prose(asked, SHORTEST_QUESTION) and asked not in good[0] else []


def _is_prose(text: str, shortest: int) -> bool:
    letters = sum(each.isalpha() or each == " " for each in text)
    return shortest <= len(text) <= LONGEST and letters > 0.8 * len(text) and text.count(" ") >= 3


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12], 16)
