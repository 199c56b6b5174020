"""A fleet on a real Ray cluster of one node on the loopback: results through the store, and a worker killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fleets
import pytest
import ray_head

from benchmarks.fleet_processes import below
from bertc.fleet import lock, run
from bertc.fleet import store_cleaning as cleaning
from bertc.fleet.ray import RayPool

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'bertc[fleet]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    """The address of a head node with two cores on the loopback, and the pid above all its processes."""
    with ray_head.cluster(2) as made:
        yield made


def ray_workers_with_a_task(head: int) -> list[int]:
    """Ray workers of this cluster (other tests start tasks, too) that have a process of a task below them."""
    found = []
    for pid in below(head):
        folder = Path(f"/proc/{pid}")
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if "bertc.fleet.task" in words:
            found.append(parent)
    return found


def kill_once(head: int, killed: list[int]) -> None:
    """SIGKILL to the first Ray worker that works on a task, and still does a little later: in the middle of the stage."""
    deadline, before = time.monotonic() + 60, set[int]()
    while time.monotonic() < deadline:
        workers = ray_workers_with_a_task(head)
        for worker in before.intersection(workers):
            if tasks := below(worker):
                os.kill(worker, signal.SIGKILL)
                killed += [worker, *tasks]
                return
        before = set(workers)
        time.sleep(0.2)


def test_a_killed_worker_is_replaced_and_nothing_is_lost(tmp_path: Path, cluster: tuple[str, int]) -> None:
    address, head = cluster
    calm = fleets.write(tmp_path / "calm", "a")
    fleet, store = fleets.opened(calm)
    lock.write(fleet, store, list(fleets.build(calm).values()), fleet)
    path = fleets.write(tmp_path / "ray", "a")
    fleet, store = fleets.opened(path)
    pool, killed = RayPool(address), []
    killer = threading.Thread(target=kill_once, args=(head, killed))
    killer.start()
    try:
        outcomes = run.run_fleet(fleet, store, pool, lambda task, outcome: None)
    finally:
        killer.join()
        pool.stop()
    assert len(killed) > 1, "a worker and its task were killed"
    states = [outcome.state for outcome in outcomes]
    assert set(states) <= {"made", "cached"}
    assert states.count("cached") <= 1, "killed between its result and its answer: the second try finds what the first one made"
    lock.write(fleet, store, outcomes, fleet)
    assert lock.read(fleet) == lock.read(fleets.opened(calm)[0])
    made = [line["key"] for line in store.journal()]
    assert sorted(made) == store.finished(), "nothing was made twice to the end"
    assert list(cleaning.damaged_stages(store)) == []


def test_calibration_in_parts_on_the_cluster_gives_the_same_bytes(tmp_path: Path, cluster: tuple[str, int]) -> None:
    matrix = 'targets = ["null"]\nprecisions = ["int8-static"]\n'
    (tmp_path / "calm").mkdir()
    calm = fleets.build(fleets.low_bit(tmp_path / "calm", matrix))
    (tmp_path / "ray").mkdir()
    fleet, store = fleets.opened(fleets.low_bit(tmp_path / "ray", f"shards = 2\n{matrix}"))
    pool = RayPool(cluster[0])
    try:
        found = {o.task.slot: o for o in run.run_fleet(fleet, store, pool, lambda task, outcome: None)}
    finally:
        pool.stop()
    assert set(fleets.states(found).values()) == {"made"}
    assert sum("calibrate" in slot for slot in found) == 2
    for slot in ("a/quantise-null-int8-static", "a/null-int8-static"):
        assert found[slot].digest == calm[slot].digest, slot
