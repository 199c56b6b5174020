"""Commands: one file each, found by its name; the file has a click command (or group) of the same name. `_` hides a helper.

SECTION in the file is the heading that the command stands under in `bertc --help`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import cast

import click

from ..core import module_names
from ._command import Group

SECTIONS = ("Build", "Check", "Serve", "Look", "Fleet")  # in this order; a heading of a command's own comes behind them
COMPLETION = (
    ("~/.bashrc", 'eval "$(_BERTC_COMPLETE=bash_source bertc)"'),
    ("~/.zshrc", 'eval "$(_BERTC_COMPLETE=zsh_source bertc)"'),
    ("config.fish", "_BERTC_COMPLETE=fish_source bertc | source"),
)


class Commands(Group):
    """The commands of this folder, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return get(cmd_name) if cmd_name in names() else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One heading a section, with all summaries in one column."""
        sections = {name: section_of(name) for name in names()}
        width = max(map(len, sections)) + 2
        for section in dict.fromkeys([*SECTIONS, *sections.values()]):
            rows = [(name, get(name).short_help or "") for name in sections if sections[name] == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_spacing=width - max(len(name) for name, _ in rows))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Completion of commands, options and names"):
            formatter.write_dl(COMPLETION)


def names() -> tuple[str, ...]:
    """All commands, by file name: plan_serving.py is `plan-serving`."""
    return tuple(name.replace("_", "-") for name in module_names(Path(__file__).parent))


def get(name: str) -> click.Command:
    """The command of that name."""
    return cast(click.Command, getattr(_module(name), name.replace("-", "_")))


def section_of(name: str) -> str:
    """The heading that a command stands under."""
    return str(_module(name).SECTION)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name.replace('-', '_')}", __package__)
