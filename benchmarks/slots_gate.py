"""What wrong slots cost with the gate of intent-slots and without it, by seeds: benchmarks/results/slots_gate.md.

python -m benchmarks.slots_gate          # twelve trainings of about 70 CPU seconds
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "slots_gate.md"
SEEDS = (0, 1, 2)
COST = ("noisy", "wrong")


def main() -> None:
    """Train by every seed, write the table."""
    import torch

    from bertc.recipes.systems.intent_slots import training

    torch.set_num_threads(1)
    parts = [
        f"Trained on {said}:\n\n{text(training.gate(SEEDS, mix), training.KINDS)}\n"
        for said, mix in (("right, noisy and no slots", training.MIX), ("right and no slots alone", training.CLEAN))
    ]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")
    print(RESULTS.read_text("utf-8"))


def text(rows: Sequence[Mapping[str, float]], kinds: Sequence[str]) -> str:
    """A line a seed and network: accuracy by kind of slots, and how much below right slots the others are."""
    lines = [
        f"| seed | gate | {' | '.join(f'{kind} slots' for kind in kinds)} | {' | '.join(f'cost of {kind}' for kind in COST)} |",
        "|---" * (2 + len(kinds) + len(COST)) + "|",
    ]
    gains: dict[str, list[float]] = {kind: [] for kind in COST}
    for seed, row in enumerate(rows):
        cost = {net: [row[f"{net}, right slots"] - row[f"{net}, {kind} slots"] for kind in COST] for net in ("gated", "ungated")}
        for name, shown in (("gated", "with"), ("ungated", "without")):
            cells = [f"{row[f'{name}, {kind} slots']:.4f}" for kind in kinds] + [f"{each:.4f}" for each in cost[name]]
            lines.append(f"| {seed} | {shown} | {' | '.join(cells)} |")
        for kind, gated, ungated in zip(COST, cost["gated"], cost["ungated"], strict=True):
            gains[kind].append(ungated - gated)
    said = [
        f"{kind} slots cost {statistics.mean(each):+.4f} more without the gate ({min(each):+.4f} to {max(each):+.4f} by seed)"
        for kind, each in gains.items()
    ]
    return "\n".join([*lines, "", f"{'; '.join(said)}."])


if __name__ == "__main__":
    main()
