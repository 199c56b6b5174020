"""The console of a command line: what it is given is text, never markup, and nothing in it steers the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ..core import one_line, printable
from ._streams import silence


class PlainConsole(Console):
    """A console on stderr. Names of a model, a file, an artifact reach it in strings and in tables, and are shown as they are:
    `[red]` is no colour and `:x:` no picture, and what is invisible is escaped (`core.escaping`).

    A string is one line; more than one are printed one by one. Whoever wants markup (`Progress`) asks for it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(stderr=True, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """`2>&1 | head -1`: nobody reads on. What runs is not stopped for that; its exit code is as it would have been."""
        self.quiet = True
        silence(self.file)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text that can be wrapped: escaped here, so that its width is known."""
        return super().render_str(one_line(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is written, piece by piece: what did not come as a string (a Text, a log line) is escaped here."""
        for piece in super().render(renderable, options):
            seen = piece.control or piece.text.isprintable()
            yield piece if seen else Segment(printable(piece.text), piece.style)
