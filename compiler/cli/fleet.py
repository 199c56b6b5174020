"""bertc fleet: many models for many GPUs, each stage done once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, counted
from . import _shared as shared
from ._command import Group
from ._output import console, print_error, print_json, print_result, progress_console
from ._types import FILE, INPUT, Entry

if TYPE_CHECKING:
    from ..fleet import Fleet, Outcome, Pool, Step, Store
    from ..report import Table

LOG = logging.getLogger("bertc")
SECTION = "Fleet"
FLEET_TOML = click.argument("file", type=INPUT, metavar="[FLEET.TOML]", default="fleet.toml")
ENTRIES = click.option(
    "--entry", "entries", multiple=True, type=Entry(), metavar="MODEL[/PLAN]", help="Only this entry or model; repeatable."
)
STORE = click.option("--store", type=FILE, metavar="DIR", help="The folder of finished stages, in place of the file's.")


@click.group(
    cls=Group,
    short_help="Build many models for many GPUs, each stage once",
    examples=("bertc fleet plan fleet.toml", "bertc fleet build fleet.toml --jobs 8"),
)
def fleet() -> None:
    """Build many models for many GPUs: plan, build, status, verify."""


VERIFY_BYTES = click.option(
    "--verify-bytes", is_flag=True, help="Read every file; else those alone whose size or time moved since they were last read."
)


def fleet_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (shared.JSON, STORE, ENTRIES, FLEET_TOML):
        command = option(command)
    return command


def open_fleet(file: Path, entries: Sequence[str], store: Path | None, verify_bytes: bool = False) -> tuple[Fleet, Fleet, Store]:
    """(the selected part of a fleet, the whole of it, its store)."""
    from ..fleet import Store, config

    whole = config.read(file)
    return config.select(whole, entries), whole, Store((store or whole.store).resolve(), verify_bytes)


@fleet.command(
    short_help="Show what would be built, and why",
    examples=("bertc fleet plan", "bertc fleet plan fleet.toml --ci github"),
)
@fleet_arguments
@click.option("--ci", type=click.Choice(["github", "gitlab"]), help="Print the jobs of a CI pipeline as JSON.")
def plan(file: Path, entries: Sequence[str], store: Path | None, ci: str | None, as_json: bool) -> None:
    """Show what would be built, what is cached, and why a stage is stale. Builds nothing.

    Exits as the worst of the sources that cannot be read: 2 for one that is not there.
    """
    from ..fleet import ci as pipelines
    from ..fleet import plan as plans
    from ..fleet import status

    chosen, _, kept = open_fleet(file, entries, store)
    if ci:
        print_json(pipelines.jobs(chosen, ci))
        return
    steps = plans.plan_fleet(chosen, kept)
    console().print(plan_table(steps))
    for line in (*status.shared_plan_notes(steps), *status.timed_form_notes(steps), plan_summary(steps)):
        print_result(line)
    if as_json:
        print_json(status.status_document(chosen, kept, steps))
    fail_unreadable(steps, file)


def fail_unreadable(steps: Sequence[Step], file: Path) -> None:
    """Exit as the worst of the sources that cannot be read, each named with what waits for it; the table may be long."""
    from ..fleet import worst_exit_code

    unread = [step for step in steps if step.exit_code]
    for step in unread:
        slots = {step.task.slot}
        for each in steps:  # those that a stage needs stand before it
            slots |= {each.task.slot} if slots & set(each.task.needs.values()) else set()
        entries = [each.task.slot for each in steps if each.task.entry and each.task.slot in slots]
        print_error(f"error: {file}: {step.task.slot}: {'; '.join(step.reasons)} (entries: {', '.join(entries) or 'none'})")
    raise click.exceptions.Exit(worst_exit_code(step.exit_code for step in unread))


def plan_table(steps: Sequence[Step]) -> Table:
    from ..fleet import state_words
    from ..report import Table

    rows = Table("what", "runs on", "state", "last time", "why", wrap=("runs on", "why"), drop=("last time",))
    for step in steps:
        entry = step.task.entry
        gpus = ", ".join(entry.gpus) or entry.spec.name if entry else ""
        seconds = f"{step.seconds:.1f} s" if step.seconds is not None else "-"
        why = list(step.reasons[:3]) + ([f"and {len(step.reasons) - 3} more"] if len(step.reasons) > 3 else [])
        rows.add(step.task.slot, gpus, state_words(step.state), seconds, "; ".join(why))
    return rows


def plan_summary(steps: Sequence[Step]) -> str:
    todo = [step for step in steps if step.todo]
    known = [step.seconds for step in todo if step.seconds is not None]
    took = f", {sum(known):.0f} s of work last time" if known else ""
    away = [step for step in steps if step.state == "other-host"]
    there = f", {len(away)} need{'s' * (len(away) == 1)} another host" if away else ""
    stages = "1 stage is" if len(steps) == 1 else f"{len(steps)} stages are"
    return f"{len(steps) - len(todo) - len(away)} of {stages} cached, {len(todo)} to do{took}{there}"


@fleet.command(
    short_help="Build what is not cached; put artifacts in their places",
    examples=("bertc fleet build fleet.toml --entry minilm", "bertc fleet build fleet.toml --locked --fail-fast"),
)
@fleet_arguments
@click.option("--locked", is_flag=True, help="Refuse to build anything but what fleet.lock.json names.")
@VERIFY_BYTES
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option(
    "--until", type=click.Choice(["export", "fuse", "quantise", "build"]), default="build", help="Stop after this stage."
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="NUMBER", help="Cores to use; default: all.")
@click.option("--memory", metavar="SIZE", help="Memory to use, as in 12GB; default: what is free.")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on a Ray cluster that sees the store and the sources.")
def build(
    file: Path,
    entries: Sequence[str],
    store: Path | None,
    locked: bool,
    verify_bytes: bool,
    fail_fast: bool,
    until: str,
    jobs: int | None,
    memory: str | None,
    address: str | None,
    as_json: bool,
) -> None:
    """Build what is not cached, and put every artifact in its place. Exits as the worst failure does.

    What is damaged in the store is made again, what differs in its place is placed again; both are said.
    """
    from ..fleet import config, lock, run, status

    chosen, whole, kept = open_fleet(file, entries, store, verify_bytes)
    kept.sweep()
    if locked:
        lock.require_same(chosen, kept)
    pool = pool_of(address, jobs, config.parse_bytes(memory) if memory else None)
    outcomes = run_shown(chosen, kept, pool, until, fail_fast)
    if locked:
        lock.require_contents(chosen, kept, outcomes)
    placed = place(chosen, kept, outcomes)
    if not locked and until == "build":
        lock.write(chosen, kept, outcomes, whole)
    code = run.worst_exit_code(o.exit_code for o in outcomes) or exit_code_of_requested(outcomes, entries)
    document = built_document(chosen, kept, outcomes, code)
    for line in (*status.precision_notes(document["entries"]), *repairs(outcomes, placed), *build_summary(outcomes, len(placed))):
        print_result(line)
    if as_json:
        print_json(document)
    raise click.exceptions.Exit(code)


def run_shown(chosen: Fleet, kept: Store, pool: Pool, until: str, fail_fast: bool) -> Sequence[Outcome]:
    """Run what is to do, with a table of how far it is, and stop the pool."""
    from ..fleet import plan as plans
    from ..fleet import progress_table, run

    tasks = [task for task in plans.tasks(chosen) if until == "build" or not task.entry]
    table = progress_table.ProgressTable(progress_console(), tasks)

    def watch(task: Any, outcome: Outcome | None) -> None:
        if outcome is None:
            LOG.debug("begin %s", task.slot)
        else:
            LOG.info("end %s: %s, %.3f s", task.slot, outcome.state, outcome.seconds)
        table.watch(task, outcome)

    try:
        with table.show():
            return run.run_fleet(chosen, kept, pool, watch, until=until, fail_fast=fail_fast)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("finished stages are in the store; the next build resumes from there") from stop
    finally:
        pool.stop()


def built_document(chosen: Fleet, kept: Store, outcomes: Sequence[Outcome], code: int) -> dict[str, Any]:
    """The fleet's status, and what this build made of it."""
    from ..fleet import status

    made = [outcome.task.slot for outcome in outcomes if outcome.state == "made"]
    return {**status.status_document(chosen, kept), "made": made, "exit_code": code}


def pool_of(address: str | None, jobs: int | None, memory: int | None) -> Pool:
    if address is not None:
        if jobs is not None or memory is not None:
            raise InputError("--jobs and --memory are limits of this machine; a cluster (--ray) has its own: leave them out")
        from ..fleet import RayPool

        return RayPool(address)
    from ..fleet import LocalPool

    return LocalPool(jobs, memory)


def place(chosen: Fleet, kept: Store, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Artifacts into their places: {slot: why} of those that were not there, or not as they were built."""
    from ..fleet import outputs

    built = [o for o in outcomes if o.task.entry and o.key and o.digest]
    why = {o.task.slot: outputs.place(kept, str(o.key), chosen.place_of(o.task.slot)) for o in built}
    return {slot: each for slot, each in why.items() if each is not None}


def repairs(outcomes: Sequence[Outcome], placed: dict[str, str]) -> list[str]:
    """What was made or placed again because what lay there was not what was built."""
    again = [
        f"{o.task.slot} was damaged in the store ({o.reason}): made again" for o in outcomes if o.state == "made" and o.reason
    ]
    cached = [o.task.slot for o in outcomes if o.state == "cached"]
    moved = {slot: why for slot, why in placed.items() if slot in cached and why != "it was not there"}
    return again + [f"{slot}: in its place {why}: placed again" for slot, why in moved.items()]


def exit_code_of_requested(outcomes: Sequence[Outcome], entries: Sequence[str]) -> int:
    """Entries for other hosts are no failure, unless one of them was asked for by name."""
    return 3 if any(o.state == "other-host" and o.task.slot in entries for o in outcomes) else 0


def build_summary(outcomes: Sequence[Outcome], placed: int) -> list[str]:
    """A line a stage that was not built, further lines of its reason indented below it, and the counts."""
    from ..fleet import state_words

    unbuilt = [o for o in outcomes if o.state in ("failed", "skipped", "other-host")]
    lines = []
    for each in unbuilt:
        first, *more = each.reason.split("\n")
        lines += [f"{each.task.slot} {state_words(each.state)}: {first}", *(f"    {line}" for line in more)]
    made = [o for o in outcomes if o.state == "made"]
    cached = sum(o.state == "cached" for o in outcomes)
    ends = f"{counted(len(made), 'stage')} made ({sum(o.seconds for o in made):.1f} s of work), {cached} cached"
    return [*lines, f"{ends}, {counted(placed, 'artifact')} placed"]


@fleet.command(
    name="status",
    short_help="Show what is built, cached, stale or failed",
    examples=("bertc fleet status", "bertc fleet status fleet.toml --json"),
)
@fleet_arguments
@VERIFY_BYTES
def show_status(file: Path, entries: Sequence[str], store: Path | None, verify_bytes: bool, as_json: bool) -> None:
    """Show what is built, cached, stale or failed, with sizes, kernels and accuracy.

    Exits as the worst of the sources that cannot be read: 2 for one that is not there.
    """
    from ..fleet import plan as plans
    from ..fleet import state_words, status
    from ..report import Table

    chosen, _, kept = open_fleet(file, entries, store, verify_bytes)
    steps = plans.plan_fleet(chosen, kept)
    found = status.status_document(chosen, kept, steps)
    columns = ("entry", "GPUs", "state", "size", "kernels", "cosine (min)", "rel. error", "verified", "why")
    rows = Table(*columns, wrap=("GPUs", "verified", "why"))
    for entry in found["entries"]:
        state, why = state_words(entry["state"]), "; ".join(entry["reasons"][:3])
        rows.add(entry["name"], ", ".join(entry["gpus"]), state, *entry_cells(entry), why)
    console().print(rows)
    for line in status.precision_notes(found["entries"]):
        print_result(line)
    print_result(", ".join(f"{count} {state_words(state)}" for state, count in found["counts"].items()))
    if as_json:
        print_json(found)
    fail_unreadable(steps, file)


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


@fleet.command(
    short_help="Verify every artifact in its place",
    examples=("bertc fleet verify", "bertc fleet verify fleet.toml --entry minilm --require-engine"),
)
@fleet_arguments
@click.option("--require-engine", is_flag=True, help="Exit 3 where an engine itself cannot run.")
def verify(file: Path, entries: Sequence[str], store: Path | None, require_engine: bool, as_json: bool) -> None:
    """Verify every artifact in its place: hashes, the lock, and its goldens. Exit 1 when one differs."""
    from ..fleet import entry_check as checking
    from ..fleet import worst_exit_code

    chosen, _, _ = open_fleet(file, entries, store)
    checks = []
    for check in checking.verify_fleet(chosen, require_engine):
        print_result(f"{check.name}: {check.said}")
        checks.append(check)
    if as_json:
        print_json({"entries": [check.to_json() for check in checks], "passed": all(c.exit_code == 0 for c in checks)})
    raise click.exceptions.Exit(worst_exit_code(check.exit_code for check in checks))
