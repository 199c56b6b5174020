"""Batcher: rows of many requests share batches, and each answer is what its request alone would get."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import served_models
import tiny

import bertc
from bertc.core import DataError, InputError
from bertc.runtime import Runner
from bertc.serve import Batcher, CostModel
from bertc.serve.errors import DeadlinePassed, Overloaded, Refused, TooLong, Unavailable

CLOSE = 1e-5  # float32, sums in another order


@pytest.fixture(scope="module")
def embedder() -> Runner:
    return bertc.load(served_models.embedder()[1])


@pytest.fixture(scope="module")
def classifier() -> Runner:
    return bertc.load(served_models.classifier("")[1])


class Counting(Runner):
    """A runner that keeps the shapes of its batches, and waits where it is told to."""

    def __init__(self, inner: Runner, gate: Callable[[], Any] = lambda: None) -> None:
        super().__init__(inner.inputs, inner.outputs, inner.profiles)
        self.tokenizer, self.index_bounds = inner.tokenizer, inner.index_bounds
        self.inner, self.gate, self.shapes = inner, gate, []

    def _run(self, feeds: Any) -> Any:
        self.gate()
        self.shapes.append(feeds["input_ids"].shape)
        return self.inner.run(feeds)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())


def test_rows_of_many_requests_share_batches_and_answers_are_equal(embedder: Runner) -> None:
    texts, counted = served_models.texts(40), Counting(embedder)

    async def work() -> tuple[list[np.ndarray], Batcher]:
        async with Batcher(counted, max_rows=8) as batcher:
            return await asyncio.gather(*(batcher.embed([text]) for text in texts)), batcher

    found, batcher = run(work)
    assert np.abs(np.concatenate(found) - np.concatenate([embedder.embed([text]) for text in texts])).max() < CLOSE
    assert max(rows for rows, _ in counted.shapes) == 8 and len(counted.shapes) < 20
    assert batcher.policy == "tokens" and any("times of batches are not known" in note for note in batcher.notes)


def test_arrays_and_settings_of_embed(embedder: Runner) -> None:
    async def work() -> None:
        async with Batcher(embedder) as batcher:
            feeds = embedder.encode(["the cat", "a big dog ran far away"])
            made, wanted = await batcher.infer(feeds), embedder.run(feeds)
            assert made.keys() == wanted.keys()
            assert all(made[name].shape == wanted[name].shape for name in wanted)
            assert np.abs(made["sentence_embedding"] - wanted["sentence_embedding"]).max() < CLOSE
            options: dict[str, Any] = {"truncate_dim": 7, "normalize": True, "prompt_name": "document"}
            cut = await batcher.embed(["a mat"], **options)
            assert np.abs(cut - embedder.embed(["a mat"], **options)).max() < CLOSE and cut.shape == (1, 7)

    run(work)


def test_logits_of_texts_and_pairs(classifier: Runner) -> None:
    pairs = [("the cat", text) for text in served_models.texts(9)]

    async def work() -> np.ndarray:
        async with Batcher(classifier) as batcher:
            with pytest.raises(Refused):
                await batcher.embed(["no embedding"])
            return await batcher.logits(pairs)

    assert (
        np.abs(run(work) - np.concatenate([classifier.run(classifier.encode([pair]))["logits"] for pair in pairs])).max() < 1e-4
    )


def test_one_wrong_request_fails_alone(embedder: Runner) -> None:
    good = embedder.encode(["the cat sat"])
    wrong = {
        "an id beyond the table": good | {"input_ids": good["input_ids"] + 10_000},
        "a negative id": good | {"input_ids": good["input_ids"] - 1000},
        "an unknown input": good | {"other": good["input_ids"]},
        "a missing input": {"input_ids": good["input_ids"]},
        "rows that disagree": good | {"attention_mask": np.ones((2, good["input_ids"].shape[1]), np.int64)},
        "floats": good | {"input_ids": good["input_ids"] + 0.5},
        "no rows": {name: array[:0] for name, array in good.items()},
        "a scalar": good | {"input_ids": np.array(1)},
        "nothing": {},
    }

    async def work() -> list[Any]:
        async with Batcher(embedder) as batcher:
            calls = [batcher.infer(each) for each in wrong.values()]
            return await asyncio.gather(*calls, *(batcher.infer(good) for _ in range(5)), return_exceptions=True)

    found = run(work)
    for name, each in zip(wrong, found, strict=False):
        assert isinstance(each, DataError), (name, each)
    assert all(isinstance(each, dict) for each in found[len(wrong) :])


def test_limits_are_said(embedder: Runner) -> None:
    import threading

    gate = threading.Event()

    async def work() -> None:
        async with Batcher(embedder) as batcher:
            with pytest.raises(TooLong):
                await batcher.embed(["cat " * 500])
        async with Batcher(embedder, truncate=True) as batcher:
            assert np.abs(await batcher.embed(["cat " * 500]) - embedder.embed(["cat " * 500])).max() < CLOSE
        slow = Counting(embedder)
        async with Batcher(slow, queue=4, deadline=0.2) as batcher:
            slow.gate = gate.wait
            calls = [asyncio.create_task(batcher.embed([text])) for text in served_models.texts(5)]
            await asyncio.sleep(0.05)
            with pytest.raises(Overloaded):
                await batcher.embed(["the cat"] * 4)
            with pytest.raises(TooLong):
                await batcher.embed(["the cat"] * 5)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(each, DeadlinePassed) for each in answers)
            gate.set()

    run(work)


def test_one_event_loop(embedder: Runner) -> None:
    batcher = Batcher(embedder)
    first = asyncio.new_event_loop()
    try:
        first.run_until_complete(batcher.embed(["the cat"]))
        with pytest.raises(InputError, match="another event loop"):
            asyncio.run(batcher.embed(["the cat"]))
        first.run_until_complete(batcher.close())
        with pytest.raises(Unavailable):
            first.run_until_complete(batcher.embed(["the cat"]))
    finally:
        first.close()


def test_what_waits_is_answered_before_it_closes(embedder: Runner) -> None:
    async def work() -> list[np.ndarray]:
        batcher = Batcher(embedder)
        await batcher.embed(["the cat"])
        calls = [asyncio.create_task(batcher.embed([text])) for text in served_models.texts(20)]
        await asyncio.sleep(0)
        await batcher.close()
        return await asyncio.gather(*calls)

    assert len(run(work)) == 20


def test_closed_before_it_was_used(embedder: Runner) -> None:
    run(Batcher(embedder).close)


def test_known_times_choose_the_cost_policy(embedder: Runner) -> None:
    flat = CostModel(np.array([1, 32]), np.array([1, 512]), np.full((2, 2), 0.01))
    counted = Counting(embedder)

    async def work() -> Batcher:
        async with Batcher(counted, cost=flat, max_rows=16) as batcher:
            await asyncio.gather(*(batcher.embed([text]) for text in served_models.texts(33)))
            return batcher

    batcher = run(work)
    assert batcher.policy == "cost" and not batcher.notes
    assert max(rows for rows, _ in counted.shapes) == 16, "a batch costs as much as one row: as many as may"


def test_padding_that_changes_rows_is_found(caplog: pytest.LogCaptureFixture, embedder: Runner) -> None:
    class Positional(Counting):
        """Looks at how long its batch is, as a convolution over the sequence may."""

        def _run(self, feeds: Any) -> Any:
            made = super()._run(feeds)
            return {name: array + feeds["input_ids"].shape[1] for name, array in made.items()}

    runner, texts = Positional(embedder), served_models.texts(30)

    async def work() -> tuple[np.ndarray, Batcher]:
        async with Batcher(runner) as batcher:
            start = len(runner.shapes)
            made = await batcher.embed(texts)
            assert len(runner.shapes) - start < len(texts), "texts of one length still share a batch"
            return made, batcher

    with caplog.at_level(logging.WARNING, "bertc.serve"):
        made, batcher = run(work)
    alone = np.concatenate([runner.embed([text]) for text in texts])
    assert np.abs(made - alone).max() < CLOSE
    assert any("only rows of one length" in note for note in batcher.notes) and "only rows of one length" in caplog.text


def test_without_a_tokenizer_and_within_the_profile(tmp_path: Any) -> None:
    path = tiny.encoder(tmp_path / "m.onnx")
    bertc.build(path, tmp_path / "out", targets=["onnxruntime"])
    runner = bertc.load(tmp_path / "out")
    runner.profiles = ({"batch": bertc.core.Range(1, 1, 3), "length": bertc.core.Range(1, 8, 16)},)
    counted = Counting(runner)

    async def work() -> None:
        async with Batcher(counted) as batcher:
            feeds = [tiny.feeds(1, length) for length in (3, 5, 5, 5, 5, 3)]
            made = await asyncio.gather(*(batcher.infer(each) for each in feeds))
            for each, found in zip(feeds, made, strict=True):
                assert np.abs(found["last_hidden_state"] - runner.run(each)["last_hidden_state"]).max() < CLOSE
            with pytest.raises(DataError):
                await batcher.infer(tiny.feeds(1, 17))
            with pytest.raises(DataError, match="no tokenizer"):
                await batcher.embed(["the cat"])
            assert any("3 rows" in note for note in batcher.notes)

    run(work)
    assert max(rows for rows, _ in counted.shapes) <= 3


@pytest.mark.parametrize("options", [{"policy": "costs"}, {"max_rows": 0}, {"threads": 0}, {"budget": -1}, {"queue": 0}])
def test_options_that_are_none(options: dict[str, Any], embedder: Runner) -> None:
    with pytest.raises(InputError):
        Batcher(embedder, **options)
