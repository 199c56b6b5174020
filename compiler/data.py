"""Feeds: text, pairs, audio, arrays and seeded synthetic samples of every mask shape."""

from __future__ import annotations

import dataclasses

from .runner import Feeds


@dataclasses.dataclass(frozen=True)
class Sample:
    """One batch of feeds. `dead_rows` are rows whose mask is all zero: they must be finite, and are not compared."""

    label: str
    feeds: Feeds
    dead_rows: tuple[int, ...] = ()
