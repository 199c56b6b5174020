"""Rows of requests in batches, through a real runner: each row as if it were alone, whatever shares its batch."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served

import bertc
from bertc.artifact import open_artifact
from bertc.core import BertcError, DataError, Dim, Feeds, Outputs, Range, TensorSpec
from bertc.serve import batches, measure, trial
from bertc.serve.batches import Batching
from bertc.serve.cost import CostModel
from bertc.serve.errors import DeadlinePassed, Overloaded, Poisonous, Refused, TooLong, Unavailable, WorkerDied
from bertc.serve.model import Request, ServedModel
from bertc.serve.planner import Policy
from bertc.serve.pool import ThreadPool
from bertc.serve.scheduler import Lane, Scheduler

COST = CostModel(np.array([1, 8]), np.array([8, 512]), np.array([[1e-3, 2e-3], [3e-2, 2e-1]]))
TEXTS = ["two", "two words and more", "more " * 30, "and", "words more two " * 7]
EXACT = 1e-5  # float32, sums in another order


def of(runner: Any) -> Batching:
    return Batching.of(runner.inputs, runner.outputs)


def alone(runner: Any, texts: Sequence[Any]) -> list[Feeds]:
    return [runner.encode([text]) for text in texts]


@pytest.mark.parametrize("kind", sorted(served.HEADS))
def test_stacked_and_split_is_each_row_alone(artifacts: dict[str, Path], kind: str) -> None:
    runner = bertc.load(artifacts[kind])
    batching, rows = of(runner), alone(runner, TEXTS)
    together = batching.split(runner.run(batching.stack(rows)), rows)
    for row, own in zip(rows, together, strict=True):
        for name, wanted in runner.run(row).items():
            assert own[name].shape == wanted.shape, "without the positions of padding"
            np.testing.assert_allclose(own[name], wanted, rtol=0, atol=EXACT)


def test_padding_is_the_padding_id_and_no_mask() -> None:
    inputs = tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask"))
    batching = Batching.of(inputs, (TensorSpec("logits", "float32", ("batch", 3)),), pad_id=7)
    rows = [{name: np.full((1, n), 5) for name in ("input_ids", "attention_mask")} for n in (1, 3)]
    made = batching.stack(rows)
    assert made["input_ids"].tolist() == [[5, 7, 7], [5, 5, 5]] and made["attention_mask"].tolist() == [[5, 0, 0], [5, 5, 5]]


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_rows(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """A row of the queue has no padding; on which side its tokenizer would put it does not matter."""
    found = open_artifact(artifacts["embedder"])
    folder = shutil.copytree(found.tokenizer, tmp_path / "left")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))

    async def rows(front: ServedModel) -> list[Feeds]:
        return await front.rows_of(TEXTS, Request(1.0, False))

    right = ServedModel.of_artifact("m", found, (), Scheduler(ThreadPool({})))
    left = ServedModel.of_artifact("m", found, (), Scheduler(ThreadPool({})))
    assert right.encoder is not None
    left.encoder = type(right.encoder).from_directory(folder, right.encoder.max_length, right.encoder.inputs)
    assert left.encoder.padding_side == "left"
    for one, other in zip(asyncio.run(rows(right)), asyncio.run(rows(left)), strict=True):
        assert {name: array.tolist() for name, array in one.items()} == {name: array.tolist() for name, array in other.items()}
        assert one["attention_mask"].all()


def test_a_model_heedless_of_its_mask_is_batched_by_length_alone(tmp_path: Path) -> None:
    path = served.artifact(tmp_path, "tokens", heedless=True)
    runner, found = bertc.load(path), open_artifact(path)

    async def error() -> float:
        pool = ThreadPool({"m": runner})
        return await measure.padding_error(found, pool, "m", of(runner))

    far = asyncio.run(error())
    assert far > trial.ALIKE
    found_out, said = trial.judge(of(runner), far)
    assert found_out.length is None and found_out.why == said and "padded batch" in said
    batching = of(runner).unpadded("padding changes it")
    rows = alone(runner, ["two words", "more two", "two"])
    groups = [batching.group(row) for row in rows]
    assert groups[0] == groups[1] != groups[2]
    together = batching.split(runner.run(batching.stack(rows[:2])), rows[:2])
    for row, own in zip(rows, together, strict=False):
        np.testing.assert_allclose(own["logits"], runner.run(row)["logits"], rtol=0, atol=EXACT)


def test_what_padding_does_not_change_measures_no_error(artifacts: dict[str, Path]) -> None:
    runner = bertc.load(artifacts["embedder"])

    async def error() -> float:
        return await measure.padding_error(open_artifact(artifacts["embedder"]), ThreadPool({"m": runner}), "m", of(runner))

    assert asyncio.run(error()) < 1e-5


def test_a_model_without_a_batch_is_not_taken_apart() -> None:
    specs = (TensorSpec("x", "float32", ("batch", 4)), TensorSpec("table", "float32", (3, 4)))
    batching = Batching.of(specs, (TensorSpec("y", "float32", ("batch",)),))
    feeds = {"x": np.zeros((2, 4)), "table": np.zeros((3, 4))}
    assert batching.whole and batching.rows(feeds) == [feeds]
    assert batching.split({"y": np.zeros(2)}, [feeds])[0]["y"].shape == (2,)


def test_rows_of_unequal_inputs_are_refused() -> None:
    specs = tuple(TensorSpec(name, "int64", ("batch", "length")) for name in ("input_ids", "attention_mask"))
    batching = Batching.of(specs, (TensorSpec("y", "float32", ("batch",)),))
    with pytest.raises(DataError, match="2, 3 rows"):
        batching.rows({"input_ids": np.ones((2, 4)), "attention_mask": np.ones((3, 4))})


def test_outputs_of_several_lengths_are_joined_with_zeros() -> None:
    made = batches.joined([{"y": np.ones((1, 2, 3))}, {"y": np.ones((1, 4, 3))}])
    assert made["y"].shape == (2, 4, 3) and made["y"][0, 2:].max() == 0 and made["y"][1].min() == 1


# The queue


class Watched(ThreadPool):
    """A pool of threads that notes its batches, and may be told to fail."""

    def __init__(self, runner: Any, threads: int = 2) -> None:
        super().__init__({"m": runner}, threads)
        self.batches: list[int] = []
        self.busiest = 0
        self.deaths = 0
        self.kills: int | None = None  # an id that ends its worker

    async def run(self, model: str, feeds: Feeds) -> tuple[Outputs, float]:
        self.batches.append(len(feeds["input_ids"]))
        if self.kills is not None and (feeds["input_ids"] == self.kills).any():
            self.deaths += 1
            raise WorkerDied
        self.busiest = max(self.busiest, self.busy + 1)
        if self.deaths > 0 and self.kills is None:
            self.deaths -= 1
            raise WorkerDied
        return await super().run(model, feeds)


def queue(runner: Any, pool: ThreadPool, policy: Policy, limit: int = 1024) -> Scheduler:
    made = Scheduler(pool)
    made.add(Lane("m", of(runner), COST, policy, limit))
    return made


@pytest.fixture(scope="module")
def runner(artifacts: dict[str, Path]) -> Any:
    return bertc.load(artifacts["embedder"])


@pytest.mark.parametrize("name", ["none", "count", "tokens", "cost"])
def test_no_more_batches_run_than_there_are_workers(runner: Any, name: str) -> None:
    """And every request gets its own rows, in its own order."""
    rows = alone(runner, TEXTS)
    wanted = [runner.run(row)["sentence_embedding"] for row in rows]

    async def asked() -> Watched:
        pool = Watched(runner)
        scheduler = queue(runner, pool, Policy(name, max_rows=4, budget=64))
        answers = await asyncio.gather(*(scheduler.submit("m", rows) for _ in range(20)))
        for answer in answers:
            for own, right in zip(answer, wanted, strict=True):
                np.testing.assert_allclose(own["sentence_embedding"], right, rtol=0, atol=EXACT)
        return pool

    pool = asyncio.run(asked())
    assert pool.busiest == 2 and sum(pool.batches) == 100
    assert (max(pool.batches) == 1) == (name == "none")


def test_one_bad_row_fails_alone(runner: Any) -> None:
    """An id beyond the table fails the batch; those who share it are answered all the same."""
    good, bad = runner.encode(["two words"]), {name: np.array([[39, 10_000]]) for name in ("input_ids", "attention_mask")}

    async def asked() -> list[Any]:
        scheduler = queue(runner, Watched(runner, 1), Policy("count", max_rows=8, max_wait=0.05))
        return await asyncio.gather(*(scheduler.submit("m", [row]) for row in (good, bad, good)), return_exceptions=True)

    one, failed, other = asyncio.run(asked())
    assert isinstance(failed, Exception)
    for found in (one, other):
        np.testing.assert_allclose(found[0]["sentence_embedding"], runner.run(good)["sentence_embedding"], rtol=0, atol=EXACT)


def test_sizes_that_disagree_are_the_fault_of_their_request(runner: Any) -> None:
    good = runner.encode(["two words"])
    bad = {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 9), np.int64)}

    async def asked() -> list[Any]:
        scheduler = queue(runner, Watched(runner, 1), Policy("count", max_rows=2, max_wait=1.0))
        return await asyncio.gather(*(scheduler.submit("m", [row]) for row in (good, bad)), return_exceptions=True)

    right, failed = asyncio.run(asked())
    assert right[0]["sentence_embedding"].shape == (1, 16) and isinstance(failed, BertcError)


def test_a_batch_whose_worker_died_runs_again(runner: Any) -> None:
    rows = alone(runner, TEXTS)

    async def asked() -> Any:
        pool = Watched(runner, 1)
        pool.deaths = 1
        return await queue(runner, pool, Policy("count", max_rows=5)).submit("m", rows)

    for own, row in zip(asyncio.run(asked()), rows, strict=True):
        np.testing.assert_allclose(own["sentence_embedding"], runner.run(row)["sentence_embedding"], rtol=0, atol=EXACT)


def test_a_row_that_ends_its_workers_takes_two_with_it_and_no_neighbour(runner: Any) -> None:
    good, bad = runner.encode(["two words"]), {name: np.array([[39, 39]]) for name in ("input_ids", "attention_mask")}

    async def asked() -> tuple[list[Any], int]:
        pool = Watched(runner, 1)
        pool.kills = 39
        scheduler = queue(runner, pool, Policy("count", max_rows=3, max_wait=1.0))
        found = await asyncio.gather(*(scheduler.submit("m", [row]) for row in (good, bad, good)), return_exceptions=True)
        for rows in ([bad], [good, bad]):  # a client that tries again
            with pytest.raises(Poisonous, match="2 workers crashed on this request a short while ago; 'm' does not run it again"):
                await scheduler.submit("m", rows)
        assert len(await scheduler.submit("m", [good])) == 1
        return found, pool.deaths

    (one, failed, other), deaths = asyncio.run(asked())
    assert deaths == 2 and isinstance(failed, Unavailable)
    assert one[0]["sentence_embedding"].tolist() == other[0]["sentence_embedding"].tolist()


def test_the_queue_has_an_end(runner: Any) -> None:
    """More than fit at all is 413; more than fit now is 429, and says when to come again."""
    rows = alone(runner, ["two"] * 8)

    async def asked() -> list[Any]:
        scheduler = queue(runner, Watched(runner, 1), Policy("none"), limit=8)
        with pytest.raises(TooLong, match="queue"):
            await scheduler.submit("m", [*rows, *rows])
        return await asyncio.gather(*(scheduler.submit("m", rows) for _ in range(3)), return_exceptions=True)

    found = asyncio.run(asked())
    refused = [each for each in found if isinstance(each, Refused)]
    assert refused and all(isinstance(each, Overloaded) and each.retry_after for each in refused)
    assert any(isinstance(each, list) for each in found)


def test_who_gives_up_leaves_the_queue(runner: Any) -> None:
    async def asked() -> int:
        pool = Watched(runner, 1)
        scheduler = queue(runner, pool, Policy("count", max_rows=64, max_wait=60.0))
        row = runner.encode(["two"])
        task = asyncio.create_task(scheduler.submit("m", [row] * 3))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        scheduler.lanes["m"].policy = Policy("none")
        with pytest.raises(DeadlinePassed):
            await scheduler.submit("m", [row] * 500, deadline=0.001)
        return len(scheduler.lanes["m"].waiting)

    assert asyncio.run(asked()) == 0


def test_a_flood_of_one_model_does_not_starve_another(artifacts: dict[str, Path]) -> None:
    runner = bertc.load(artifacts["embedder"])

    async def asked() -> tuple[int, int]:
        pool = Watched(runner, 1)
        pool.runners = {"m": runner, "other": runner}
        scheduler = queue(runner, pool, Policy("none"))
        scheduler.add(Lane("other", of(runner), COST, Policy("none")))
        row = runner.encode(["two"])
        flood = asyncio.create_task(scheduler.submit("m", [row] * 500))
        await asyncio.sleep(0.02)
        before = len(pool.batches)
        await scheduler.submit("other", [row] * 5)
        after = len(pool.batches)
        await flood
        return before, after

    before, after = asyncio.run(asked())
    assert before < after <= before + 12, "its five rows took turns with the flood's"


def test_the_tokenizer_is_never_in_two_threads(artifacts: dict[str, Path]) -> None:
    """Long texts go to a thread, short ones do not; while the thread is busy they wait for it."""
    import threading

    front = ServedModel.of_artifact("m", open_artifact(artifacts["embedder"]), (), Scheduler(ThreadPool({})))
    lock, real = threading.Lock(), front._tokenize
    threads = set()

    def guarded(texts: Any, request: Request) -> Any:
        assert lock.acquire(blocking=False), "two at once"
        threads.add(threading.get_ident())
        try:
            return real(texts, request)
        finally:
            lock.release()

    front._tokenize = guarded  # type: ignore[method-assign]

    async def asked() -> None:
        long, short = ["two words " * 2000] * 40, ["two"]
        cancelled = asyncio.create_task(front.rows_of(long, Request(9.0, True)))
        await asyncio.sleep(0)
        cancelled.cancel()
        work = [front.rows_of(texts, Request(9.0, True)) for texts in (short, long, short, short)]
        await asyncio.gather(*work)
        await front.rows_of(short, Request(9.0, True))

    asyncio.run(asked())
    assert len(threads) == 2
    front.close()


def test_why_a_model_is_not_padded_and_how_many_rows_it_takes() -> None:
    ids = TensorSpec("input_ids", "int64", ("batch", "length"))
    mask = TensorSpec("attention_mask", "int64", ("batch", "length"))
    out = (TensorSpec("y", "float32", ("batch", 3)),)
    assert "no mask" in Batching.of((ids,), out).why
    assert "not token ids" in Batching.of((TensorSpec("x", "float32", ("batch", "length")), mask), out).why
    assert "one batch dimension" in Batching.of((ids, mask), (TensorSpec("y", "float32", (3,)),)).why
    padded = Batching.of((ids, mask), out)
    assert padded.length == "length" and padded.why == ""
    profiles = [{"batch": Range(1, 4, 8)}, {"batch": Range(1, 1, 2)}]
    assert padded.most_rows(profiles) == 8 and padded.most_rows([]) is None
    assert padded.most_rows(profiles, {"batch": Dim("batch", 1, 5)}) == 5
    assert padded.most_rows([], {"batch": Dim("batch", 1, None)}) is None
