"""The table of a system: target x precision x metric x size x fused counts x kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = "| module | target | asked | built | {metrics}MB | fused | kernels | verified |"


def render(found: Mapping[str, Any]) -> str:
    """Markdown of what system.json says. Metrics are of the whole system, over the artifacts that this machine runs."""
    names = list(dict.fromkeys(name for values in found["metrics"].values() for name in values))
    lines = [_head(names)]
    lines.append("|" + "---|" * (lines[0].count("|") - 1))
    for row in found["rows"]:
        of_system = found["metrics"].get(row["precision"], {}) if row["target"] == "onnxruntime" else {}
        lines.append(f"| {' | '.join([*_first(row), *(_number(of_system.get(name)) for name in names), *_last(row)])} |")
    short = "\n".join(f"- {each}" for each in found["misses"])
    return "\n".join(lines) + (f"\n\nBelow the bar:\n{short}" if short else "\n\nAll bars kept.")


def _head(names: list[str]) -> str:
    return HEAD.format(metrics="".join(f"{name} | " for name in names))


def _first(row: Mapping[str, Any]) -> list[str]:
    return [row["module"], row["target"], row["precision"], row.get("built") or "failed"]


def _last(row: Mapping[str, Any]) -> list[str]:
    size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
    fused = ", ".join(f"{count} {rule}" for rule, count in row.get("fused", {}).items())
    return [size, fused, str(row.get("kernels") or ""), str(row.get("verified") or "")]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
