"""What is installed with hashes is what constraints.txt says, all of it; actions of the examples are named by commit."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENTRY = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n {4}--hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def entries() -> dict[str, str]:
    """The locked versions by name; every line of the files belongs to an entry with hashes."""
    found = {}
    for file in ("first.txt", "rest.txt"):
        text = (ROOT / "locked" / file).read_text("utf-8")
        left = ENTRY.sub("", text)
        assert not [line for line in left.splitlines() if line and not line.startswith("#")], file
        found |= {name(match[1]): match[2] for match in ENTRY.finditer(text)}
    return found


def test_the_locked_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    locked = entries()
    assert len(locked) > 100
    public = {each: version.partition("+")[0] for each, version in locked.items()}  # torch's build for the CPU is 2.13.0+cpu
    assert {each: version for each, version in public.items() if pinned.get(each, version) != version} == {}, "make lock"


def test_what_the_project_asks_for_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["test"]]
    asked += [line for line in (ROOT / "locked" / "packages.in").read_text("utf-8").splitlines() if not line.startswith("#")]
    names = {name(re.split(r"[\[<>=~!; ]", text)[0]) for text in asked}
    assert names - entries().keys() == set(), "make lock"


def test_actions_are_named_by_commit() -> None:
    used = re.findall(r"uses: (\S+)", (ROOT / "examples" / "ci" / "github.yml").read_text("utf-8"))
    assert len(used) >= 8
    assert [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", each)] == []
