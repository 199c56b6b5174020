"""What the systems train their own networks with: one loop of bfloat16 on one core that ends at its steps, or at its time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def fit(groups: Mapping[float, Sequence[nn.Parameter]], loss_of: Callable[[], Tensor], steps: int, seconds: float) -> float:
    """AdamW over parameters by their rates, up in a tenth of the steps and down in the rest. Returns the CPU seconds it took.

    `loss_of` draws a batch and gives its loss; it runs in bfloat16 where torch does.
    """
    rates, began = list(groups), time.process_time()
    optimiser = torch.optim.AdamW([{"params": list(own), "lr": rate} for rate, own in groups.items()], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        if time.process_time() - began > seconds:
            sys.stderr.write(f"training ends at its time, after {step} of {steps} steps\n")
            break
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for own in groups.values():
            nn.utils.clip_grad_norm_(own, 1.0)
        optimiser.step()
        schedule.step()
    return time.process_time() - began


def write_rows(path: Path, samples: Sequence[Mapping[str, np.ndarray]]) -> Path:
    """As `--data` takes them: "<n>/<input>", each a batch of one."""
    kept: dict[str, Any] = {f"{at}/{name}": array for at, sample in enumerate(samples) for name, array in sample.items()}
    np.savez(path, **kept)
    return path
