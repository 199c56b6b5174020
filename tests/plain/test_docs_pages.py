"""README.md and docs/: short enough, complete, every link alive, every table that repeats the code the same as the code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from bertc import targets
from bertc.core import gpu_models
from docs import generate, hooks

ROOT = Path(__file__).parent.parent.parent
DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [ROOT / "README.md", *DOCS, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
MOST_LINES = 160


def parsed(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """Of headings, as GitHub and mkdocs both write them where a heading is plain words."""
    tokens = parsed(page)
    titles = [b.content for a, b in itertools.pairwise(tokens) if a.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows(page: Path, first: str) -> list[list[str]]:
    """The cells of the table whose first heading is `first`, backticks taken off."""
    tables: list[list[list[str]]] = []
    for token, inside in itertools.pairwise(parsed(page)):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            tables[-1][-1].append(inside.content.strip("`"))
    return next(table[1:] for table in tables if table[0][0] == first)


def built_for(gpu: gpu_models.Gpu) -> tuple[str, str]:
    """(target as a reader would write it, where it is built)."""
    spec = targets.target_for(gpu)
    bare = spec.sms == targets.get(spec.name).DEFAULT_SMS
    return spec.name if bare else str(spec), "that GPU" if spec.name == "tensorrt" else "any machine"


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MOST_LINES


def test_every_page_is_in_the_navigation() -> None:
    named = set(_leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert {page.relative_to(ROOT).as_posix() for page in DOCS} <= named
    assert all((ROOT / name).is_file() for name in named)


def _leaves(nav: list[dict[str, object]] | object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _leaves(item)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_points_to_a_file_and_a_heading(page: Path) -> None:
    """A folder is no target: the site cannot show one."""
    for link in hooks.links(page.read_text("utf-8")):
        path, anchor = hooks.target(page, link), link.partition("#")[2]
        assert path is None or path.is_file(), link
        assert path is None or not anchor or anchor in anchors(path), link


def test_the_reference_is_what_the_commands_say() -> None:
    assert generate.PAGE.read_text("utf-8") == generate.text(), "run: python docs/generate.py"


def test_the_reference_renders_whatever_a_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples, an epilog, a choice (whose bars would end a cell), hidden things; on a terminal of any width."""

    @click.command(epilog="\b\nExamples:\n  bertc go --fast\n  bertc go --slow")
    @click.option("--how", type=click.Choice(["fast", "slow"]), default="slow", show_default=True, help="as in *this* <word>")
    @click.option("--unsaid", hidden=True)
    def go(how: str, unsaid: str) -> None:
        """Goes.

        A second paragraph, long enough that a terminal would break it: one two three four five six seven eight nine ten eleven.
        """

    pages = []
    for width in ("40", "200"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setattr(generate, "cli", click.Group("bertc", commands=[go]))
        pages.append(generate.text())
    assert pages[0] == pages[1]
    section = pages[0].partition("## bertc go\n")[2]
    assert "```text\nExamples:\n  bertc go --fast\n  bertc go --slow\n```" in section
    assert "<code>--how [fast&#124;slow]</code>" in section
    assert r"\*this\* &lt;word>" in section
    assert "eight nine ten eleven." in section
    assert "unsaid" not in section and "--help" not in section


def test_the_readme_has_every_gpu_model_with_its_sm_and_target() -> None:
    table = rows(ROOT / "README.md", "SM")
    shown = {name: (sm, target, place) for sm, names, target, place in table for name in names.split(", ")}
    assert shown == {gpu.name: (gpu.sm, *built_for(gpu)) for gpu in gpu_models.TABLE}


def test_the_page_of_targets_has_every_gpu_model() -> None:
    shown = rows(ROOT / "docs" / "targets.md", "GPU model")
    assert shown == [[gpu.name, gpu.sm, str(gpu.memory_gb), *built_for(gpu)] for gpu in gpu_models.TABLE]


def test_the_page_of_targets_has_every_target() -> None:
    shown = [row[0].partition("[")[0] for row in rows(ROOT / "docs" / "targets.md", "target")]
    assert sorted(shown) == sorted(targets.names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_paths_that_a_page_names_exist(page: Path) -> None:
    """`compiler/fusions/rules` and the like; one with <name> in it is a file to be written."""
    for named in re.findall(r"`((?:compiler|plugins|recipes|tests|benchmarks)/[\w./-]+)`", page.read_text("utf-8")):
        assert (ROOT / named).exists(), named
