"""A table for a terminal of any width: no number is broken; columns that do not fit are left out, or rows become blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from ..core import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, ConsoleOptions, RenderResult

GAP = 2  # spaces between columns
PROSE = 20  # letters to which a column of text is squeezed, before a column is dropped
LONGEST = 32  # letters of a word in a column of text; only a longer one, a path or a name, may be broken


class Table:
    """Rows of text, shown by `console.print(table)`.

    Columns in `wrap` hold text, which goes on in the next line where it is too long; all others are one line. On a terminal too
    narrow for that, columns in `drop` are left out, the first one first, and a line says so. If the table is still too wide,
    every row becomes a block of `name  value` lines, with nothing left out.
    """

    def __init__(self, *columns: str, wrap: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        self.columns, self.wrap, self.drop = tuple(map(one_line, columns)), wrap, drop
        self.rows: list[tuple[str, ...]] = []

    def add(self, *cells: str) -> None:
        """A row: one cell a column, shown as it is (`bertc[rtx]` is no markup), on one line, what is invisible escaped."""
        self.rows.append(tuple(map(one_line, cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text()
        yield from self._fitted(options.max_width)
        yield Text()

    def _fitted(self, room: int) -> RenderResult:
        for count in range(len(self.drop) + 1):
            dropped = self.drop[:count]
            widths = self._widths([name for name in self.columns if name not in dropped], room)
            if widths:
                yield self._wide(widths)
                if dropped:
                    yield Text(f"left out: {', '.join(dropped)} (a wider terminal or --json shows them)")
                return
        yield self._blocks()

    def _widths(self, names: Sequence[str], room: int) -> dict[str, int]:
        """The width of each column, {} where they do not fit: text columns and heads are squeezed, the widest first."""
        widths, least = {}, {}
        for name in names:
            at = self.columns.index(name)
            cells = [row[at] for row in self.rows]
            natural = max(map(cell_len, [name, *cells]))
            words = [word for text in ([name, *cells] if name in self.wrap else [name]) for word in text.split()]
            longest = max(map(cell_len, words), default=0)
            widths[name] = natural
            text = max(min(longest, LONGEST), min(natural, PROSE))
            least[name] = text if name in self.wrap else max([longest, *map(cell_len, cells)])
        room -= GAP * (len(names) - 1)
        if sum(least.values()) > room:
            return {}
        while sum(widths.values()) > room:
            widths[max((name for name in names if widths[name] > least[name]), key=widths.__getitem__)] -= 1
        return widths

    def _wide(self, widths: dict[str, int]) -> Grid:
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        for name, width in widths.items():
            grid.add_column(Text(name), width=width, overflow="fold")
        kept = [self.columns.index(name) for name in widths]
        for row in self.rows:
            grid.add_row(*(Text(row[at]) for at in kept))
        return grid

    def _blocks(self) -> Grid:
        grid = Grid.grid(padding=(0, GAP, 0, 0))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for number, row in enumerate(self.rows):
            if number:
                grid.add_row()
            for name, cell in zip(self.columns, row, strict=True):
                if cell:
                    grid.add_row(Text(name), Text(cell))
        return grid
