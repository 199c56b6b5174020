"""The process that does one stage: `python -m bertc.fleet.task job.json`.

A process a stage: one that crashes or runs out of memory takes no other along.

    job     {"store", "stage", "slot", "key", "inputs", "recipe", "gpu": GPU model or null, "before": {stage: key}, "cwd",
             "parent": process to die with, "result": file, "began": time}
    result  {"state": "made" | "cached" | "failed", "key", "digest", "seconds", "peak_bytes",
             "repaired": what was wrong with one that lay in the store, or "",
             and when failed: "error", "exit_code"}
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import ArtifactError, BertcError, Missing, processes, read_json
from .store import Store


def main(path: str) -> None:
    """Do the job in a file; a failed stage is a result, only a crash is an exit code."""
    job = read_json(Path(path), dict[str, Any])
    processes.die_with_parent(job["parent"])
    result = run(job)
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's result: made here, or by another process while this one waited for it."""
    started = float(job.get("began", time.time()))
    store = Store(Path(job["store"]))
    try:
        with store.lock(job["key"]):
            repaired = _clear_damaged(store, job["key"])
            state = "cached" if store.has(job["key"]) else "made"
            record = store.record(job["key"]) if state == "cached" else _make(store, job, started)
        store.set_slot(job["slot"], {"key": job["key"]})
    except BertcError as error:
        return _failed(store, job, str(error), error.exit_code, started)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest of the fleet goes on and the exit code says it
        traceback.print_exc()
        message = f"this is a bug in bertc ({type(error).__name__}: {error})\n{traceback.format_exc()}"
        return _failed(store, job, message, 4, started)
    return {"state": state, "key": job["key"], "digest": record["digest"], "repaired": repaired, **_spent(started)}


def _clear_damaged(store: Store, key: str) -> str:
    """What was wrong with a stage that lies there and is not what was made: it goes, and is made again. '' for any other."""
    why = store.damage(key) if store.folder(key).exists() else None
    if why:
        store.remove(key)
    return why or ""


def _make(store: Store, job: Mapping[str, Any], started: float) -> dict[str, Any]:
    # Late: only who has something to do waits for the libraries.
    from .. import targets
    from ..core import Progress
    from ..recipe import Recipe
    from . import keys, stages

    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in job["recipe"].items()}
    recipe = Recipe(**given)
    spec = targets.parse_spec(recipe.targets[0])
    here = keys.environment(job["stage"], spec, recipe.precision)
    if drift := keys.changes({name: job["inputs"][name] for name in here}, here):
        raise Missing(f"this process runs other code or tools than the plan: {'; '.join(drift)}")
    before = {stage: store.folder(key) for stage, key in job["before"].items()}
    for stage, path in before.items():
        if not path.is_dir():
            raise ArtifactError(f"{path} is gone from the store; run the build again")
        store.whole_record(job["before"][stage])
    cache = _timing_cache(store, spec.name, job["gpu"])
    with store.staging() as folder:
        stages.run(stages.StageJob(job["stage"], recipe, before, cache, job["part"]), folder, Progress())
        return store.put(job["key"], folder, {"slot": job["slot"], "inputs": job["inputs"], **_spent(started)})


def _timing_cache(store: Store, target: str, gpu: str | None) -> Path | None:
    """TensorRT's own version is in the name: it refuses the caches of others."""
    from ..core import machine as packages

    return store.timing_cache(gpu, packages.installed_version(target) or "unknown") if target == "tensorrt" and gpu else None


def _spent(started: float) -> dict[str, Any]:
    """Wall seconds, and the most memory that this process and its largest child held, together."""
    try:
        import resource
    except ImportError:  # Windows does not tell
        return {"seconds": round(time.time() - started, 3), "peak_bytes": 0}
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"seconds": round(time.time() - started, 3), "peak_bytes": peak * 1024}


def _failed(store: Store, job: Mapping[str, Any], message: str, code: int, started: float) -> dict[str, Any]:
    failure = {"key": job["key"], "error": message, "exit_code": code, "at": round(time.time(), 3)}
    with contextlib.suppress(BertcError):  # a full disk fails the stage already
        store.set_slot(job["slot"], {**store.slot(job["slot"]), "failure": failure})
    return {"state": "failed", "error": message, "exit_code": code, "key": job["key"], **_spent(started)}


if __name__ == "__main__":
    main(sys.argv[1])
