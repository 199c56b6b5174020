"""Text to distil with that every machine with these packages has: docstrings, descriptions and licences, by the file they are in.

python -m benchmarks.texts out/texts --count 20000
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from benchmarks.real_text import _licences, _paragraphs

SHORTEST, LONGEST = 20, 400  # characters of a text
HELD_OUT = 6  # one file in so many is held out, by the hash of its path
PAIRS, JUDGED = 800, 2000
NO_PROSE = re.compile(
    r"^\s*(>>>|:param|\S+ *: |(Args|Arguments|Parameters|Returns?|Yields|Raises|Attributes|Examples?)\b)|----|===="
)
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
SKIPPED = re.compile(r"(^|/)(tests?|testing|_vendor|idlelib|lib2to3)(/|$)")


def write(folder: Path, count: int) -> dict[str, int]:
    """Write texts.txt (to learn from), held_out.txt (of other files) and pairs.jsonl (summary and body of docstrings in the
    held-out files); returns how many lines each has."""
    learned: dict[str, None] = {}
    held_out: dict[str, None] = {}
    pairs: dict[str, str] = {}
    for path, docs in _sources():
        out = _is_held_out(path)
        for doc in docs:
            into = held_out if out else learned
            into |= dict.fromkeys(_sentences(doc))
            if out and (pair := _pair(doc)):
                pairs.setdefault(*pair)
        if len(learned) >= count and len(held_out) >= JUDGED and len(pairs) >= PAIRS:
            break
    held_out = {each: None for each in held_out if each not in learned}
    ordered = sorted(learned, key=_digest)[:count]
    if len(ordered) < count:
        raise ValueError(f"{count} texts asked for, the installed packages have {len(ordered)}")
    folder.mkdir(parents=True, exist_ok=True)
    kept = [each for each in sorted(pairs, key=_digest) if each not in learned and pairs[each] not in learned][:PAIRS]
    lines = {
        "texts.txt": ordered,
        "held_out.txt": sorted(held_out, key=_digest)[:JUDGED],
        "pairs.jsonl": [json.dumps({"text": each, "text_pair": pairs[each]}) for each in kept],
    }
    for name, each in lines.items():
        (folder / name).write_text("\n".join(each) + "\n", encoding="utf-8")
    return {name: len(each) for name, each in lines.items()}


def _sources() -> Iterator[tuple[str, list[str]]]:
    """(name of a file, the pieces of prose in it), in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    installed = [path for each in dict.fromkeys(sys.path) if (path := Path(each)).name in ("site-packages", "dist-packages")]
    files: dict[str, Path] = {}
    for root in (library, *installed):
        for path in root.rglob("*.py"):
            where = path.relative_to(root).as_posix()
            inside = root == library and where.startswith(("site-packages/", "dist-packages/"))
            if not inside and not SKIPPED.search(where):
                files.setdefault(where, path)
    for package in sorted(metadata.distributions(), key=lambda each: str(each.metadata["Name"]).lower()):
        described = [str(package.metadata.get_payload()), *_licences(package)]
        yield f"package/{package.metadata['Name']}", [p for text in described for p in _paragraphs(text)]
    for where in sorted(files, key=_digest):  # in no package's order: who stops early has read some of each
        yield where, list(_docstrings(files[where]))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return  # a template, or a test of the parser: no text to learn from
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            doc := ast.get_docstring(node)
        ):
            yield doc


def _sentences(doc: str) -> list[str]:
    """Sentences of the prose of a docstring, without its lists of parameters, examples and tables."""
    blocks = [" ".join(block.split()) for block in re.split(r"\n\s*\n", doc) if not NO_PROSE.search(block)]
    return [each for block in blocks for each in SENTENCE.split(block) if _is_prose(each)]


def _is_prose(text: str) -> bool:
    letters = sum(each.isalpha() or each == " " for each in text)
    return SHORTEST <= len(text) <= LONGEST and text[0].isalpha() and letters > 0.8 * len(text) and " " in text


def _pair(doc: str) -> tuple[str, str] | None:
    """(summary, the paragraph behind it) of a docstring that has both."""
    parts = [" ".join(each.split()) for each in re.split(r"\n\s*\n", doc, maxsplit=2)]
    if len(parts) < 2 or not all(map(_is_prose, parts[:2])) or len(parts[0]) < 30 or len(parts[1]) < 80:
        return None
    return parts[0], parts[1]


def _is_held_out(path: str) -> bool:
    return int(_digest(path)[:8], 16) % HELD_OUT == 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def main() -> None:
    """Write the files of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    print(write(arguments.out, arguments.count))


if __name__ == "__main__":
    main()
