"""fleet.lock.json: what a fleet was built of and what came out, so that it can be built again, or refused.

    bertc, tools    versions
    out             the folder of the artifacts, relative to this file
    code            {file of bertc: sha256}, for all stages together
    stages          {slot: {key, digest, inputs (without code)}}: "minilm/export", "minilm/fuse", and every entry
    entries         {name: {model, target, sms, precision, gpus, host, key, digest, bytes, files: {name: sha256}}}

`--locked` computes every key from this machine and the locked digests, before any work, and names what differs; afterwards the
contents must be the locked ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, PAGE, REPORT
from ..core import VERSION, ArtifactError, CheckFailed, InputError, counted, machine, what_is_wrong
from ..targets import PLAN
from . import keys, plan, travelled
from .config import Entry, Fleet
from .run import Outcome
from .store import Store, write_whole

FORMAT = 1


def read(fleet: Fleet) -> dict[str, Any]:
    """The lock file; {} where there is none. ArtifactError for a damaged one."""
    if not fleet.lock.is_file():
        return {}
    advice = "delete it and build again"
    found = travelled.read_object(fleet.lock, advice)
    try:
        if found["format"] > FORMAT:
            raise InputError(f"{fleet.lock} has format {found['format']}, this bertc reads up to {FORMAT}: pip install -U bertc")
        travelled.check_lock(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{fleet.lock} is damaged: {what_is_wrong(error)}; {advice}") from error
    return found


def write(fleet: Fleet, store: Store, outcomes: Sequence[Outcome], whole: Fleet) -> None:
    """Write down what was built; entries of the fleet that were not built now stay as they are, those it lost go."""
    with store.lock("fleet-lock"):  # jobs of one pipeline may share the file
        document = _merged(read(fleet), store, outcomes, whole)
        if document != read(fleet):
            write_whole(fleet.lock, document)


def _merged(before: Mapping[str, Any], store: Store, outcomes: Sequence[Outcome], whole: Fleet) -> dict[str, Any]:
    slots = {task.slot for task in plan.tasks(whole)}
    stages = {slot: recorded for slot, recorded in before.get("stages", {}).items() if slot in slots}
    entries = {name: recorded for name, recorded in before.get("entries", {}).items() if name in slots}
    code = dict(before.get("code", {}))
    for outcome in outcomes:
        if outcome.digest is None or outcome.key is None:
            continue
        record = store.record(outcome.key)
        code |= record["inputs"]["code"]
        without = {name: value for name, value in record["inputs"].items() if name != "code"}
        stages[outcome.task.slot] = {"key": outcome.key, "digest": outcome.digest, "inputs": without}
        if outcome.task.entry:
            entries[outcome.task.slot] = _entry(outcome.task.entry, record)
    return {
        "format": FORMAT,
        "bertc": VERSION,
        "tools": machine.versions(),
        "out": Path(os.path.relpath(whole.out, whole.path.resolve().parent)).as_posix(),
        "stages": dict(sorted(stages.items())),
        "entries": dict(sorted(entries.items())),
        "code": dict(sorted(code.items())),
    }


def _entry(entry: Entry, record: Mapping[str, Any]) -> dict[str, Any]:
    timeless = {name: file for name, file in sorted(record["files"].items()) if name not in (MANIFEST, REPORT, PAGE)}
    return {
        "model": entry.model,
        "target": entry.spec.name,
        "sms": list(entry.spec.sms),
        "precision": entry.precision,
        "gpus": list(entry.gpus),
        "host": entry.host,
        "key": record["key"],
        "digest": record["digest"],
        "bytes": sum({file["sha256"]: file["bytes"] for file in timeless.values()}.values()),  # model.onnx is graph.onnx
        "files": {name: file["sha256"] for name, file in timeless.items()},
    }


def require_same(fleet: Fleet, store: Store) -> None:
    """CheckFailed naming each difference between the lock and this fleet, these files and these tools; no work is done."""
    locked = read(fleet)
    if not locked:
        raise InputError(f"--locked: there is no {fleet.lock}; build once without it")
    drifted = {task.slot: why for task in plan.tasks(fleet) if (why := _drift(task, locked, store))}
    if drifted:
        differences = "\n".join(f"  {slot}: {'; '.join(why)}" for slot, why in drifted.items())
        raise CheckFailed(f"--locked: {counted(len(drifted), 'stage')} not as in {fleet.lock.name}:\n{differences}")


def _drift(task: plan.Task, locked: Mapping[str, Any], store: Store) -> list[str]:
    if task.slot not in locked["stages"]:
        return ["not in the lock"]
    if absent := [slot for slot in task.needs.values() if slot not in locked["stages"]]:
        return [f"{', '.join(absent)} not in the lock"]
    upstream = {stage: locked["stages"][slot]["digest"] for stage, slot in task.needs.items()}
    now = plan.inputs(task, upstream, store)
    recorded = locked["stages"][task.slot]
    if keys.key_of(now) == recorded["key"]:
        return []
    code = {name: locked["code"].get(name) for name in now["code"]}
    return keys.changes({**recorded["inputs"], "code": code}, now) or ["bertc's code changed"]


def require_contents(fleet: Fleet, store: Store, outcomes: Sequence[Outcome]) -> None:
    """CheckFailed where a stage of the locked inputs came out with other contents than the lock says, naming the files.

    TensorRT's engines are left out: it chooses kernels by how long they take on the GPU, so two builds may differ.
    """
    locked = read(fleet)
    finished = [o for o in outcomes if o.digest is not None and o.task.host is None]
    for outcome in finished:
        store.whole_record(str(outcome.key))  # a store may say the locked digest of other files
    other = [o for o in finished if locked["stages"][o.task.slot]["digest"] != o.digest]
    if not other:
        return
    files = {o.task.slot: _files_that_differ(o, locked["entries"], store) for o in other}
    why = "something outside the key decides the result"
    if any(o.task.stage in ("calibrate", "quantise") for o in other):
        why = "calibration depends on how the CPU rounds: quantise on one kind of CPU, or share the store"
    elif all(names == [PLAN] for names in files.values()):
        why = "the graph is the same, the compiler built another engine; build without --locked to accept it"
    changed = ", ".join(f"{slot} ({', '.join(names)})" if names else slot for slot, names in files.items())
    raise CheckFailed(f"--locked: {changed} came out different from the same inputs; {why}")


def _files_that_differ(outcome: Outcome, locked: Mapping[str, Any], store: Store) -> list[str]:
    """Of an entry; of other stages the lock keeps no files."""
    entry = outcome.task.entry
    if entry is None or outcome.task.slot not in locked:
        return []
    was, now = locked[outcome.task.slot]["files"], _entry(entry, store.record(str(outcome.key)))["files"]
    return sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
