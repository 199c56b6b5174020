"""`bertc serve --ray`: what a configuration asks of Ray, and a real Ray on the loopback whose replica is killed under load."""

from __future__ import annotations

import collections
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ray_head
import served

import bertc
from bertc import cli
from bertc.core import InputError, RecipeError
from bertc.serve import on_ray
from bertc.serve.config import RayConfig, ServingConfig, read_config, write_config

TEXTS = ["two words", "more", "and more and more words", "two"]
EXACT = 1e-5


def options(workers: int = 1, threads: int = 1, **of_ray: Any) -> dict[str, Any]:
    return dict(on_ray.deployment_options(ServingConfig(workers=workers, threads=threads, ray=RayConfig(**of_ray))))


def test_what_ray_is_asked_for() -> None:
    made = options(2, 3, replicas=2)
    assert made["num_replicas"] == 2 and "autoscaling_config" not in made
    assert made["ray_actor_options"]["num_cpus"] == 6 and made["ray_actor_options"]["num_gpus"] == 0
    assert made["max_ongoing_requests"] == ServingConfig().limits.queue, "the planner sees them all"
    assert made["graceful_shutdown_timeout_s"] > ServingConfig().limits.deadline_ms / 1e3
    scaled = options(replicas=1, max_replicas=5, target_requests=8, gpus=0.25, accelerator="l4", cpus=2)
    assert scaled["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 5, "target_ongoing_requests": 8}
    assert "num_replicas" not in scaled
    asked = scaled["ray_actor_options"]
    assert (asked["num_cpus"], asked["num_gpus"], asked["accelerator_type"]) == (2, 0.25, "L4")


def test_a_gpu_that_ray_has_no_name_for() -> None:
    with pytest.raises(InputError, match="l4"):
        options(accelerator="a30", gpus=1)
    with pytest.raises(RecipeError, match="known"):
        options(accelerator="l5", gpus=1)


def test_the_table_of_serving_toml(tmp_path: Path) -> None:
    written = ServingConfig(ray=RayConfig(replicas=2, max_replicas=4, gpus=0.5))
    write_config(written, tmp_path / "serving.toml")
    assert read_config(tmp_path / "serving.toml").ray == written.ray
    (tmp_path / "wrong.toml").write_text("[ray]\nreplica = 2\n")
    with pytest.raises(InputError, match="did you mean 'replicas'"):
        read_config(tmp_path / "wrong.toml")
    assert msgspec.structs.replace(written, ray=RayConfig()) == ServingConfig()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--replicas", "2"], "--ray"), (["--gpus", "0.5"], "--ray"), (["--ray", "auto", "--reload"], "--reload"),
        (["--ray", "auto", "--replicas", "0"], "1:8"), (["--ray", "auto", "--replicas", "4:2"], "1:8"),
        (["--ray", "auto", "--replicas", "many"], "1:8"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["serve", "artifact", *words]) == 2
    assert says in capsys.readouterr().err


def replicas(head: int) -> list[int]:
    """The processes of replicas below a head node."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:bertc:Server") and head in above(int(folder.name)):
            found.append(int(folder.name))
    return found


def above(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def children(pid: int) -> list[int]:
    files = Path("/proc").glob(f"{pid}/task/*/children")
    return [int(each) for file in files for each in file.read_text().split()]


@pytest.mark.skipif(not os.environ.get("BERTC_RAY"), reason="a minute, and 110 MB of packages: make ray")
def test_a_replica_killed_under_load(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """Each request is answered once: rightly, or, where its replica died with it, by Ray's 500. Another replica comes."""
    runner = bertc.load(artifacts["ranker"])
    wanted = np.concatenate([runner.run(runner.encode([("two", text)]))["logits"] for text in TEXTS])[:, 0]
    body = {"query": "two", "texts": TEXTS, "raw_scores": True}
    seen: collections.Counter[Any] = collections.Counter()
    stop = threading.Event()
    words = [artifacts["ranker"], "--replicas", 2]
    with (
        ray_head.cluster(4) as (address, head),
        served.serving(*words, "--ray", address, log=tmp_path / "log") as server,
    ):

        def ask() -> None:
            with served.requests.Session() as own:
                while not stop.wait(0.01):
                    found = own.post(f"{server.url}/rerank", json=body, timeout=30)
                    scores = {each["index"]: each["score"] for each in found.json()} if found.ok else {}
                    right = len(scores) == 4 and np.abs([scores[at] - wanted[at] for at in range(4)]).max() < EXACT
                    seen["right" if right else found.status_code] += 1

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            served.until(lambda: seen["right"] > 40)
            before = replicas(head)
            workers = children(before[0])
            assert len(before) == 2 and workers
            os.kill(before[0], signal.SIGKILL)
            served.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in (before[0], *workers)))
            served.until(lambda: len(set(replicas(head)) - set(before)) == 1, 40)
            at = seen["right"]
            served.until(lambda: seen["right"] > at + 40)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert set(seen) <= {"right", 500} and seen[500] <= len(threads), seen
        assert server.post("/rerank", {"query": "two", "texts": ["two " * 100]}).status_code == 413, "as without Ray"
        assert all('replica="' in name for name in server.metrics())
        assert server.get("/info").json()["replica"]
        start = time.monotonic()
        assert server.stop(60) == 0 and time.monotonic() - start < 30
        said = (tmp_path / "log").read_text("utf-8")
        assert "replicas are" in said and "Traceback" not in said
    assert replicas(head) == []
