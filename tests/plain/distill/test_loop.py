"""The loop: learning that is interrupted goes on as if nothing had happened, and what is on disk is whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from bertc.core import ArtifactError, CheckFailed, Missing, Progress
from bertc.distill import Loop, Settings
from bertc.distill import checkpoints as saved

STEPS = 30


def loop(folder: Path | None, stop_at: int | None = None, judge=None, fingerprint: str = "one", **settings) -> Loop:
    """A linear model that learns another one, with dropout: so the state of the random generator counts."""
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
    wanted = torch.randn(2, 4)

    def loss_of(step: int):
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = ((module(x) - x @ wanted.T) ** 2).mean()
        return loss, {"squared": float(loss.detach())}

    chosen = Settings(**{"dropout": True, "checkpoint_seconds": 0.0, "learning_rate": 0.02, **settings})
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(99))

    def error() -> float:
        with torch.no_grad():
            return -float(((module(x) - x @ wanted.T) ** 2).mean())

    return Loop(module, loss_of, judge or error, chosen, STEPS, folder, fingerprint)


def weights(made: Loop) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in made.module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_it_learns(tmp_path: Path) -> None:
    made = loop(None)
    found = made.run(Progress())
    assert found.steps == STEPS and found.losses[-1]["squared"] < 0.5 * found.losses[0]["squared"]
    assert found.best == max(each["value"] for each in found.evaluations)


@pytest.mark.parametrize("stop_at", [1, 7, STEPS - 1])
def test_resumed_gives_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    whole = loop(None)
    whole.run(Progress())
    with pytest.raises(KeyboardInterrupt, match=f"step {stop_at} of .*--resume"):
        loop(tmp_path, stop_at).run(Progress())
    again = loop(tmp_path)
    with torch.no_grad():
        for each in again.module.parameters():
            each.fill_(0.5)  # what counts comes from the file
    found = again.run(Progress(), resume=True)
    assert same(weights(whole), weights(again))
    assert found.losses == whole.found.losses and found.evaluations == whole.found.evaluations


def test_another_seed_gives_other_bytes() -> None:
    one, other = loop(None), loop(None, seed=1)
    one.run(Progress())
    other.run(Progress())
    assert not same(weights(one), weights(other))


def test_a_checkpoint_that_is_half_written_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path, 5).run(Progress())
    before = (tmp_path / saved.NAME).read_bytes()

    def stopped(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop(tmp_path).run(Progress(), resume=True)
    assert (tmp_path / saved.NAME).read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [saved.NAME]


def test_interrupted_before_the_first_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing was written"):
        loop(tmp_path / "new", 3, checkpoint_seconds=1e6).run(Progress())
    assert not (tmp_path / "new").exists()


def test_checkpoints_that_are_no_use(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no"):
        loop(tmp_path).run(Progress(), resume=True)
    loop(tmp_path).run(Progress())
    with pytest.raises(ArtifactError, match="other settings"):
        loop(tmp_path, fingerprint="two").run(Progress(), resume=True)
    path = tmp_path / saved.NAME
    for damage in (path.read_bytes()[:-100], b"", b"no checkpoint"):
        path.write_bytes(damage)
        with pytest.raises(ArtifactError, match="damaged"):
            loop(tmp_path).run(Progress(), resume=True)


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Missing, match="no room"):
        loop(tmp_path).run(Progress())
    assert not list(tmp_path.iterdir())


def test_it_stops_where_the_held_out_measure_falls_and_keeps_the_best_state(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, *[0.3] * 10])
    made = loop(None, judge=lambda: next(values), patience=2)
    found = made.run(Progress())
    assert found.steps == 12 and found.best_step == 6 and found.best == 0.5 and "step 6" in found.stopped
    again = loop(None, judge=lambda: 1.0 if again.found.steps == 6 else 0.0)
    again.run(Progress())
    assert again.found.best_step == 6 and same(weights(made), weights(again))


def test_a_loss_that_is_no_number_ends_it() -> None:
    made = loop(None)
    made.loss_of = lambda step: (made.module[0].weight.sum() * float("nan"), {})
    with pytest.raises(CheckFailed, match="learning-rate"):
        made.run(Progress())


@pytest.mark.parametrize(("evaluations", "made"), [(10, 10), (16, 15), (20, 15), (29, 15), (30, 30), (100, 30)])
def test_there_are_so_many_evaluations_at_most(evaluations: int, made: int) -> None:
    found = loop(None, evaluations=evaluations, patience=1000).run(Progress())
    assert len(found.evaluations) == made <= evaluations


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_held_out_measure_that_is_not_finite_keeps_no_state(value: float) -> None:
    with pytest.raises(CheckFailed, match=r"held-out measure is (nan|inf) after step 3"):
        loop(None, judge=lambda: value).run(Progress())
