"""bertc fleet: many models for many GPUs, each stage done once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import _shared as shared

if TYPE_CHECKING:
    from ..fleet import Fleet, Outcome, Pool, Step, Store
    from ..report import Table

FILE = click.argument("file", type=click.Path(path_type=Path), metavar="[FLEET.TOML]", default="fleet.toml")
ENTRIES = click.option("--entry", "entries", multiple=True, help="only this entry (MODEL/PLAN) or model; repeatable")
STORE = click.option("--store", type=click.Path(path_type=Path), help="the folder of finished stages, in place of the file's")


@click.group()
def fleet() -> None:
    """Build many models for many GPUs: plan, build, status, verify."""


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (shared.JSON, STORE, ENTRIES, FILE):
        command = option(command)
    return command


def opened(file: Path, entries: Sequence[str], store: Path | None) -> tuple[Fleet, Fleet, Store]:
    """(the selected part of a fleet, the whole of it, its store)."""
    from ..fleet import Store, config

    whole = config.read(file)
    return config.select(whole, entries), whole, Store((store or whole.store).resolve())


@fleet.command()
@common
@click.option("--ci", type=click.Choice(["github", "gitlab"]), help="print the jobs of a CI pipeline as JSON")
def plan(file: Path, entries: Sequence[str], store: Path | None, ci: str | None, as_json: bool) -> None:
    """Say what would be built, what is cached, and why each stale one is stale. Builds nothing."""
    from ..fleet import ci as pipelines
    from ..fleet import plan as plans
    from ..fleet import status

    chosen, _, kept = opened(file, entries, store)
    if ci:
        shared.print_json(pipelines.jobs(chosen, ci))
        return
    steps = plans.plan_fleet(chosen, kept)
    console = shared.console()
    console.print(plan_table(steps))
    for line in (*status.shared_plan_notes(steps), *status.timed_form_notes(steps), plan_summary(steps)):
        console.print(line, highlight=False, markup=False)
    if as_json:
        shared.print_json(status.status_document(chosen, kept, steps))


def plan_table(steps: Sequence[Step]) -> Table:
    from ..report import Table

    rows = Table("what", "runs on", "state", "last time", "why", wrap=("runs on", "why"), drop=("last time",))
    for step in steps:
        entry = step.task.entry
        gpus = ", ".join(entry.gpus) or entry.spec.name if entry else ""
        seconds = f"{step.seconds:.1f} s" if step.seconds is not None else "-"
        why = list(step.reasons[:3]) + ([f"and {len(step.reasons) - 3} more"] if len(step.reasons) > 3 else [])
        rows.add(step.task.slot, gpus, step.state, seconds, "; ".join(why))
    return rows


def plan_summary(steps: Sequence[Step]) -> str:
    todo = [step for step in steps if step.todo]
    known = [step.seconds for step in todo if step.seconds is not None]
    took = f", {sum(known):.0f} s of work last time" if known else ""
    away = [step for step in steps if step.state == "elsewhere"]
    there = f", {len(away)} for other hosts" if away else ""
    return f"{len(steps) - len(todo) - len(away)} of {len(steps)} stages are cached, {len(todo)} to do{took}{there}"


@fleet.command()
@common
@click.option("--locked", is_flag=True, help="refuse to build anything but what fleet.lock.json says")
@click.option("--fail-fast", is_flag=True, help="stop at the first failure")
@click.option(
    "--until", type=click.Choice(["export", "fuse", "quantise", "build"]), default="build", help="stop after this stage"
)
@click.option("--jobs", type=click.IntRange(min=1), help="cores to use, in place of all")
@click.option("--memory", help="memory to use, as in 12GB, in place of what is free")
@click.option("--ray", "address", metavar="ADDRESS", help="run the tasks on a Ray cluster; it must see the store and the sources")
def build(
    file: Path,
    entries: Sequence[str],
    store: Path | None,
    locked: bool,
    fail_fast: bool,
    until: str,
    jobs: int | None,
    memory: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Build what is not cached, and put every artifact in its place. The exit code is that of the worst failure."""
    from ..fleet import config, lock, run, status
    from ..fleet import plan as plans
    from ..fleet import progress_table as board

    chosen, whole, kept = opened(file, entries, store)
    kept.sweep()
    if locked:
        lock.require_same(chosen, kept)
    console = shared.console()
    pool = pool_of(address, jobs, config.parse_bytes(memory) if memory else None)
    shown = board.ProgressTable(console, [task for task in plans.tasks(chosen) if until == "build" or not task.entry])
    try:
        with shown.show():
            outcomes = run.run_fleet(chosen, kept, pool, shown.watch, until=until, fail_fast=fail_fast)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("what was finished is in the store; the next build goes on from there") from stop
    finally:
        pool.stop()
    if locked:
        lock.require_contents(chosen, kept, outcomes)
    placed = place(chosen, kept, outcomes)
    if not locked and until == "build":
        lock.write(chosen, kept, outcomes, whole)
    code = run.fleet_exit_code(outcomes) or asked_elsewhere(outcomes, entries)
    document = built_document(chosen, kept, outcomes, code)
    for line in (*status.precision_notes(document["entries"]), build_summary(outcomes, placed)):
        console.print(line, highlight=False, markup=False)
    if as_json:
        shared.print_json(document)
    raise click.exceptions.Exit(code)


def built_document(chosen: Fleet, kept: Store, outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    """The fleet's status, and what this build made of it."""
    from ..fleet import status

    made = [outcome.task.slot for outcome in outcomes if outcome.state == "made"]
    return {**status.status_document(chosen, kept), "made": made, "exit_code": code}


def pool_of(address: str | None, jobs: int | None, memory: int | None) -> Pool:
    if address is not None:
        from ..fleet import RayPool

        return RayPool(address)
    from ..fleet import LocalPool

    return LocalPool(jobs, memory)


def place(chosen: Fleet, kept: Store, outcomes: Sequence[Outcome]) -> int:
    """Artifacts into their places; how many were not there yet."""
    from ..fleet import outputs

    built = [o for o in outcomes if o.task.entry and o.key and o.digest]
    return sum(outputs.place(kept, str(o.key), chosen.out / o.task.slot) for o in built)


def asked_elsewhere(outcomes: Sequence[Outcome], entries: Sequence[str]) -> int:
    """Entries for other hosts are no failure, unless one of them was asked for by name."""
    return 3 if any(o.state == "elsewhere" and o.task.slot in entries for o in outcomes) else 0


def build_summary(outcomes: Sequence[Outcome], placed: int) -> str:
    lines = [f"{o.task.slot} {o.state}: {o.reason}" for o in outcomes if o.state in ("failed", "skipped", "elsewhere")]
    made = [o for o in outcomes if o.state == "made"]
    cached = sum(o.state == "cached" for o in outcomes)
    ends = f"{len(made)} stages made ({sum(o.seconds for o in made):.1f} s of work), {cached} cached, {placed} artifacts placed"
    return "\n".join([*lines, ends])


@fleet.command(name="status")
@common
def show_status(file: Path, entries: Sequence[str], store: Path | None, as_json: bool) -> None:
    """What is built, cached, stale or failed, with sizes, kernels and accuracy."""
    from ..fleet import status
    from ..report import Table

    chosen, _, kept = opened(file, entries, store)
    found = status.status_document(chosen, kept)
    columns = ("entry", "GPUs", "state", "size", "kernels", "cosine (min)", "rel. error", "verified", "why")
    rows = Table(*columns, wrap=("GPUs", "verified", "why"))
    for entry in found["entries"]:
        rows.add(entry["name"], ", ".join(entry["gpus"]), entry["state"], *entry_cells(entry), "; ".join(entry["reasons"][:3]))
    console = shared.console()
    console.print(rows)
    for line in status.precision_notes(found["entries"]):
        console.print(line, highlight=False, markup=False)
    console.print(", ".join(f"{count} {state}" for state, count in found["counts"].items()), highlight=False)
    if as_json:
        shared.print_json(found)


def entry_cells(entry: dict[str, Any]) -> tuple[str, ...]:
    if entry["path"] is None:
        return ("-",) * 5
    close = entry["accuracy"]
    kernels = "-" if entry["kernels"] is None else str(entry["kernels"])
    size = f"{entry['bytes'] / 2**20:.1f} MiB"
    if close is None:
        return size, kernels, "-", "-", "no (--no-verify)"
    how = "engine" if close["engine_executed"] else f"graph (engine NOT RUN: {close['engine_reason']})"
    return size, kernels, f"{close['cosine_min']:.7f}", f"{close['relative']:.1e}", how


@fleet.command()
@common
@click.option("--require-engine", is_flag=True, help="exit 3 where an engine itself cannot run")
def verify(file: Path, entries: Sequence[str], store: Path | None, require_engine: bool, as_json: bool) -> None:
    """Verify every artifact in its place: hashes, the lock, and its goldens. Exit 1 when one is not what it should be."""
    from ..fleet import entry_check as checking
    from ..fleet import worst_exit_code

    chosen, _, _ = opened(file, entries, store)
    console = shared.console()
    checks = []
    for check in checking.verify_fleet(chosen, require_engine):
        console.print(f"{check.name}: {check.said}", highlight=False, markup=False)
        checks.append(check)
    if as_json:
        shared.print_json({"entries": [check.to_json() for check in checks], "passed": all(c.exit_code == 0 for c in checks)})
    raise click.exceptions.Exit(worst_exit_code(check.exit_code for check in checks))
