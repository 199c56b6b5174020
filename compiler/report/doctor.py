"""What this machine has: which targets can build and run, or the reason why not."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from .. import targets
from ..core import VERSION, memory_gib, versions
from ..core import machine as packages

if TYPE_CHECKING:
    from rich.console import Console


def examine_machine() -> dict[str, Any]:
    """{"bertc", "machine", "gpus", "tools", "targets", "problems"}; imports nothing heavy."""
    found = {name: targets.get(name).available() for name in targets.names()}
    return {
        "bertc": VERSION,
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "memory_gib": memory_gib()},
        "gpus": [{"name": name, "sm": sm} for name, sm in packages.gpus()],
        "tools": versions(),
        "targets": {
            name: {"build": a.build, "run": a.run, "version": a.version, "reason": a.reason, "install": a.install}
            for name, a in found.items()
        },
        "problems": _problems(),
    }


def _problems() -> list[str]:
    """Combinations of packages that break each other, and what is missing for `bertc export`."""
    problems = []
    if packages.installed_version("onnxruntime") and packages.installed_version("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed, in one folder: pip uninstall one, reinstall the other"
        )
    missing = [name for name in ("torch", "transformers", "safetensors") if not packages.installed_version(name)]
    if missing:
        problems.append(f"bertc export of PyTorch models needs {', '.join(missing)}: pip install 'bertc[export]'")
    return problems


def show(found: dict[str, Any], console: Console) -> None:
    """Print what `examine` found."""
    from rich.columns import Columns
    from rich.text import Text

    from .layout import Table

    machine = found["machine"]
    console.print(
        f"bertc {found['bertc']} on {machine['system']}, {machine['cpus']} cores, {machine['memory_gib']} GiB", highlight=False
    )
    gpus = ", ".join(f"{g['name']} ({g['sm']})" for g in found["gpus"]) or "none found"
    console.print(f"GPUs: {gpus}", highlight=False)
    console.print("tools:", highlight=False)
    console.print(Columns([Text(f"{name} {version}") for name, version in found["tools"].items()], padding=(0, 2)))
    rows = Table("target", "build", "run", "version", "reason", "install", wrap=("reason", "install"))
    for name, t in found["targets"].items():
        installed = t["build"] and t["version"]  # what is missing then is no package
        rows.add(name, _yes(t["build"]), _yes(t["run"]), t["version"], t["reason"], "" if installed else t["install"])
    console.print(rows)
    for problem in found["problems"]:
        console.print(f"problem: {problem}", highlight=False, markup=False)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
