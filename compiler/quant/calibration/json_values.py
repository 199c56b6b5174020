"""Values of a JSON file that somebody else may have written: each is what it must be, or the error names its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LARGEST_COUNT = 2**53  # what a float64 holds exactly; sums of such counts fit int64
FLOAT32_MAX = 3.4028235e38


def whole(data: Mapping[str, Any], key: str, low: int = 0, high: int = LARGEST_COUNT) -> int:
    value = data[key]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(key, value, f"a whole number from {low} to {high}")
    return value


def number(value: Any, key: str, low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX) -> float:
    """A finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:  # false for NaN too
        raise _wrong(key, value, f"a number from {low:g} to {high:g}")
    return float(value)


def text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise _wrong(key, value, "a text")
    return value


def members(value: Any, key: str, kind: type) -> Any:
    """A list, or an object (`kind` is list or dict)."""
    if not isinstance(value, kind):
        raise _wrong(key, value, "a list" if kind is list else "an object")
    return value


def _wrong(key: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{key!r} is {str(value)[:60]!r}, not {wanted}")
