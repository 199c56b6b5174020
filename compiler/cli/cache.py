"""bertc cache: the store of finished stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import counted
from . import _shared as shared
from ._command import Group
from ._output import console, print_json, print_result
from ._types import INPUT, Number

if TYPE_CHECKING:
    from ..fleet import Store

SECTION = "Fleet"
STORE = click.argument(
    "store", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="[STORE]", default=".bertc-store"
)


@click.group(
    cls=Group,
    short_help="List, clean and check a store of finished stages",
    examples=("bertc cache ls", "bertc cache gc .bertc-store --lock fleet.lock.json --dry-run"),
)
def cache() -> None:
    """List, clean and check a store of finished stages (`store` in fleet.toml)."""


def store_and_json(command: Callable[..., Any]) -> Callable[..., Any]:
    return STORE(shared.JSON(command))


def open_store(path: Path) -> Store:
    from ..core import InputError
    from ..fleet import Store

    if not (path / "objects").is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is not a store of bertc: it has no folder `objects`; name the `store` of fleet.toml")
    return Store(path.resolve())


@cache.command(
    short_help="List finished stages with size and age",
    examples=("bertc cache ls", "bertc cache ls .bertc-store --json"),
)
@store_and_json
def ls(store: Path, as_json: bool) -> None:
    """List finished stages: stage, what it belongs to, size, age."""
    from ..fleet import store_cleaning as cleaning
    from ..report import Table

    held = cleaning.list_stages(open_store(store))
    rows = Table("key", "stage", "what", "size", "age", drop=("key",))
    for each in held:
        age = (time.time() - each.made) / 3600
        size = f"{each.bytes / 2**20:.1f} MiB"
        rows.add(each.key[:12], each.stage, each.slot, size, f"{age:.1f} h" if age < 48 else f"{age / 24:.0f} d")
    console().print(rows)
    total = sum(each.bytes for each in held) / 2**20
    print_result(f"{counted(len(held), 'stage')}, {total:.0f} MiB")
    if as_json:
        print_json({"store": str(store), "stages": [each.to_json() for each in held]})


@cache.command(
    short_help="Remove finished stages that nobody needs",
    examples=("bertc cache gc --lock fleet.lock.json --dry-run", "bertc cache gc --older 30 --size 20GB"),
)
@store_and_json
@click.option(
    "--lock",
    "locks",
    multiple=True,
    type=INPUT,
    metavar="FILE",
    help="Keep only what this fleet.lock.json names; repeatable.",
)
@click.option("--older", type=Number(min=0), metavar="DAYS", help="Remove what is older.")
@click.option("--size", metavar="SIZE", help="Remove the oldest until so much is left, as in 20GB.")
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
def gc(store: Path, locks: Sequence[Path], older: float | None, size: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove finished stages that nobody needs. Artifacts stay: they are copies."""
    from ..core import InputError
    from ..fleet import config
    from ..fleet import store_cleaning as cleaning

    if not locks and older is None and size is None:
        raise InputError("nothing to remove; give --lock FILE (removes what it does not name), --older DAYS or --size SIZE")
    kept = open_store(store)
    keep = cleaning.locked_keys(locks) if locks else None
    gone = cleaning.stages_to_remove(kept, keep, older, config.parse_bytes(size) if size else None)
    by_key = {each.key: each for each in cleaning.list_stages(kept)}
    for key, why in gone.items():
        print_result(f"{key[:12]} {by_key[key].slot} ({by_key[key].bytes / 2**20:.1f} MiB): {why}")
    count = len(gone) if dry_run else cleaning.remove(kept, list(gone))
    freed = sum(by_key[key].bytes for key in gone)
    print_result(f"{count} of {counted(len(by_key), 'stage')}, {freed / 2**20:.0f} MiB {'would go' if dry_run else 'removed'}")
    if as_json:
        print_json({"dry_run": dry_run, "removed": gone, "bytes": freed})


@cache.command(
    short_help="Hash every file of every finished stage",
    examples=("bertc cache verify", "bertc cache verify .bertc-store --repair"),
)
@store_and_json
@click.option("--repair", is_flag=True, help="Remove what is damaged, so that it is made again.")
def verify(store: Path, repair: bool, as_json: bool) -> None:
    """Hash every file of every finished stage. Exit 1 when one has changed."""
    from ..core import CheckFailed
    from ..fleet import store_cleaning as cleaning

    kept = open_store(store)
    bad = list(cleaning.damaged_stages(kept))
    for key, slot, why in bad:
        print_result(f"{key[:12]} {slot}: {why}{'; removed' if repair else ''}")
    if repair:
        cleaning.remove(kept, [key for key, _, _ in bad])
        cleaning.remove_strays(kept)
    print_result(f"{counted(len(kept.finished()), 'stage')}, {len(bad)} damaged")
    if as_json:
        print_json({"damaged": [{"key": k, "slot": s, "why": w} for k, s, w in bad], "repaired": repair})
    if bad and not repair:
        raise click.exceptions.Exit(CheckFailed.exit_code)
