"""`bertc cache`: what a store holds, what of it nobody needs, and whether it is what was made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core import ArtifactError, InputError, read_json
from . import travelled
from .store import Store

DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class StoredStage:
    """One finished stage. `made` is a time in seconds since 1970."""

    key: str
    slot: str
    stage: str
    bytes: int
    made: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def list_stages(store: Store) -> list[StoredStage]:
    """Everything in the store, oldest first; what cannot be read is left to `verify`."""
    found = []
    for key in store.finished():
        try:
            record = store.record(key)
        except ArtifactError:
            continue
        size = sum(entry["bytes"] for entry in record["files"].values())
        found.append(StoredStage(key, record["slot"], record["inputs"]["stage"], size, record["made"]))
    return sorted(found, key=lambda stage: stage.made)


def locked_keys(locks: Sequence[Path]) -> set[str]:
    """The keys that lock files name. InputError for a file that is none."""
    found: set[str] = set()
    for path in locks:
        try:
            document = read_json(path, dict[str, Any])
            named = {stage["key"] for stage in document["stages"].values()}
            travelled.require(all(map(travelled.is_hash, named)), "a key in it is no sha256")
            found |= named
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is not a fleet.lock.json ({error})") from error
    return found


def stages_to_remove(store: Store, keep: set[str] | None, older: float | None, most: int | None) -> dict[str, str]:
    """{key: why} of what goes: what no lock names (where locks are given), what is older than so many days, and the oldest of the
    rest until at most so many bytes are left. A stage that a lock names goes for no other reason."""
    reasons: dict[str, str] = {}
    stages, kept = list_stages(store), keep or set()
    for each in stages:
        days = (time.time() - each.made) / DAY
        if each.key in kept:
            continue
        if keep is not None:
            reasons[each.key] = "no lock names it"
        elif older is not None and days > older:
            reasons[each.key] = f"{days:.0f} days old"
    left = sum(each.bytes for each in stages if each.key not in reasons)
    for each in stages:
        if most is None or left <= most:
            break
        if each.key not in reasons and each.key not in kept:
            reasons[each.key] = "the oldest, over the size limit"
            left -= each.bytes
    return reasons


def remove(store: Store, keys: Sequence[str]) -> int:
    """Remove finished stages that nobody is making; returns how many went. Half-made folders of dead processes go too."""
    store.sweep()
    going = [key for key in keys if travelled.is_hash(key) and store.has(key) and not store.is_being_made(key)]
    for key in going:
        store.remove(key)
    return len(going)


def remove_strays(store: Store) -> None:
    """Remove what lies among the stages and is none."""
    for name in store.strays():
        store.remove_stray(name)


def damaged_stages(store: Store) -> Iterator[tuple[str, str, str]]:
    """(key, slot or '?', what is wrong) of every stage that is not what was made; every file is hashed. What lies among the
    stages and is none comes by its path in place of a key."""
    for name in store.strays():
        yield travelled.shown(name), "?", "is a link, or is not named by a key: no stage of bertc"
    for key in store.finished():
        if why := store.damage(key, anew=True):
            try:
                slot = store.record(key)["slot"]
            except ArtifactError:
                slot = "?"
            yield key, slot, why
