"""The profiles of a recipe file replaced, and nothing else: order, spacing and comments outside their list stay."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from ..core import RecipeError, counted, make_parent, output_errors

TABLE = re.compile(r"^[ \t]*\[", re.MULTILINE)


def set_profiles(path: Path, profiles: Sequence[str], source: str | None = None) -> str:
    """Write `profiles = [...]` into a recipe, or a new recipe for `source` where there is none. Returns what was done.

    The file is edited as text, and the result is read before it is written: it must say what the file said, with other profiles.
    Raises RecipeError for a file that is no recipe, that cannot be edited so, or that does not exist while `source` is None.
    """
    from .. import recipe

    lines = _lines(profiles)
    if not path.exists():
        if source is None:
            raise RecipeError(f"no recipe at {path}; give an existing one, or --source MODEL to write a new one")
        _write(path, f"source = {json.dumps(source)}\n{lines}")
        return f"{path}: a new recipe with {counted(len(profiles), 'profile')}"
    before = recipe.read(path).profiles  # says what is wrong with a file that is no recipe
    text = path.read_text("utf-8")
    edited = _edited(text, lines)
    if edited is None:
        raise RecipeError(f"{path}: its profiles cannot be replaced automatically; write this in their place:\n{lines}")
    wanted = tomllib.loads(text) | {"profiles": list(profiles)}
    assert tomllib.loads(edited) == wanted, "_edited has just compared them"
    _write(path, edited)
    return f"{path}: {counted(len(profiles), 'profile')}, before: {len(before) or 'none'}"


def _lines(profiles: Sequence[str]) -> str:
    if len(profiles) == 1:
        return f"profiles = [{json.dumps(profiles[0])}]\n"
    listed = "".join(f"    {json.dumps(each)},\n" for each in profiles)
    return f"profiles = [\n{listed}]\n"


def _edited(text: str, lines: str) -> str | None:
    """The text with these lines for its profiles; None where no candidate says the same but for them.

    Each closing bracket may be the one that ends the list (others lie in strings or comments), so each is tried.
    """
    wanted = tomllib.loads(text) | {"profiles": tomllib.loads(lines)["profiles"]}
    for candidate in _candidates(text, lines):
        try:
            if tomllib.loads(candidate) == wanted:
                return candidate
        except tomllib.TOMLDecodeError:
            continue  # that bracket was not the one
    return None


def _candidates(text: str, lines: str) -> list[str]:
    found = re.search(r"^profiles[ \t]*=[ \t]*\[", text, re.MULTILINE)
    if found is None:
        table = TABLE.search(text)
        at = table.start() if table else len(text)
        gap = "\n" if text[:at] and not text[:at].endswith("\n") else ""
        return [text[:at] + gap + lines + text[at:]]
    ends = [match.end() for match in re.finditer(r"\]", text[found.end() :])]
    return [text[: found.start()] + lines.rstrip("\n") + text[found.end() + end :] for end in ends]


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a link stays a link."""
    path = path.resolve()
    make_parent(path, "--recipe")
    aside = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with output_errors(path, "--recipe"):
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
