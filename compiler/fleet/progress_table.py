"""Progress of a fleet: a live table of models and GPUs on a terminal, one plain line an event without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .plan import Task, state_words
from .run import Outcome

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

COLOURS = {
    "made": "green",
    "cached": "dim",
    "failed": "red",
    "skipped": "yellow",
    "other-host": "yellow",
    "running": "cyan",
    "quantising": "cyan",
}


class ProgressTable:
    """Told of every event; `events` counts the ends."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self.console, self.tasks = console, tasks
        self.states: dict[str, str] = {}
        self.ended = 0
        self._live: Live | None = None

    @contextlib.contextmanager
    def show(self) -> Iterator[None]:
        """The live table for as long as the block lasts, where there is a terminal."""
        if not self.console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(console=self.console, get_renderable=self.table, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def watch(self, task: Task, outcome: Outcome | None) -> None:
        """A task begins (None) or ended."""
        self.states[task.slot] = _state(outcome)
        self.ended += outcome is not None
        if outcome is None and self._live is None:
            self._print_line(f"begin {task.slot}")
        if outcome is None or (self._live is not None and outcome.state != "failed"):
            return
        seconds = f" {outcome.seconds:.1f} s" if outcome.state in ("made", "failed") else ""
        reason = f": {outcome.reason.splitlines()[0]}" if outcome.reason else ""
        self._print_line(f"{state_words(outcome.state)} {task.slot}{seconds}{reason}")

    def _print_line(self, text: str) -> None:
        self.console.print(f"[{self.ended}/{len(self.tasks)}] {text}", highlight=False, markup=False)

    def table(self) -> Table:
        """One row a model and precision, one column a stage, GPU model or target."""
        from rich.table import Table
        from rich.text import Text

        columns = list(dict.fromkeys(name for task in self.tasks for name in _columns(task)))
        rows: dict[tuple[str, str], dict[str, str]] = {}
        for task in self.tasks:
            if task.entry:
                cells = rows.setdefault((task.entry.model, task.entry.precision), {})
                cells.update({name: self._state_of(task) for name in _columns(task)})
        table = Table("model", "precision", "export", "fuse", *columns, box=None)
        for (model, precision), cells in rows.items():
            stages = [self.states.get(f"{model}/{stage}", "-") for stage in ("export", "fuse")]
            words = [*stages, *(cells.get(name, "-") for name in columns)]
            table.add_row(model, precision, *(Text(state_words(word), style=COLOURS.get(word.split()[0], "")) for word in words))
        return table

    def _state_of(self, task: Task) -> str:
        """A build that waits for its graph to be quantised says so: that stage has no column."""
        before = self.states.get(task.needs.get("quantise", ""), "")
        return self.states.get(task.slot, "quantising" if before == "running" else "pending")


def _columns(task: Task) -> tuple[str, ...]:
    return (task.entry.gpus or (str(task.entry.spec),)) if task.entry else ()


def _state(outcome: Outcome | None) -> str:
    if outcome is None:
        return "running"
    return f"made {outcome.seconds:.0f} s" if outcome.state == "made" else outcome.state
