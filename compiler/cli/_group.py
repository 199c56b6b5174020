"""Commands: one file each, found by its name; the file has a click command (or group) of the same name. `_` hides a helper."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

import click

from ..core import did_you_mean, module_names


class Commands(click.Group):
    """The commands of this folder, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(names())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return get(cmd_name) if cmd_name in names() else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, and a typing slip is told the nearest command."""
        if args and not args[0].startswith("-") and args[0] not in names():
            ctx.fail(f"no such command {args[0]!r}{did_you_mean(args[0], names())}")
        return super().resolve_command(ctx, args)


def names() -> tuple[str, ...]:
    """All commands, by file name."""
    return module_names(Path(__file__).parent)


def get(name: str) -> click.Command:
    """The command of that name."""
    return cast(click.Command, getattr(importlib.import_module(f".{name}", __package__), name))
