"""Writes commands.md, the reference of every command, from click's own help: `python docs/generate.py`.

Each command prints its help into a formatter that writes Markdown, so whatever a command puts into its help (option groups, an
epilog, examples) is on the page, and nothing depends on the width of a terminal.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from bertc.cli import cli

Described = tuple[click.Command, click.Context]
BAR = "&#124;"
PAGE = Path(__file__).with_name("commands.md")
HEAD = """# Commands

<!-- Written by `python docs/generate.py` from the commands themselves. Change the help text of a command, not this page. -->

`bertc COMMAND --help` prints the same. Options that are fields of a recipe have the recipe's names.
A page that explains: [sources](sources.md), [targets](targets.md), [precision](precision.md), [verification](verification.md),
[fleets](fleet.md), [traffic and speed](traffic.md), [reports](reports.md).

`--json` prints one JSON document on stdout; everything meant for a person goes to stderr. Who reads them does not change the exit
code: `| head -1` is no failure.

The folder of what a command writes is made where it is not there, whichever option names it. What cannot be written there is said
before the work (exit 2). An option that takes one value is given once; options that contradict each other are refused.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | the check or the build failed |
| 2 | bad input or usage |
| 3 | something that this machine lacks |
| 4 | a bug in bertc |
| 130 | interrupted |

A build that fails or is killed leaves the old artifact, or none.
"""


class Markdown(click.HelpFormatter):
    """A help formatter whose text is Markdown."""

    def __init__(self, help_names: Sequence[str]) -> None:
        super().__init__(width=10_000)  # click shortens the summary of a sub-command to the width
        # Every command has the help option: left out. Under the names of the first context that asked for it, which click keeps:
        # a command that ran by itself before has `--help` alone.
        self.help_rows = tuple(f"| {code(names)} " for names in (", ".join(help_names), *help_names))

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        self.write(f"```text\n{prog} {args}".rstrip() + "\n```\n\n")

    def write_heading(self, heading: str) -> None:
        self.write(f"{heading}:\n\n")

    def write_paragraph(self) -> None:
        """Every block ends with an empty line already."""

    def write_text(self, text: str) -> None:
        for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
            if not paragraph.strip():
                continue
            mark, _, verbatim = paragraph.partition("\n")
            literal = mark.strip() == "\b"
            body = f"```text\n{_dedented(verbatim)}\n```" if literal else escaped(" ".join(paragraph.split()))
            self.write(f"{body}\n\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        self.write("| name | meaning |\n|---|---|\n")
        for name, meaning in rows:
            self.write(f"| {code(name)} | {escaped(' '.join(meaning.split())).replace('|', BAR)} |\n")
        self.write("\n")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """A heading and what belongs to it; neither where nothing but --help would stand there."""
        before, self.buffer = self.buffer, []
        yield
        inside, self.buffer = self.buffer, before
        kept = [line for line in inside if not line.startswith(self.help_rows)]
        if any(line.startswith(("| `", "| <code>")) for line in kept) or not any(line.startswith("| name") for line in kept):
            self.write_heading(name)
            self.buffer += kept


def _dedented(text: str) -> str:
    return textwrap.dedent(text).rstrip()


def code(text: str) -> str:
    """A code span inside a table. GitHub and mkdocs agree on a bar inside one only where it is HTML."""
    bars = html.escape(text, quote=False).replace("|", BAR)
    return f"<code>{bars}</code>" if "|" in text else f"`{text}`"


def escaped(text: str) -> str:
    """Plain text as Markdown, what stands between backticks left alone."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]\\])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[Described]:
    """The command and all below it that are not hidden, each with its context."""
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    yield command, context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            if found is not None and not found.hidden:
                yield from commands(found, below, context)


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for command, context in commands(cli, "bertc"):
        formatter = Markdown(context.help_option_names)
        command.format_help(context, formatter)
        depth = 2 + max(0, context.command_path.count(" ") - 1)
        parts.append(f"{'#' * depth} {context.command_path}\n\n{formatter.getvalue().strip()}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
