"""A folder of packages with what a distribution requires and nothing else, linked from the environment that the tests run in."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(asked: Distribution, extras: Sequence[str]) -> list[Distribution]:
    """All that pip would install beside `asked`. Raises PackageNotFoundError for one that this environment lacks."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(asked, extra) for extra in ("", *extras)]
    while waiting:
        of, extra = waiting.pop()
        name = canonicalize_name(of.metadata["Name"])
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in of.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                each = found.setdefault(canonicalize_name(needed.name), distribution(needed.name))
                waiting += [(each, more) for more in ("", *needed.extras)]
    return list(found.values())


def link(distributions: Iterable[Distribution], folder: Path) -> None:
    """Their files in a folder, as links where the file system has them."""
    folder.mkdir()
    for each in distributions:
        assert each.files, f"{each.metadata['Name']} has no list of its files"
        for file in each.files:
            if ".." in file.parts:
                continue  # a program beside the interpreter
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            _linked(Path(str(file.locate())), place)


def _linked(file: Path, place: Path) -> None:
    try:
        place.hardlink_to(file)
    except FileNotFoundError:
        assert file.suffix == ".pyc", file  # compiled again since
    except OSError:  # another file system
        shutil.copy2(file, place)
