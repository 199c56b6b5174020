"""bertc schema recipe|fleet|serving: the JSON schema of a file, for editors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ._command import Command
from ._output import print_json
from ._types import OneOf

SECTION = "Look"
EXAMPLES = ("bertc schema recipe", "bertc schema fleet")
DRAFT = "https://json-schema.org/draft/2020-12/schema"


@click.command(cls=Command, short_help="Print the JSON schema of a file that you write, for editors", examples=EXAMPLES)
@click.argument("what", type=OneOf("kind", lambda: KINDS), metavar="recipe|fleet|serving")
def schema(what: str) -> None:
    """Print the JSON schema (draft 2020-12) of a recipe, of fleet.toml or of serving.toml, made from what reads them.

    An editor completes keys by it and marks those that are none: in VS Code with Even Better TOML, or by taplo, a first line
    `#:schema ./recipe.schema.json` in the file names it.
    """
    print_json(document(what))


def document(what: str) -> dict[str, Any]:
    """The schema of one kind of file."""
    import msgspec

    return {"$schema": DRAFT, **msgspec.json.schema(KINDS[what]())}


def _recipe() -> Any:
    from .. import recipe

    return recipe.file_type()


def _fleet() -> Any:
    from ..fleet import file_type

    return file_type.fleet_type()


def _serving() -> Any:
    from ..serve import ServingConfig

    return ServingConfig


KINDS: dict[str, Callable[[], Any]] = {"recipe": _recipe, "fleet": _fleet, "serving": _serving}
