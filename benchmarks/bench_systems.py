"""Systems: trained, built and judged whole, in every precision

python -m benchmarks.bench_systems --only text-qa        # one system, kept in benchmarks/results/systems.jsonl
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "systems.jsonl"
GATE = RESULTS.with_name("slots_gate.md")


def measure(name: str, out: Path | None = None) -> dict[str, Any]:
    """Train, build and judge one system; what was found is appended to RESULTS, without paths of this machine."""
    import torch

    from bertc.recipes import systems
    from bertc.recipes.systems import running

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bertc-systems-") as made:
        found = running.run(systems.system(name), out or Path(made), running.Budget())
    found["rows"] = [{key: value for key, value in row.items() if key not in ("artifact", "notes")} for row in found["rows"]]
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")
    return found


def run() -> str:
    """Measure every system that has no result yet, and show all. Delete benchmarks/results/systems.jsonl to begin again."""
    from bertc.recipes import systems

    known = {each["system"] for each in read()}
    for name in (each for each in systems.names() if each not in known):
        measure(name)
    return text(read())


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of benchmarks/README.md: the last measurement of each system."""
    from bertc.recipes.systems import table

    last = {each["system"]: each for each in rows}
    parts = [
        f"### {name}\n\nTrained in {each['train_seconds']:.0f} CPU seconds of one thread.\n\n{table.render(each)}"
        for name, each in sorted(last.items())
    ]
    if GATE.is_file():
        parts.append(
            f"### What the gate of intent-slots saves\n\n`python -m benchmarks.slots_gate`\n\n{GATE.read_text('utf-8').strip()}"
        )
    return "\n\n".join(parts)


def read() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.is_file() else []


def main() -> None:
    """Single systems."""
    from bertc.recipes import systems

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=systems.names(), required=True)
    parser.add_argument("-o", "--out", type=Path, help="keep what was trained and built here")
    arguments = parser.parse_args()
    for name in arguments.only:
        print(text([measure(name, arguments.out)]))


if __name__ == "__main__":
    main()
