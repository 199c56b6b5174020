"""What a person sees while bertc works, on stderr: a live bar on a terminal, one plain line a stage elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Advance = Callable[[int, int], None]


@dataclasses.dataclass
class Progress:
    """Times the stages of a run and shows them. Without a console (`Progress()`) it only times: the Python interface is quiet."""

    console: Console | None = None
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Run a stage; yields `advance(done, total)`. Its wall time in seconds goes to `stages`, summed for a repeated name."""
        start = time.perf_counter()
        with self._bar(name) as advance:
            yield advance
        seconds = time.perf_counter() - start
        self.stages[name] = self.stages.get(name, 0.0) + seconds
        if self.console:
            self.console.print(f"  [green]done[/] {name} [dim]{seconds:.1f} s[/]", highlight=False)

    @contextlib.contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        if self.console is None or not self.console.is_terminal:
            yield lambda done, total: None
            return
        from rich import progress as bars

        columns = (bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TimeElapsedColumn())
        with bars.Progress(*columns, console=self.console, transient=True) as live:
            task = live.add_task(name, total=None)
            yield lambda done, total: live.update(task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Something the user should know: a choice that was made, a thing that was overridden."""
        if text in self.notes:
            return
        self.notes.append(text)
        if self.console:
            self.console.print(f"  [yellow]note[/] {_plain(text)}", highlight=False)

    def say(self, text: str) -> None:
        """A line of plain progress."""
        if self.console:
            self.console.print(_plain(text), highlight=False)

    def show(self, table: RenderableType) -> None:
        """A table, where there is somebody to see it."""
        if self.console:
            self.console.print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
