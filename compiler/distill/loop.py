"""The training loop: plain torch, seeded, resumable, stopped where the held-out measure no longer rises.

Optimiser and schedule are torch's: AdamW, and OneCycleLR, which warms up and then falls to almost nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CheckFailed, InputError, Missing, Progress
from . import checkpoints
from .settings import Settings

LossOf = Callable[[int], tuple[Tensor, dict[str, float]]]
Context = Callable[[], contextlib.AbstractContextManager[Any]]
POINTS = 100  # of a curve


@dataclasses.dataclass
class Training:
    """What a training did. `losses` are means over stretches of steps, `evaluations` the held-out measure: more is better."""

    steps: int = 0
    planned: int = 0
    best_step: int = 0
    best: float = -math.inf
    seconds: float = 0.0
    losses: list[dict[str, float]] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass
class Loop:
    """A training of `module`: `loss_of(step)` is what a step minimises, `judge()` what decides which state is kept.

    A checkpoint of it lies in `folder` (None: nothing is kept); `fingerprint` says what it is a training of.
    """

    module: nn.Module
    loss_of: LossOf
    judge: Callable[[], float]
    settings: Settings
    steps: int
    folder: Path | None
    fingerprint: str = ""
    autocast: Context = contextlib.nullcontext

    def __post_init__(self) -> None:
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        decayed = [each for each in parameters if each.ndim > 1]
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], self.settings.learning_rate, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            self.settings.learning_rate,
            total_steps=self.steps + 1,
            pct_start=max(self.settings.warmup, 1.5 / (self.steps + 1)),  # of fewer steps it makes no ramp
            anneal_strategy="linear",
            cycle_momentum=False,
        )
        self.found = Training(planned=self.steps)
        self.best_state: dict[str, Tensor] = {}
        self.running: list[dict[str, float]] = []

    def run(self, log: Progress, *, resume: bool = False) -> Training:
        """Train, and leave the best state in the module. KeyboardInterrupt says where to go on."""
        if resume:
            self._load()
            log.say(f"resumed at step {self.found.steps} of {self.steps}")
        else:
            torch.manual_seed(self.settings.seed)
        saved = self.found.steps
        try:
            with log.stage("train") as advance:
                while self.found.steps < self.steps and not self.found.stopped:
                    began = time.monotonic()
                    self._step()
                    advance(self.found.steps, self.steps)
                    self._evaluate_where_due()
                    self.found.seconds += time.monotonic() - began
                    if self._save_where_due():
                        saved = self.found.steps
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(self._how_to_go_on(saved)) from error
        self.module.load_state_dict(self.best_state)
        self.module.eval()
        return self.found

    def _step(self) -> None:
        self.module.train(self.settings.dropout)
        with self.autocast():
            loss, parts = self.loss_of(self.found.steps)
        if not bool(torch.isfinite(loss)):
            raise CheckFailed(
                f"the loss is {float(loss.detach())} at step {self.found.steps + 1}: the training diverged. Give a smaller "
                f"--learning-rate (now {self.settings.learning_rate:g}), or --precision fp32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip)
        self.optimizer.step()
        self.schedule.step()
        self.found.steps += 1
        self.running.append({"loss": float(loss.detach()), **parts})
        if self.found.steps % max(1, self.steps // POINTS) == 0 or self.found.steps == self.steps:
            names = self.running[0]
            means = {name: sum(each[name] for each in self.running) / len(self.running) for name in names}
            self.found.losses.append({"step": self.found.steps, **means})
            self.running = []

    def _evaluate_where_due(self) -> None:
        every = math.ceil(self.steps / self.settings.evaluations)  # so many evaluations at most
        if self.found.steps % every and self.found.steps < self.steps:
            return
        self.module.eval()
        value = self.judge()
        if not math.isfinite(value):
            raise CheckFailed(
                f"the held-out measure is {value} after step {self.found.steps}: the training diverged. Give a smaller "
                f"--learning-rate (now {self.settings.learning_rate:g}), or --precision fp32"
            )
        self.found.evaluations.append({"step": self.found.steps, "value": value})
        if value > self.found.best or not self.best_state:
            self.found.best, self.found.best_step = value, self.found.steps
            self.best_state = {name: each.detach().clone() for name, each in self.module.state_dict().items()}
        since = sum(each["step"] > self.found.best_step for each in self.found.evaluations)
        if since >= self.settings.patience and self.found.steps < self.steps:
            self.found.stopped = (
                f"stopped at step {self.found.steps} of {self.steps}: the held-out measure did not rise in {since} evaluations; "
                f"the state of step {self.found.best_step} is kept"
            )

    # ---- checkpoints ----

    _last_saved: float = dataclasses.field(default=-math.inf, repr=False)

    def _save_where_due(self) -> bool:
        if self._last_saved == -math.inf:
            self._last_saved = time.monotonic()
        done = self.found.steps == self.steps or bool(self.found.stopped)
        due = time.monotonic() - self._last_saved >= self.settings.checkpoint_seconds
        if self.folder is None or not (due or done):
            return False
        self.save()
        self._last_saved = time.monotonic()
        return True

    def save(self) -> None:
        """The whole state; what follows from it is the same as if nothing had stopped."""
        assert self.folder is not None, "a loop without a folder keeps nothing"
        state = {
            "fingerprint": self.fingerprint,
            "module": self.module.state_dict(),
            "best": self.best_state,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "training": self.found.to_json(),
            "running": self.running,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        checkpoints.save(self.folder, state)

    def _load(self) -> None:
        assert self.folder is not None, "a loop without a folder has nothing to go on from"
        state = checkpoints.load(self.folder, self.fingerprint)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        device = next(self.module.parameters()).device
        self.best_state = {name: each.to(device) for name, each in state["best"].items()}
        self.found, self.running = Training(**state["training"]), state["running"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def _how_to_go_on(self, saved: int) -> str:
        if self.folder is None or not (self.folder / checkpoints.NAME).is_file():
            return f"at step {self.found.steps} of {self.steps}, before the first checkpoint: nothing was written"
        return (
            f"at step {self.found.steps} of {self.steps}; the checkpoint of step {saved} is in {self.folder}. Go on with the "
            "same command and --resume"
        )


def device_of(name: str) -> torch.device:
    """auto is a GPU where there is one. InputError for no device, Missing for one that this machine has not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"no device is called {name!r}; give auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r}: bertc trains on cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Missing("device cuda: PyTorch sees no GPU here; give --device cpu")
    return device


def autocast_of(precision: str, device: torch.device) -> tuple[Context, str]:
    """(what a forward pass runs in, its name): bfloat16 where the machine has instructions for it, or it was asked for."""
    if precision == "fp32" or (precision == "auto" and not _has_bfloat16(device)):
        return contextlib.nullcontext, "fp32"
    return lambda: torch.autocast(device.type, torch.bfloat16), "bf16"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(bool(check()) for check in checks if check is not None)
