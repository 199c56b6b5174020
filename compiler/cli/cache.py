"""bertc cache: the store of finished stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _shared as shared

if TYPE_CHECKING:
    from ..fleet import Store

STORE = click.argument(
    "store", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="[STORE]", default=".bertc-store"
)


@click.group()
def cache() -> None:
    """List, clean and check a store of finished stages (`store` in fleet.toml)."""


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    return STORE(shared.JSON(command))


def opened(path: Path) -> Store:
    from ..core import InputError
    from ..fleet import Store

    if not (path / "objects").is_dir() and any(path.iterdir()):
        raise InputError(f"{path} is no store of bertc: it holds no folder `objects`")
    return Store(path.resolve())


@cache.command()
@common
def ls(store: Path, as_json: bool) -> None:
    """What is there: stage, where it belongs, size, age."""
    from ..fleet import store_cleaning as cleaning
    from ..report import Table

    held = cleaning.list_stages(opened(store))
    rows = Table("key", "stage", "what", "size", "age", drop=("key",))
    for each in held:
        age = (time.time() - each.made) / 3600
        size = f"{each.bytes / 2**20:.1f} MiB"
        rows.add(each.key[:12], each.stage, each.slot, size, f"{age:.1f} h" if age < 48 else f"{age / 24:.0f} d")
    console = shared.console()
    console.print(rows)
    total = sum(each.bytes for each in held) / 2**20
    console.print(f"{len(held)} stages, {total:.0f} MiB (artifacts link to the same files)", highlight=False)
    if as_json:
        shared.print_json({"store": str(store), "stages": [each.to_json() for each in held]})


@cache.command()
@common
@click.option(
    "--lock",
    "locks",
    multiple=True,
    type=click.Path(path_type=Path),
    help="keep only what this fleet.lock.json names; repeatable",
)
@click.option("--older", type=float, metavar="DAYS", help="remove what is older")
@click.option("--size", help="remove the oldest until so much is left, as in 20GB")
@click.option("--dry-run", is_flag=True, help="only say what would be removed")
def gc(store: Path, locks: Sequence[Path], older: float | None, size: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove finished stages that nobody needs. Artifacts that were built stay: they have their own names for the files."""
    from ..core import InputError
    from ..fleet import config
    from ..fleet import store_cleaning as cleaning

    if not locks and older is None and size is None:
        raise InputError("say what may go: --lock FILE (what it does not name), --older DAYS, or --size SIZE")
    kept = opened(store)
    keep = cleaning.locked_keys(locks) if locks else None
    gone = cleaning.stages_to_remove(kept, keep, older, config.parse_bytes(size) if size else None)
    console = shared.console()
    by_key = {each.key: each for each in cleaning.list_stages(kept)}
    for key, why in gone.items():
        console.print(
            f"{key[:12]} {by_key[key].slot} ({by_key[key].bytes / 2**20:.1f} MiB): {why}", highlight=False, markup=False
        )
    count = len(gone) if dry_run else cleaning.remove(kept, list(gone))
    freed = sum(by_key[key].bytes for key in gone)
    console.print(
        f"{count} of {len(by_key)} stages, {freed / 2**20:.0f} MiB {'would go' if dry_run else 'removed'}", highlight=False
    )
    if as_json:
        shared.print_json({"dry_run": dry_run, "removed": gone, "bytes": freed})


@cache.command()
@common
@click.option("--repair", is_flag=True, help="remove what is damaged, so that it is made again")
def verify(store: Path, repair: bool, as_json: bool) -> None:
    """Hash every file of every finished stage. Exit 1 when one is not what was made."""
    from ..core import CheckFailed
    from ..fleet import store_cleaning as cleaning

    kept = opened(store)
    console = shared.console()
    bad = list(cleaning.damaged_stages(kept))
    for key, slot, why in bad:
        console.print(f"{key[:12]} {slot}: {why}{'; removed' if repair else ''}", highlight=False, markup=False)
    if repair:
        cleaning.remove(kept, [key for key, _, _ in bad])
    console.print(f"{len(kept.finished())} stages, {len(bad)} damaged", highlight=False)
    if as_json:
        shared.print_json({"damaged": [{"key": k, "slot": s, "why": w} for k, s, w in bad], "repaired": repair})
    if bad and not repair:
        raise click.exceptions.Exit(CheckFailed.exit_code)
