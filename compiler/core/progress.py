"""What a person sees while bertc works, on stderr: a live bar on a terminal, one plain line a stage elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .escaping import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Advance = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """An Advance that shows nothing: the stage around has the bar, or it is a moment."""


LOG = logging.getLogger("bertc")  # nothing here configures it: that is for who uses the package


@dataclasses.dataclass
class Progress:
    """Times the stages of a run and shows them. Without a console (`Progress()`) it only times: the Python interface is quiet.

    `quiet` hides stages, notes and lines, and still shows tables, which are results.
    """

    console: Console | None = None
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    quiet: bool = False

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Run a stage; yields `advance(done, total)`. Its wall time in seconds goes to `stages`, summed for a repeated name."""
        start = time.perf_counter()
        LOG.debug("begin %s", name)
        try:
            with self._bar(name) as advance:
                yield advance
        except BaseException as error:
            LOG.debug("stop %s after %.3f s: %s", name, time.perf_counter() - start, type(error).__name__)
            raise
        seconds = time.perf_counter() - start
        LOG.info("end %s: %.3f s", name, seconds)
        self.stages[name] = self.stages.get(name, 0.0) + seconds
        self._print("  [green]done[/] ", name, f" [dim]{seconds:.1f} s[/]")

    @contextlib.contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        if self.console is None or self.quiet or not self.console.is_terminal:
            yield silent
            return
        from rich import progress as bars

        words = bars.TextColumn("{task.description}", markup=False)
        columns = (bars.SpinnerColumn(), words, bars.BarColumn(), bars.TimeElapsedColumn())
        with bars.Progress(*columns, console=self.console, transient=True) as live:
            task = live.add_task(one_line(name), total=None)
            yield lambda done, total: live.update(task, completed=done, total=total)

    def note(self, text: str) -> None:
        """Something the user should know: a choice that was made, a thing that was overridden."""
        if text in self.notes:
            return
        self.notes.append(text)
        self._print("  [yellow]note[/] ", text)

    def say(self, text: str) -> None:
        """A line of plain progress."""
        self._print("", text)

    def detail(self, text: str) -> None:
        """A fact for who looks for a fault: logged at level DEBUG, never shown otherwise."""
        LOG.debug("%s", text)

    def show(self, table: RenderableType) -> None:
        """A table, where there is somebody to see it."""
        if self.console:
            self.console.print(table)

    def _print(self, before: str, text: str, after: str = "") -> None:
        """A line of plain text between marked-up words."""
        if self.console is None or self.quiet:
            return
        from rich.markup import escape

        self.console.print(f"{before}{escape(one_line(text))}{after}", highlight=False, markup=True, emoji=False)
