"""Statistics of one tensor: exact counts, whatever the order, and the ranges that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...core import DataError
from . import clipping
from .histogram import NARROWEST, WIDEST, Histogram
from .json_values import members, number, text, whole

CHANNEL_BINS = 512  # of a histogram per channel
COUNTS = ("values", "nan", "infinite", "masked", "skipped")


@dataclasses.dataclass(frozen=True)
class MeasuredTensor:
    """A tensor to measure, by its name in the graph, and what to know of it.

    `dims` are its axes: sizes, or names of dynamic ones. `axis` is the one of its channels, None where that is dynamic. `cut`: in
    this tensor what is at or below it is a mask constant (with a score added), None where no mask constant can come through.
    `by_channel` asks for a histogram per channel.
    """

    name: str
    op: str
    module: str = ""
    dims: tuple[int | str, ...] = ()
    axis: int | None = None
    cut: float | None = None
    by_channel: bool = False

    @property
    def channels(self) -> int:
        return 0 if self.axis is None else int(self.dims[self.axis])


@dataclasses.dataclass(frozen=True)
class Settings:
    """How ranges follow from the counts. `outlier`: a channel is one when its maximum is so many times that of the median one."""

    method: str = "percentile"
    percentile: float = clipping.PERCENTILE
    outlier: float = 10.0


class Statistics:
    """Counts of one tensor. Only finite values that no mask made are in `histogram`, `low`, `high` and `channels`."""

    def __init__(self, place: MeasuredTensor) -> None:
        self.place = place
        self.values = self.nan = self.infinite = self.masked = self.skipped = 0
        self.low, self.high = np.inf, -np.inf
        self.channels = np.zeros(place.channels, np.float32)
        self.histogram = Histogram.empty()
        self._known: tuple[tuple[int, float], dict[str, float]] = ((0, 0.0), {})
        self.by_channel = Histogram.empty(place.channels, CHANNEL_BINS) if place.by_channel else None

    def add(self, *arrays: np.ndarray) -> None:
        """Count arrays of this tensor's rank, in any float type. Several at once take less time than one by one."""
        parts = [self._rows(np.asarray(array, np.float32)) for array in arrays if array.size]
        if not parts:
            return
        x = parts[0] if len(parts) == 1 else np.concatenate(parts)
        low, high = float(x.min()), float(x.max())  # NaN, where there is one
        if not np.isfinite(low) or not np.isfinite(high) or (self.place.cut is not None and low <= self.place.cut):
            self._add_some(x)
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.values += x.size
        self._count(np.abs(x), max(-low, high))

    def _add_some(self, x: np.ndarray) -> None:
        """Leave out what is not finite or made by a mask, and count it."""
        cut = self.place.cut
        masked = np.zeros(x.shape, bool) if cut is None else x <= cut  # -inf too, false for NaN
        nan = np.isnan(x)
        infinite = np.isinf(x) & ~masked
        kept = ~(masked | nan | infinite)
        for name, found in (("masked", masked), ("nan", nan), ("infinite", infinite), ("values", kept)):
            setattr(self, name, getattr(self, name) + int(found.sum()))
        if not kept.any():
            return
        some = x[kept]
        self.low, self.high = min(self.low, float(some.min())), max(self.high, float(some.max()))
        magnitudes = np.where(kept, np.abs(x), np.float32(0))
        self._count(magnitudes, float(magnitudes.max()))
        # What was left out went in as 0, which lies in the first bin at any width: take it out there.
        self.histogram.counts[0, 0] -= int((~kept).sum())
        if self.by_channel is not None:
            self.by_channel.counts[:, 0] -= (~kept).sum(axis=0)

    def _count(self, magnitudes: np.ndarray, largest: float) -> None:
        self.histogram.add(magnitudes, largest)
        if not len(self.channels):
            return
        tops = magnitudes.max(axis=0)
        np.maximum(self.channels, tops, out=self.channels)
        if self.by_channel is not None:
            self.by_channel.add_rows(magnitudes, tops)

    def _rows(self, array: np.ndarray) -> np.ndarray:
        """[positions, channels], or [values] of a tensor without channels."""
        axis = self.place.axis
        if axis is None:
            return array.reshape(-1)
        last = array if axis == array.ndim - 1 else np.moveaxis(array, axis, -1)
        return last.reshape(-1, len(self.channels))

    def merge(self, other: Statistics) -> None:
        """Add what another one counted of the same tensor."""
        assert self.place == other.place, (self.place, other.place)
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        np.maximum(self.channels, other.channels, out=self.channels)
        self.histogram.merge(other.histogram)
        if self.by_channel is not None and other.by_channel is not None:
            self.by_channel.merge(other.by_channel)

    @property
    def status(self) -> str:
        """`ok`, or why the tensor must not be quantised: `unmeasured`, `not finite` or `constant`."""
        if self.nan or self.infinite:
            return "not finite"
        if not self.values:
            return "unmeasured"
        return "constant" if self.low == self.high else "ok"

    @property
    def largest(self) -> float:
        return max(-self.low, self.high)

    def ranges(self, percentile: float = clipping.PERCENTILE) -> dict[str, float]:
        """The clipping magnitude by each method; {} for a tensor that must not be quantised."""
        if self.status != "ok":
            return {}
        key = (self.values, percentile)  # whatever is counted changes `values`
        if self._known[0] != key:
            top = np.array([self.largest])
            found = {
                name: float(clipping.clipping_magnitudes(self.histogram, top, name, percentile)[0]) for name in clipping.METHODS
            }
            self._known = (key, found)
        return self._known[1]

    def channel_ranges(self, settings: Settings) -> np.ndarray:
        """The clipping magnitude of each channel by the method of the settings, float64 [channels]; else empty."""
        if self.status != "ok" or self.by_channel is None:
            return np.zeros(0)
        return clipping.clipping_magnitudes(self.by_channel, self.channels, settings.method, settings.percentile)

    def outliers(self, times: float) -> dict[int, float]:
        """Channels whose largest magnitude is above `times` the median of all channels' largest, with that ratio."""
        middle = float(np.median(self.channels)) if len(self.channels) else 0.0
        found = np.flatnonzero(self.channels > times * middle) if middle else ()
        return {int(channel): float(self.channels[channel]) / middle for channel in found}

    def derived(self, settings: Settings) -> dict[str, Any]:
        """What follows from the counts, as JSON."""
        ranges = {name: _short(value) for name, value in self.ranges(settings.percentile).items()}
        data: dict[str, Any] = {"status": self.status, "range": ranges.get(settings.method), "ranges": ranges}
        data["outliers"] = {str(at): float(f"{times:.3g}") for at, times in self.outliers(settings.outlier).items()}
        return data | {"channel_ranges": [_short(x) for x in self.channel_ranges(settings)]}

    def to_json(self) -> dict[str, Any]:
        """The counts; numbers of float32 as short as they can be and still be the same."""
        data: dict[str, Any] = {}
        data |= {"min": _exact(self.low), "max": _exact(self.high)} if self.values else {}
        data |= {name: getattr(self, name) for name in COUNTS}
        place = dataclasses.asdict(self.place)
        data |= {key: place[key] for key in place if key != "name"} | {"dims": list(self.place.dims)}
        data["channel_max"] = [_exact(x) for x in self.channels]
        data["histogram"] = _histogram_json(self.histogram, 0)
        groups = range(len(self.channels)) if self.by_channel is not None else ()
        data["channel_histograms"] = [_histogram_json(self.by_channel, group) for group in groups]
        return data

    @staticmethod
    def from_json(name: str, data: Mapping[str, Any]) -> Statistics:
        """What to_json wrote. Raises ValueError, KeyError, TypeError or IndexError for others, naming the key."""
        made = Statistics(_place(name, data))
        for count in COUNTS:
            setattr(made, count, whole(data, count))
        if made.values:
            made.low, made.high = (float(np.float32(number(data[key], key))) for key in ("min", "max"))
            if made.low > made.high:
                raise ValueError(f"'min' is {made.low:g}, above 'max', {made.high:g}")
        made.channels[...] = np.array(data["channel_max"], np.float32)
        _read_histogram(made.histogram, [data["histogram"]], "histogram")
        if made.by_channel is not None:
            _read_histogram(made.by_channel, data["channel_histograms"], "channel_histograms")
        if int(made.histogram.counts.sum()) != made.values:
            raise ValueError(f"'histogram' holds {made.histogram.counts.sum()} of {made.values} values")
        return made


def _place(name: str, data: Mapping[str, Any]) -> MeasuredTensor:
    """The tensor of an entry. Its channels are as many as the entry has maxima of: arrays are made that long."""
    dims = tuple(members(data["dims"], "dims", list))
    if not all(isinstance(dim, (int, str)) for dim in dims):
        raise ValueError(f"'dims' is {str(dims)[:60]}, not sizes and names")
    axis = None if data["axis"] is None else whole(data, "axis", -len(dims), len(dims) - 1)
    cut = None if data["cut"] is None else number(data["cut"], "cut", -1e300, 1e300)
    by_channel = data["by_channel"]
    if not isinstance(by_channel, bool):
        raise ValueError(f"'by_channel' is {str(by_channel)[:60]!r}, not true or false")
    maxima = [number(value, "channel_max", 0) for value in members(data["channel_max"], "channel_max", list)]
    channels = 0 if axis is None else dims[axis]
    if len(maxima) != channels or (by_channel and not channels):
        raise ValueError(f"'channel_max' has {len(maxima)} numbers, 'dims' and 'axis' say {channels}")
    if len(members(data["channel_histograms"], "channel_histograms", list)) != (channels if by_channel else 0):
        raise ValueError(f"'channel_histograms' has {len(data['channel_histograms'])} of {channels} channels")
    return MeasuredTensor(name, text(data, "op"), text(data, "module"), dims, axis, cut, by_channel)


def _exact(value: float | np.floating[Any]) -> float:
    """A float32 by its shortest decimal form, which reads back as the same float32."""
    return float(str(np.float32(value)))


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _histogram_json(histogram: Histogram | None, group: int) -> dict[str, Any]:
    assert histogram is not None
    return {"exponent": int(histogram.exponents[group]), "counts": _runs(histogram.counts[group])}


def _runs(counts: np.ndarray) -> str:
    """`12 7 0*5 1`: the counts bin by bin, a run of empty ones as 0*length, without the empty ones at the end."""
    words: list[str] = []
    before = -1
    for at in np.flatnonzero(counts).tolist():
        gap = at - before - 1
        words += [f"0*{gap}"] if gap else []
        words.append(str(counts[at]))
        before = at
    return " ".join(words)


def _read_runs(words: str, bins: int) -> np.ndarray:
    counts, at = np.zeros(bins, np.int64), 0
    for word in words.split():
        run = word.removeprefix("0*") if word.startswith("0*") else ""
        if not (run or word).isdecimal():
            raise ValueError(f"a histogram has {word[:40]!r} among its counts")
        if run:
            at += int(run)
            continue
        counts[at] = int(word)
        at += 1
    return counts


def _read_histogram(histogram: Histogram, data: Iterable[Mapping[str, Any]], key: str) -> None:
    for group, each in enumerate(data):
        histogram.exponents[group] = whole(members(each, key, dict), "exponent", NARROWEST, WIDEST)
        histogram.counts[group] = _read_runs(text(each, "counts"), histogram.bins)


def check_settings(settings: Settings) -> None:
    """Raises DataError for settings out of range."""
    clipping.check_method(settings.method, settings.percentile)
    if not settings.outlier > 1:
        raise DataError(f"outlier factor {settings.outlier} must be above 1: it is times the median channel")
