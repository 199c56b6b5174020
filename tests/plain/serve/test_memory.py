"""Many models in one memory: weights held once, models under a budget, the right answers from each of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import onnx
import pytest

import bertc
from bertc.artifact import open_artifact
from bertc.core import ArtifactError, Feeds, InputError, Outputs
from bertc.serve import Server, ServingConfig, cost, memory, preparing
from bertc.serve.config import ModelConfig
from bertc.serve.errors import Unavailable
from bertc.serve.model import Request
from bertc.targets import onnxruntime as target
from tests.helpers import tiny

LARGE = 96  # a weight of 96 x 96 floats is large enough for a file of its own
REQUEST = Request(60.0, truncate=False)
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three encoders that share every weight but one."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", LARGE)
        made = {}
        for at, name in enumerate(NAMES):
            source = tiny.encoder(folder / f"{name}.onnx", changed=float(at))
            (found,) = bertc.build(source, folder / name, precision="fp32", targets=["onnxruntime"], verify=False)
            times = cost.CostModel(
                np.array([1]), np.array([1, 512]), np.array([[1e-4], [1e-2]]), per_row=1e-3, workers=2, threads=1
            )
            cost.write_cost(open_artifact(found.path), times)
            made[name] = found.path
    return made


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


@contextlib.asynccontextmanager
async def served(artifacts: dict[str, Path], workers: int = 2, **options: object) -> AsyncIterator[Server]:
    models = {name: ModelConfig(str(path)) for name, path in artifacts.items()}
    server = Server(ServingConfig(workers=workers, threads=1, models=models, **options))  # type: ignore[arg-type]
    try:
        await server.start()
        yield server
    finally:
        await server.close()


def some_feeds(seed: int) -> Feeds:
    return tiny.feeds(1, 3 + seed % 7)


async def ask(server: Server, names: Sequence[str]) -> list[Outputs]:
    return list(await asyncio.gather(*(server.models[name].infer(some_feeds(at), REQUEST) for at, name in enumerate(names))))


def right(artifacts: dict[str, Path], names: Sequence[str], got: Sequence[Outputs]) -> None:
    runners = {name: bertc.load(path) for name, path in artifacts.items()}
    for at, (name, outputs) in enumerate(zip(names, got, strict=True)):
        for key, array in runners[name].run(some_feeds(at)).items():
            np.testing.assert_allclose(outputs[key], array, rtol=0, atol=2e-6)  # rows of a batch are summed in another order


# --- workers that hang --------------------------------------------------------------------------------------------------------


@in_loop
async def test_a_worker_that_hangs_is_replaced_and_its_batch_run_again(artifacts: dict[str, Path]) -> None:
    """Stopped, a worker neither ends nor answers."""
    async with served({"one": artifacts["one"]}, worker_timeout_ms=400.0) as server:
        stopped = server.pool.processes[:1]
        os.kill(stopped[0], signal.SIGSTOP)
        names = ["one"] * 6
        right(artifacts, names, await ask(server, names))
        await _until(lambda: len(server.pool.processes) == 2 and stopped[0] not in server.pool.processes)
        right(artifacts, names, await ask(server, names))


@in_loop
async def test_a_batch_that_hangs_two_workers_is_refused_with_the_reason(artifacts: dict[str, Path]) -> None:
    async with served({"one": artifacts["one"]}, worker_timeout_ms=300.0) as server:
        for pid in server.pool.processes:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(Unavailable, match=r"no answer within 0\.3 s"):
            await ask(server, ["one"])
        await _until(lambda: len(server.pool.processes) == 2)
        right(artifacts, ["one"], await ask(server, ["one"]))


async def _until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.02)


# --- batches as large as the engine takes -------------------------------------------------------------------------------------


@in_loop
async def test_batches_are_as_large_as_the_profiles_take(artifacts: dict[str, Path]) -> None:
    async with served({"one": artifacts["one"]}) as server:
        found, batching = server.artifacts["one"], server.models["one"].batching
        assert server.describe_model("one")["max_rows"] == 32, "ONNX Runtime is bound to no profile"
        profile = {name: {"min": 1, "opt": 4, "max": 8} for name in ("batch", "length")}
        server.pool.limits["bound"] = [profile, profile | {"batch": {"min": 1, "opt": 1, "max": 2}}]
        assert server._policy("one", "bound", found, batching).max_rows == 8
        assert any("up to 8 rows, not 32" in note for note in server.log.notes)


# --- the ledger --------------------------------------------------------------------------------------------------------------


def need(*weights: str, private: int = 0) -> memory.Need:
    return memory.Need(dict.fromkeys(weights, 100), private)


def test_the_least_recently_used_goes_first() -> None:
    ledger = memory.Ledger(250)
    for name in "abc":
        ledger.know(name, need(name))
    assert [ledger.use(name) for name in "ab"] == [[], []]
    assert ledger.use("a") == []
    assert ledger.use("c") == ["b"]
    assert list(ledger.loaded) == ["a", "c"]
    assert ledger.bytes() == 200


def test_equal_weights_count_once_and_private_bytes_for_each_worker() -> None:
    ledger = memory.Ledger(None, workers=3)
    for name in "abc":
        ledger.know(name, need("trunk", name, private=7))
        ledger.use(name)
    assert ledger.bytes() == 100 + 3 * 100 + 3 * 3 * 7
    assert ledger.size("a") == 200 + 3 * 7
    assert ledger.forget("a") == ["a"]
    assert ledger.forget("b") == ["b"]
    assert ledger.forget("c") == ["trunk", "c"]


def test_several_go_where_one_is_not_enough() -> None:
    ledger = memory.Ledger(320)
    for name in "abc":
        ledger.know(name, need(name))
        ledger.use(name)
    ledger.know("large", need("x", "y", "z"))
    assert ledger.use("large") == ["a", "b", "c"]


@pytest.mark.parametrize(("budget", "workers", "fits"), [(200, 1, True), (199, 1, False), (210, 2, False), (220, 2, True)])
def test_a_model_over_the_budget_is_refused(budget: int, workers: int, fits: bool) -> None:
    ledger = memory.Ledger(budget, workers)
    wanted = need("a", "b", private=10 if workers > 1 else 0)
    with contextlib.nullcontext() if fits else pytest.raises(InputError, match=r"'m'.*--memory"):
        ledger.know("m", wanted)


# --- the store ---------------------------------------------------------------------------------------------------------------


def test_packed_weights_keep_their_key_and_checksums_when_they_move() -> None:
    read = memory.Packed.read("MatMul+17|589824;64;5|589888;32;6")
    assert [part for part, _ in read.blocks] == [memory.Part(589824, 64), memory.Part(589888, 32)]
    assert read.at([4096, 8192]) == "MatMul+17|4096;64;5|8192;32;6"


@pytest.mark.parametrize("text", ["", "key", "key|1;2", "key|one;2;3", "|1;2;3"])
def test_a_description_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"packed weights|unpack|invalid literal"):
        memory.Packed.read(text)


def test_equal_weights_are_one_file_and_answers_keep_their_bits(artifacts: dict[str, Path], tmp_path: Path) -> None:
    made = {name: preparing.prepare(name, path, tmp_path) for name, path in artifacts.items()}
    weights = [set(each.weights) for each in made.values()]
    shared = set.intersection(*weights)
    assert len(shared) >= 3  # queries, keys, values: the heads differ in one weight
    assert all(len(each - shared) == 1 for each in weights)
    assert len({each.shape for each in made.values()}) == 1
    for name, path in artifacts.items():
        assert made[name].why == ""
        runner, _ = preparing.load(dataclasses.asdict(made[name]))
        ordinary = bertc.load(path)
        for seed in range(8):
            feeds = tiny.feeds(1 + seed, 5 + 9 * seed)
            for key, array in ordinary.run(feeds).items():
                assert runner.run(feeds)[key].tobytes() == array.tobytes()


@pytest.mark.parametrize("precision", ["fp16", "int8-dynamic"])
@in_loop
async def test_smaller_weights_are_held_once_and_answer_under_a_budget(precision: str, tmp_path: Path) -> None:
    """fp16 is unpacked when the session is made, int8 is packed by other kernels: what is written is what the session made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "WIDTH", 136)  # 136 x 136 bytes are large enough for a file
        sources = [tiny.encoder(tmp_path / f"{at}.onnx", changed=at / 8) for at in range(2)]
        quick: dict[str, Any] = {"targets": ["onnxruntime"], "verify": False, "prove": False}
        made = {
            name: bertc.build(source, tmp_path / name, precision=precision, **quick)[0].path
            for name, source in zip(NAMES, sources, strict=False)
        }
    times = cost.CostModel(np.array([1]), np.array([1, 512]), np.array([[1e-4], [1e-2]]), per_row=1e-3, workers=2, threads=1)
    for path in made.values():
        cost.write_cost(open_artifact(path), times)
    if precision != "fp16":
        assert all("MatMulInteger" in {n.op_type for n in onnx.load(path / target.MODEL).graph.node} for path in made.values())
    store = tmp_path / "store"
    store.mkdir()
    prepared = {name: preparing.prepare(name, path, store) for name, path in made.items()}
    one, two = (set(each.weights) for each in prepared.values())
    assert all(each.why == "" for each in prepared.values()), "held against an ordinary session, bit for bit"
    assert len(one & two) >= 3 and len(one - two) == len(two - one) == 1
    # Memory of one's own is measured in this process, whose heap grows for other tests, too: the less of two measurements is it.
    store = tmp_path / "again"
    store.mkdir()
    again = {name: preparing.prepare(name, path, store).private for name, path in made.items()}
    largest = max(sum(each.weights.values()) + 2 * min(each.private, again[name]) for name, each in prepared.items())
    async with served(made, memory=str(largest + largest // 4)) as server:
        names = [NAMES[at % 2] for at in range(12)]
        right(made, names, await ask(server, names))
        assert len(server.pool.ledger.loaded) == 1, "both do not fit"


def test_a_session_maps_the_files_of_the_store(artifacts: dict[str, Path], tmp_path: Path) -> None:
    made = preparing.prepare("one", artifacts["one"], tmp_path)
    runner, _ = preparing.load(dataclasses.asdict(made))
    mapped = Path("/proc/self/maps").read_text("utf-8")
    assert runner.inputs
    assert all(f"{tmp_path}/{each}" in mapped for each in made.weights)


def test_what_no_other_has_is_removed(artifacts: dict[str, Path], tmp_path: Path) -> None:
    ledger = memory.Ledger()
    for name in NAMES[:2]:
        ledger.know(name, preparing.prepare(name, artifacts[name], tmp_path).need)
    own = set(ledger.needs["one"].weights) - set(ledger.needs["two"].weights)
    memory.Store(tmp_path).remove("one", ledger.forget("one"))
    left = {path.name for path in tmp_path.iterdir()}
    assert not own & left
    assert set(ledger.needs["two"].weights) < left
    assert not memory.Store(tmp_path).graph("one").exists()


def test_graphs_of_other_sizes_have_another_shape(artifacts: dict[str, Path]) -> None:
    model = onnx.load(artifacts["one"] / target.MODEL)
    before = memory.shape_of(model)
    model.graph.node[0].name = "another name"
    assert memory.shape_of(model) == before
    model.graph.initializer[0].dims[0] += 1
    assert memory.shape_of(model) != before


def test_a_target_that_cannot_share_says_so_and_is_weighed(artifacts: dict[str, Path], tmp_path: Path) -> None:
    (found,) = bertc.build(artifacts["one"] / "graph.onnx", tmp_path / "null", precision="fp32", targets=["null"], verify=False)
    made = preparing.prepare("typed", found.path, tmp_path)
    assert "null" in made.why
    assert made.saved == ""
    assert made.private >= (found.path / "graph.onnx").stat().st_size


def test_an_artifact_that_was_replaced_is_not_loaded_in_place_of_the_old(artifacts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(artifacts["one"], tmp_path / "m")
    made = preparing.prepare("m", tmp_path / "m", None)
    shutil.rmtree(tmp_path / "m")
    shutil.copytree(artifacts["two"], tmp_path / "m")
    with pytest.raises(ArtifactError, match="--reload"):
        preparing.load(dataclasses.asdict(made))


def test_folders_of_killed_servers_are_removed_and_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(memory.tempfile, "tempdir", str(tmp_path))
    dead, held, fresh = (tmp_path / f"{memory.PREFIX}{name}" for name in ("dead", "held", "fresh"))
    for each in (dead, held, fresh):
        each.mkdir()
        (each / "weight").write_bytes(b"1")
    long_ago = time.time() - 10 * memory.FRESH
    with filelock.FileLock(held / memory.LOCK):
        for each in (dead, held):
            os.utime(each, (long_ago, long_ago))
        with memory.folder() as made:
            assert made.stat().st_mode & 0o077 == 0
            assert {path.name for path in tmp_path.iterdir()} == {held.name, fresh.name, made.name}
    assert not made.exists()


@pytest.mark.parametrize(("kind", "is_memory"), [("tmpfs", True), ("ext4", False)])
def test_a_folder_in_memory_is_known(tmp_path: Path, kind: str, is_memory: bool) -> None:
    other = "ext4" if is_memory else "tmpfs"
    (tmp_path / "mounts").write_text(f"a / {other} rw 0 0\nb {tmp_path.resolve()} {kind} rw 0 0\n")
    assert memory.in_memory(tmp_path, tmp_path / "mounts") is is_memory


# --- a server ----------------------------------------------------------------------------------------------------------------


@in_loop
async def test_without_a_budget_every_worker_has_every_model(artifacts: dict[str, Path]) -> None:
    async with served(artifacts) as server:
        assert server.pool.store is not None
        folder = server.pool.store
        names = [NAMES[at % 3] for at in range(30)]
        right(artifacts, names, await ask(server, names))
        facts = server.describe()
        assert facts["memory"]["loaded"] == facts["memory"]["shared"] == 3
        assert facts["memory"]["bytes"] < sum(each["bytes"] for each in facts["models"].values())
        assert b"bertc_models_loaded 3.0" in server.metrics.text(server.scheduler, 2, server.pool.ledger)
    assert not folder.exists()


@in_loop
async def test_a_budget_holds_and_every_answer_is_right(artifacts: dict[str, Path]) -> None:
    budget = 3_000_000  # two workers hold 2 MiB of a model; two models are too many
    async with served(artifacts, memory="3MB") as server:
        most = 0
        for round_ in range(6):
            names = [NAMES[(at + round_) % 3] for at in range(12)]
            right(artifacts, names, await ask(server, names))
            most = max(most, server.pool.ledger.bytes())
            for worker in server.pool._workers:
                assert worker.loaded <= set(server.pool.ledger.loaded)
        assert 0 < most <= budget
        text = server.metrics.text(server.scheduler, 2, server.pool.ledger).decode()
        unloads = [float(line.split()[1]) for line in text.splitlines() if line.startswith("bertc_model_unloads_total{")]
        assert sum(unloads) >= 6
        assert "bertc_models_budget_bytes 3e+06" in text


@in_loop
async def test_what_is_gone_from_the_disk_or_died_is_still_answered_under_a_budget(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    mine = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in artifacts.items()}
    for name, path in artifacts.items():
        shutil.copy(cost.cost_path(path), cost.cost_path(mine[name]))
    async with served(mine, memory="3MB") as server:
        for path in mine.values():
            shutil.rmtree(path)
        os.kill(server.pool.processes[0], signal.SIGKILL)
        names = [NAMES[at % 3] for at in range(9)]
        right(artifacts, names, await ask(server, names))


@in_loop
async def test_a_model_over_the_memory_ends_the_start_and_leaves_nothing(
    artifacts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match="--memory 3MB or more"):
        async with served(artifacts, memory="50KB"):
            pass
    assert not list(tmp_path.iterdir())


@in_loop
async def test_a_replaced_artifact_is_switched_to_and_the_weights_of_the_old_one_go(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    mine = {name: Path(shutil.copytree(artifacts[name], tmp_path / name)) for name in NAMES[:2]}
    for name, path in mine.items():
        shutil.copy(cost.cost_path(artifacts[name]), cost.cost_path(path))
    async with served(mine) as server:
        assert server.pool.store is not None
        before = {path.name for path in server.pool.store.iterdir()}
        shutil.rmtree(mine["one"])
        shutil.copytree(artifacts["three"], mine["one"])
        assert await server.reload("one")
        right({"one": artifacts["three"]}, ["one"], await ask(server, ["one"]))
        after = {path.name for path in server.pool.store.iterdir()}
        assert len(after) == len(before)
        assert before - after


def test_anonymous_memory_is_told() -> None:
    before = memory.anonymous()
    block = np.ones(8 * 2**20)
    assert memory.anonymous() - before >= block.nbytes * 0.9
    del block
    memory.release()
    assert memory.anonymous() - before < 2**20 * 16
